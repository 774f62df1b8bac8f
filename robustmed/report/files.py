"""Files that appear whole or not at all."""

import os
import pathlib
import tempfile

from robustmed import errors


def write(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
  """Writes under a temporary name in the same folder, then renames; returns `path`.

  Raises:
    UserError: the folder cannot be written or the disk is full.
  """
  path = pathlib.Path(path)
  data = content.encode() if isinstance(content, str) else content
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    with os.fdopen(descriptor, 'wb') as file:
      file.write(data)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except OSError as error:
    if temporary is not None:
      pathlib.Path(temporary).unlink(missing_ok=True)
    raise errors.UserError(
      f'cannot write {path}: {error.strerror or error}; free some space or choose another --workdir'
    ) from error
  return path
