"""Renders a document as Markdown and as one self-contained HTML page.

A document is a list of blocks. Running text is simple Markdown (`code`, **bold**, blank lines,
`- ` items, `### ` headings); everything that comes from data is escaped in both outputs.
"""

import base64
import html
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from robustmed.process import files

STATES = {
  'holds': 'good', 'pass': 'good', 'fails': 'bad', 'fail': 'bad',
  'undecided': 'open', 'warn': 'open', 'measured': 'none',
  'not run': 'none', 'skipped': 'none',
}  # fmt: skip

_NUMBER = re.compile(r'(< )?[-−]?\d[\d.]*(e[-+]?\d+)?|–')


class Heading(NamedTuple):
  level: int
  text: str


class Text(NamedTuple):
  markdown: str


class Callout(NamedTuple):
  state: str  # good, bad, open or none
  markdown: str


class Table(NamedTuple):
  caption: str
  frame: pd.DataFrame  # cells are printed with str()


class Figure(NamedTuple):
  path: pathlib.Path
  caption: str


class Row(NamedTuple):
  """Figures side by side where there is room."""

  figures: Sequence[Figure]


class Folded(NamedTuple):
  """Blocks below a title that opens them; a printed page shows them in full."""

  title: str
  blocks: Sequence


def to_markdown(title: str, blocks: Sequence, *, folder: pathlib.Path) -> str:
  """The document with links to the pictures, relative to `folder`."""
  parts = [f'# {_plain(title)}', *(_markdown(block, folder) for block in blocks)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def to_html(title: str, blocks: Sequence) -> str:
  """The document as one page: pictures and style inside, no script, nothing fetched.

  The headings of level 2 are listed under the title and lead to their sections.
  """
  body = '\n'.join(_html(block) for block in blocks)
  found = dict.fromkeys(b.text for b in blocks if isinstance(b, Heading) and b.level == 2)
  links = ''.join(f'<a href="#{_anchor(text)}">{html.escape(text)}</a>' for text in found)
  nav = f'<nav>{links}</nav>' if len(found) > 2 else ''
  return _PAGE.format(title=html.escape(title), style=_STYLE, nav=nav, body=body)


def _anchor(text: str) -> str:
  return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-') or 'section'


def _markdown(block, folder: pathlib.Path) -> str:
  if isinstance(block, Heading):
    return f'{"#" * block.level} {_plain(block.text)}'
  if isinstance(block, Text):
    return block.markdown.strip().replace('<', '&lt;')
  if isinstance(block, Callout):
    lines = block.markdown.strip().replace('<', '&lt;').splitlines()
    return '\n'.join(f'> {line}'.rstrip() for line in lines)
  if isinstance(block, Table):
    return f'**{_plain(block.caption)}**\n\n{_pipes(block.frame)}'
  if isinstance(block, Figure):
    link = pathlib.Path(os.path.relpath(block.path, folder)).as_posix().replace(' ', '%20')
    return f'![{_plain(block.caption)}]({link})'
  if isinstance(block, Row):
    return '\n\n'.join(_markdown(figure, folder) for figure in block.figures)
  if isinstance(block, Folded):
    inner = [Heading(3, block.title), *block.blocks]
    return '\n\n'.join(_markdown(part, folder) for part in inner)
  raise TypeError(f'not a block: {block!r}')


def _plain(text: str) -> str:
  """Escapes data for Markdown, so that nothing in it is markup."""
  text = ' '.join(str(text).split())
  text = text.replace('&', '&amp;').replace('<', '&lt;')
  text = re.sub(r'([|*`\[\]\\])', r'\\\1', text)
  return re.sub(r'(?<!\w)_|_(?!\w)', r'\\_', text)


def _pipes(frame: pd.DataFrame) -> str:
  head = [_plain(name) for name in frame.columns]
  lines = [head, ['---'] * len(head)]
  lines += [[_plain(value) for value in row] for row in frame.itertuples(index=False)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _html(block) -> str:
  if isinstance(block, Heading):
    named = f' id="{_anchor(block.text)}"' if block.level == 2 else ''
    return f'<h{block.level}{named}>{html.escape(block.text)}</h{block.level}>'
  if isinstance(block, Text):
    return _prose(block.markdown)
  if isinstance(block, Callout):
    return f'<div class="callout {block.state}">{_prose(block.markdown)}</div>'
  if isinstance(block, Table):
    return _table(block)
  if isinstance(block, Figure):
    data = base64.b64encode(files.path_of(block.path).read_bytes()).decode()
    kind = 'jpeg' if str(block.path).lower().endswith(('.jpg', '.jpeg')) else 'png'
    caption = html.escape(block.caption)
    return (
      f'<figure><img alt="{caption}" src="data:image/{kind};base64,{data}">'
      f'<figcaption>{caption}</figcaption></figure>'
    )
  if isinstance(block, Row):
    return f'<div class="row">{"".join(_html(figure) for figure in block.figures)}</div>'
  if isinstance(block, Folded):
    inner = ''.join(_html(part) for part in block.blocks)
    return f'<details><summary>{html.escape(block.title)}</summary>{inner}</details>'
  raise TypeError(f'not a block: {block!r}')


def _table(block: Table) -> str:
  head = ''.join(f'<th>{html.escape(str(name))}</th>' for name in block.frame.columns)
  lines = []
  for row in block.frame.itertuples(index=False):
    cells = [_table_cell(name, value) for name, value in zip(block.frame.columns, row)]
    lines.append(f'<tr>{"".join(cells)}</tr>')
  # outside the table, so that it does not scroll away with it
  caption = f'<p class="caption">{html.escape(block.caption)}</p>'
  inner = f'<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
  return f'{caption}<div class="scroll" tabindex="0"><table>{inner}</table></div>'


def _table_cell(name, value) -> str:
  text = html.escape(str(value))
  if name in ('verdict', 'status') and value in STATES:
    return f'<td><span class="badge {STATES[value]}">{text}</span></td>'
  interval = re.fullmatch(r'(\S+) (\[[^\]]*\])', text)
  if interval:
    return f'<td class="num">{interval[1]}<br><small>{interval[2]}</small></td>'
  if len(text) > 40:
    return f'<td class="long">{text}</td>'
  if len(text) > 12 and not _NUMBER.fullmatch(str(value)):
    return f'<td class="middle">{text}</td>'
  return f'<td class="num">{text}</td>' if _NUMBER.fullmatch(str(value)) else f'<td>{text}</td>'


def _prose(markdown: str) -> str:
  parts = []
  for chunk in re.split(r'\n\s*\n', markdown.strip()):
    lines = chunk.splitlines()
    items = [line.strip()[2:] for line in lines if line.strip().startswith(('- ', '* '))]
    heading = re.match(r'(#{2,4}) (.+)$', lines[0]) if lines else None
    if heading:
      size = len(heading[1])
      parts.append(f'<h{size}>{_inline(heading[2])}</h{size}>')
      parts.append(_prose('\n'.join(lines[1:])) if len(lines) > 1 else '')
    elif lines and lines[0].strip().startswith(('- ', '* ')) and len(items) == len(lines):
      parts.append(f'<ul>{"".join(f"<li>{_inline(item)}</li>" for item in items)}</ul>')
    elif lines:
      parts.append(f'<p>{_inline(" ".join(lines))}</p>')
  return ''.join(parts)


def _inline(text: str) -> str:
  text = html.escape(text)
  text = re.sub(r'`([^`]+)`', r'<code>\1</code>', text)
  return re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{nav}
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1c1f23; --soft: #59616b; --page: #ffffff;
  --panel: #f4f6f8; --rule: #d5dae0; --good: #00694a; --good-bg: #def3ea; --bad: #9c2a00;
  --bad-bg: #fde6da; --open: #6b5200; --open-bg: #fdf3cf; --none: #59616b; --none-bg: #e9ecef; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #a5adb6; --page: #15181c;
  --panel: #20252b; --rule: #3a424b; --good: #7fdcb6; --good-bg: #10362a; --bad: #ffb491;
  --bad-bg: #47200f; --open: #f0d77a; --open-bg: #3a3110; --none: #b4bcc5; --none-bg: #2c333a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.06rem; margin: 1.6rem 0 .6rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; margin: 0 0 1rem; }
a { color: inherit; } h2 { scroll-margin-top: 1rem; }
p, ul { max-width: 46rem; }
code { font-size: .9em; background: var(--panel); padding: .1em .3em; border-radius: 3px; }
.callout { border-left: 5px solid var(--rule); background: var(--panel); padding: .2rem 1rem;
  margin: 1rem 0; border-radius: 0 6px 6px 0; }
.callout.good { border-color: var(--good); } .callout.bad { border-color: var(--bad);
  background: var(--bad-bg); } .callout.open { border-color: var(--open);
  background: var(--open-bg); }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .88rem; min-width: 24rem; }
.caption { font-weight: 600; margin: 1.4rem 0 .3rem; max-width: none; break-after: avoid; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem;
  border-bottom: 1px solid var(--rule); }
th { background: var(--panel); white-space: nowrap; }
td.num { font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { color: var(--soft); }
td:first-child:not(.long) { white-space: nowrap; }
.callout p, .callout ul { max-width: none; }
td.middle { min-width: 8rem; }
td.long { min-width: 12rem; max-width: 28rem; }
.badge { padding: .1em .55em; border-radius: 1em; font-weight: 600; white-space: nowrap;
  color: var(--none); background: var(--none-bg); }
.badge.good { color: var(--good); background: var(--good-bg); }
.badge.bad { color: var(--bad); background: var(--bad-bg); }
.badge.open { color: var(--open); background: var(--open-bg); }
.row { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: .6rem 0; max-width: 52rem; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--rule);
  border-radius: 6px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print { :root { color-scheme: light; --text: #000000; --soft: #444444; --page: #ffffff;
    --panel: #f4f6f8; --rule: #c5cad0; --good: #00694a; --good-bg: #ffffff; --bad: #9c2a00;
    --bad-bg: #ffffff; --open: #6b5200; --open-bg: #ffffff; --none: #59616b; --none-bg: #ffffff; }
  body { font-size: 10pt; } nav { display: none; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; min-width: 0; width: 100%; }
  td.num { white-space: normal; } td.middle { min-width: 8rem; }
td.long { min-width: 0; } th, td { padding: .2rem .3rem; }
  tr, figure, .callout { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
