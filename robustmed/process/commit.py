"""The commit of the checkout that runs, read from its files without git."""

import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def of_checkout(root: pathlib.Path = _ROOT) -> str:
  """Returns the commit that is checked out at `root`, '' where there is no repository."""
  folder = root / '.git'
  try:
    if folder.is_file():  # of a second work tree
      folder = root / folder.read_text().removeprefix('gitdir:').strip()
    head = (folder / 'HEAD').read_text().strip()
    if not head.startswith('ref: '):
      return head
    name = head.removeprefix('ref: ')
    common = folder / 'commondir'
    shared = folder / common.read_text().strip() if common.is_file() else folder
    for place in (folder, shared):
      if (place / name).is_file():
        return (place / name).read_text().strip()
    packed = (shared / 'packed-refs').read_text().splitlines()
  except (OSError, UnicodeDecodeError):
    return ''
  return next((line.split()[0] for line in packed if line.endswith(f' {name}')), '')
