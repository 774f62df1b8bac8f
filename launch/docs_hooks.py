"""Pages of the documentation site that are files of the root, so that nothing is written twice."""

import pathlib
import re

from mkdocs.structure import files as site_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
# file of the root -> its page
PAGES = {
  'README.md': 'index.md',
  'CONTRIBUTING.md': 'contributing.md',
  'SECURITY.md': 'security.md',
  'CHANGELOG.md': 'changelog.md',
}
# Files that are no pages: the site says where they lie in a checkout.
_CHECKOUT = ('notebooks/', 'CITATION.cff', 'LICENSE', 'configs/', 'launch/', 'tests/', 'robustmed/')


def on_files(files, config):
  """Adds the pages and the README's pictures."""
  for name, page in PAGES.items():
    text = rewritten((ROOT / name).read_text('utf-8'))
    files.append(site_files.File.generated(config, page, content=text))
  for path in sorted((ROOT / '.readme').glob('*.png')):
    files.append(site_files.File.generated(config, f'readme/{path.name}', abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """A link from a page of docs/ to a file of the root leads to that file's page."""
  up = '../' * page.file.src_uri.count('/')
  names = '|'.join(map(re.escape, PAGES))
  return re.sub(
    rf'\]\((?:\.\./)+({names})(#[^)]*)?\)',
    lambda match: f']({up}{PAGES[match[1]]}{match[2] or ""})',
    markdown,
  )


def rewritten(text: str) -> str:
  """The Markdown of a file of the root, with links as they are seen from docs/."""

  def link(match):
    words, target = match[1], match[2]
    if re.match(r'\w+:|#', target):
      return match[0]
    path, mark, anchor = target.partition('#')
    if path.startswith('.readme/'):
      return f'{words}({path.removeprefix(".")})'
    if path.startswith(_CHECKOUT):
      return f'{words[1:-1]} (`{path}`)'
    path = PAGES.get(path, path.removeprefix('docs/'))
    if not path.endswith('.md'):
      path = f'{path.rstrip("/")}/README.md'
    return f'{words}({path}{mark}{anchor})'

  return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', link, text)
