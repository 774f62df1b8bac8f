"""Checks a built site: no page loads anything from elsewhere, no link inside leads nowhere.

python launch/docs_check.py site
"""

import html.parser
import pathlib
import sys
import urllib.parse

# attribute by tag that a browser loads without being asked
_LOADED = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'link': 'href'}


class _Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.loaded, self.links, self.names = [], [], set()

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    self.names |= {found[key] for key in ('id', 'name') if found.get(key)}
    if (target := found.get(_LOADED.get(tag, ''))) and found.get('rel') != 'canonical':
      self.loaded.append(target)
    if tag == 'a' and found.get('href'):
      self.links.append(found['href'])


def problems(site: pathlib.Path) -> list[str]:
  """Returns a line for each request to elsewhere, each dead link and each dead anchor."""
  pages, root = {}, site.resolve()
  for path in sorted(site.rglob('*.html')):
    pages[path.resolve()] = page = _Page()
    page.feed(path.read_text('utf-8'))
  found = [] if pages else [f'{site}: no page']
  for path, page in pages.items():
    where = path.relative_to(root)
    for target in page.loaded:
      if urllib.parse.urlsplit(target).netloc:
        found.append(f'{where}: loads {target}')
    for target in page.links + page.loaded:
      parts = urllib.parse.urlsplit(target)
      if parts.scheme or parts.netloc or where.name == '404.html':
        continue
      file = path.parent / urllib.parse.unquote(parts.path) if parts.path else path
      file = (file / 'index.html' if file.is_dir() else file).resolve()
      if not (file.is_file() and file.is_relative_to(root)):  # what lies beside it is not served
        found.append(f'{where}: no {target}')
      elif parts.fragment and file in pages and parts.fragment not in pages[file].names:
        found.append(f'{where}: no anchor {target}')
  for path in sorted(site.rglob('*.css')):
    for word in ('url(http', 'url("http', "url('http", '@import "http', 'url(//'):
      if word in path.read_text('utf-8'):
        found.append(f'{path.relative_to(site)}: {word}')
  return found


if __name__ == '__main__':
  lines = problems(pathlib.Path(sys.argv[1]))
  print('\n'.join(lines) or 'no request to elsewhere, no dead link')
  sys.exit(bool(lines))
