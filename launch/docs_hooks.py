"""Pages of the documentation site that are files of the root, so that nothing is written twice.

README.md and others, and the notebooks: their text and code, without outputs, and the file itself.
"""

import json
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
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
# Files that are no pages: the site says where they lie in a checkout.
_CHECKOUT = ('CITATION.cff', 'LICENSE', 'configs/', 'launch/', 'tests/', 'robustmed/')


def on_files(files, config):
  """Adds the pages, the notebooks and the README's pictures."""
  for name, page in PAGES.items():
    text = rewritten((ROOT / name).read_text('utf-8'))
    files.append(site_files.File.generated(config, page, content=text))
  for path in NOTEBOOKS:
    name = f'notebooks/{path.stem}'
    text = notebook(path)
    files.append(site_files.File.generated(config, f'{name}.md', content=text))
    files.append(site_files.File.generated(config, f'{name}.ipynb', abs_src_path=str(path)))
  for path in sorted((ROOT / '.readme').glob('*.png')):
    files.append(site_files.File.generated(config, f'readme/{path.name}', abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """A link from a page of docs/ to a file of the root leads to that file's page."""
  up = '../' * page.file.src_uri.count('/')
  markdown = re.sub(r'\]\((?:\.\./)+(notebooks/\w+)\.ipynb\)', rf']({up}\1.md)', markdown)
  markdown = re.sub(r'\]\((?:\.\./)+\.(readme/[\w.]+)\)', rf']({up}\1)', markdown)
  names = '|'.join(map(re.escape, PAGES))
  return re.sub(
    rf'\]\((?:\.\./)+({names})(#[^)]*)?\)',
    lambda match: f']({up}{PAGES[match[1]]}{match[2] or ""})',
    markdown,
  )


def notebook(path: pathlib.Path) -> str:
  """The Markdown of a notebook: its text, its code, and where the file is."""
  cells = json.loads(path.read_text('utf-8'))['cells']
  parts = [
    ''.join(cell['source'])
    if cell['cell_type'] == 'markdown'
    else f'```python\n{"".join(cell["source"])}\n```'
    for cell in cells
  ]
  link = f'This page is a notebook: [{path.name}]({path.name}), or `notebooks/{path.name}`.'
  return '\n\n'.join([parts[0], link, *parts[1:]]) + '\n'


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
    if path.startswith('notebooks/'):
      path = path.replace('.ipynb', '.md')
    path = PAGES.get(path, path.removeprefix('docs/'))
    if not path.endswith('.md'):
      path = f'{path.rstrip("/")}/README.md'
    return f'{words}({path}{mark}{anchor})'

  return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', link, text)
