"""Writes the report of a finished run: Markdown, HTML, CSV tables and PNG figures, without JAX."""

import pathlib
import re
from typing import NamedTuple

import pandas as pd

from robustmed.evaluation import claims, folds, trials
from robustmed.process import files
from robustmed.report import content, figures, pages, provenance, tables
from robustmed.report import inputs as inputs_lib
from robustmed.report.spec import Arm, Panel, ReportSpec, Section

__all__ = ['Arm', 'Panel', 'Report', 'ReportSpec', 'Section', 'write']

MAX_EXAMPLE_FIGURES = 6
MAX_GROUPS = 100


class Report(NamedTuple):
  """Paths of the pages, and text for a terminal."""

  markdown: pathlib.Path
  html: pathlib.Path
  verdict: str
  table: str  # the first panel, as plain text
  claims: pd.DataFrame


class _Build(NamedTuple):
  """The inputs of every part of the page."""

  folder: pathlib.Path
  spec: ReportSpec
  held: inputs_lib.Inputs
  arms: tuple[Arm, ...]
  decided: pd.DataFrame
  units: str


def write(workdir, *, spec: ReportSpec, title: str | None = None) -> Report:
  """Reads `results/`, `logs/` and the two JSON files of a workdir and writes its `report/` folder.

  The same workdir gives the same bytes. Every file appears whole or not at all.

  Raises:
    UserError: there are no results, a file is unreadable, or the folder cannot be written.
  """
  workdir = files.path_of(workdir)
  held = inputs_lib.read(workdir)
  build = _Build(
    folder=workdir / 'report',
    spec=spec,
    held=held,
    arms=tables.arms(held.rows, spec.arms),
    decided=claims.decide(spec.claims, held.rows),
    units=f'({spec.level_units})' if spec.level_units else '',
  )
  verdict = content.verdict(held, spec=spec, arms=build.arms, decided=build.decided)
  blocks = [
    pages.Callout(content.state(held, build.decided), f'**In short.** {verdict}'),
    pages.Text(provenance.sentence(held)),
    *(pages.Text(line) for line in spec.description),
    pages.Heading(2, 'How to read this page'),
    pages.Text(content.how_to_read(held, spec=spec)),
    pages.Heading(2, 'What it cannot show'),
    pages.Text(provenance.limits(held, spec=spec)),
    *_results(build),
    *_worst(build),
    *_stored(build),
    *_examples(build),
    *_claims(build),
    *_folds(build),
    *_checks(build),
    *_sections(build),
    *_notes(build),
    *_training(build),
    *_run(build),
  ]
  title = title or spec.title
  markdown = pages.to_markdown(title, blocks, folder=build.folder)
  html = pages.to_html(title, blocks)
  return Report(
    markdown=_write(build.folder / 'report.md', markdown),
    html=_write(build.folder / 'report.html', html),
    verdict=verdict.replace('**', '').replace('`', ''),
    table=_text_table(build),
    claims=build.decided,
  )


def _results(build: _Build) -> list:
  spec, held = build.spec, build.held
  _csv(build, 'summary', held.summary)
  blocks = [pages.Heading(2, 'Results')]
  failed, notes = content.failed_arms(held.checks), content.check_notes(held.checks, status='fail')
  if failed:
    blocks.append(pages.Callout('bad', f'**Failed checks: read these first.**\n\n{notes}'))
  drawn, printed = [], []
  for panel in spec.panels:
    name = f'{panel.metric}_{panel.attack}'
    known = held.summary['attack'].eq(panel.attack) & held.summary['metric'].eq(panel.metric)
    if not known.any():
      printed.append(pages.Text(f'`{panel.metric}` under `{panel.attack}`: not run.'))
      continue
    style = {'arms': build.arms, 'paper': spec.paper}
    units = _units(build, panel.attack)
    png = figures.curves(held.summary, panel=panel, units=units, **style)
    aim = '' if panel.aimed else content.NOT_AIMED
    drawn.append(_figure(build, f'curve_{name}', png, f'{panel.shown} under {panel.attack}{aim}'))
    cells = {'metric': panel.metric, 'attack': panel.attack, 'paper': spec.paper}
    cells['arms'] = [arm.name for arm in build.arms]
    _csv(build, name, tables.pivot(held.summary, **cells))
    labels = {arm.name: arm.shown for arm in build.arms}
    shown = tables.pivot(held.summary, show=True, labels=labels, failed=failed, **cells)
    better = 'higher is better' if panel.higher_is_better else 'lower is better'
    caption = f'{panel.shown} under {panel.attack} by level {units} – {better}{aim}'
    printed.append(pages.Table(caption, shown))
  more = [*_other_attacks(build), *_groups(build)]
  return [*blocks, *([pages.Row(drawn)] if drawn else []), *printed, *more]


def _other_attacks(build: _Build) -> list:
  frames = content.other_attacks(build.held, spec=build.spec, arms=build.arms)
  blocks = [
    pages.Table(
      f'{build.spec.panels[0].shown} under {attack} by level {_units(build, attack)}', frame
    )
    for attack, frame in frames.items()
  ]
  title = f'The other attacks of this run: {", ".join(frames)}'
  return [pages.Folded(title, blocks)] if blocks else []


def _groups(build: _Build) -> list:
  spec, held = build.spec, build.held
  if not spec.panels:
    return []
  panel = spec.panels[0]
  eps = content.headline(held.summary, panel=panel, arms=build.arms, wanted=spec.headline_eps)
  frame = provenance.by_group(held, panel=panel, eps=eps or 0.0, arms=build.arms)
  if frame.empty:
    return []
  frame['group'] = [spec.group_names.get(group, group) for group in frame['group']]
  _csv(build, 'groups', frame)
  title = 'Every patient, volume or scan, the worst first'
  caption = f'{panel.shown} under {panel.attack} {_units(build, panel.attack)}'.strip()
  shown = frame.head(MAX_GROUPS).map(_printed)
  more = f'{MAX_GROUPS} of {len(frame)}; `tables/groups.csv` has all.'
  blocks = [pages.Table(caption, shown)] + [pages.Text(more)] * (len(frame) > MAX_GROUPS)
  return [pages.Folded(title, blocks)]


def _worst(build: _Build) -> list:
  held = build.held
  if held.worst is None or held.worst_members is None or not build.spec.panels:
    return []
  names = {arm.name: arm.shown for arm in build.arms}
  attack = build.spec.panels[0].attack
  frame = tables.worst(held.worst, held.worst_members, summary=held.summary, attack=attack)
  _csv(build, 'worst', frame)
  shown = frame[frame['arm'].isin(names)]
  shown = shown.assign(arm=shown['arm'].map(names)).map(_printed)
  metric = held.worst['metric'].iloc[0]
  return [
    pages.Heading(2, 'Worst of all attacks'),
    pages.Text(
      f'For each example the attack with the worst {metric} counts, of all attacks of this run in '
      'the same ball, and what a lower level or the untouched image gives counts too. The last '
      'column says for which share of the examples each attack was the worst; slice by slice: each '
      'slice of a volume with the attack that is worst there.'
    ),
    pages.Table(f'{metric} {build.units}'.strip(), shown),
  ]


def _stored(build: _Build) -> list:
  held = build.held
  if held.stored is None:
    return []
  names = {arm.name: arm.shown for arm in build.arms}
  mine = held.stored[held.stored['arm'].isin(names)]
  blocks = []
  for chosen, here in mine.groupby(mine['inside'].notna(), sort=False):
    blocks.append(pages.Text(content.stored(here, chosen=bool(chosen))))
    for metric, lines in here.groupby('metric', sort=False):
      shown = tables.stored(lines)
      shown = shown.assign(arm=shown['arm'].map(names)).map(_printed)
      caption = f'Worst images, {content.measured(metric)} as attacked and as stored'
      blocks.append(pages.Table(caption, shown))
  return [pages.Heading(3, 'Images as their files hold them'), *blocks] if blocks else []


def _examples(build: _Build) -> list:
  stored = build.held.examples
  if stored is None:
    return []
  blocks = []
  cells = figures.example_cells(stored)
  for attack, eps in cells[:MAX_EXAMPLE_FIGURES]:
    here = {'attack': attack, 'eps': eps, 'arms': build.arms}
    captions = content.example_captions(build.held, spec=build.spec, **here)
    how = {'units': _units(build, attack), 'classes': build.spec.classes}
    png = figures.examples(stored, captions=captions, **how, **here)
    if png is not None:
      caption = (
        f'One example under {attack} at {eps:g}, the first of those kept, whatever came of it; '
        'the perturbation has its own scale.'
      )
      blocks.append(_figure(build, f'examples_{attack}_{eps:g}', png, caption))
  if blocks and len(cells) > MAX_EXAMPLE_FIGURES:
    left = len(cells) - MAX_EXAMPLE_FIGURES
    blocks.append(pages.Text(f'{left} more stored attack levels are not drawn.'))
  return [pages.Heading(2, 'Examples'), *blocks] if blocks else []


def _claims(build: _Build) -> list:
  _csv(build, 'claims', build.decided)
  if build.decided.empty:
    return []
  shown = tables.shown_claims(build.decided)
  return [
    pages.Heading(2, 'Claims'),
    pages.Table('Each claim, its test and its verdict', shown),
  ]


def _folds(build: _Build) -> list:
  spec, rows = build.spec, build.held.rows
  if 'fold' not in rows.columns or not spec.panels:
    return []
  panel, arms = spec.panels[0], build.arms
  eps = content.headline(build.held.summary, panel=panel, arms=arms, wanted=spec.headline_eps)
  frame = folds.table(
    rows,
    arms=[arm.name for arm in arms],
    metric=panel.metric,
    attack=panel.attack,
    levels=[0.0] if eps is None else [0.0, eps],
  )
  _csv(build, 'folds', frame)
  shown = frame.assign(arm=frame['arm'].map({arm.name: arm.shown for arm in arms}))
  shown['p'] = [tables.probability(p) for p in frame['p']]
  caption = f'{panel.shown} under {panel.attack}: mean over the groups of each fold'
  return [
    pages.Heading(2, 'Folds'),
    pages.Text(content.over_folds(rows)),
    pages.Table(caption, shown.map(_printed)),
  ]


def _checks(build: _Build) -> list:
  frame = tables.check_frame(build.held.checks)
  _csv(build, 'checks', frame)
  blocks = [pages.Heading(2, 'Checks')]
  if frame.empty:
    return [*blocks, pages.Callout('open', 'No checks were stored with the results.')]
  warned = content.check_notes(build.held.checks, status='warn')
  if warned:
    blocks.append(pages.Callout('open', f'**Warnings**\n\n{warned}'))
  order = frame[['status', 'name', 'arm', 'detail']]
  return [*blocks, pages.Table('Signs of broken or fooled attacks', order)]


def _sections(build: _Build) -> list:
  blocks = []
  for section in map(Section._make, build.spec.sections):
    blocks.append(pages.Heading(2, section.heading))
    if section.markdown:
      blocks.append(pages.Text(section.markdown))
    paths = [build.folder.parent / path for path in section.figures]
    blocks += [pages.Figure(path, path.stem.replace('_', ' ')) for path in paths]
    for caption, frame in section.tables:
      _csv(build, f'{section.heading}_{caption}', frame)
      blocks.append(pages.Table(caption, frame.map(_printed)))
  return blocks


def _notes(build: _Build) -> list:
  if not build.spec.notes:
    return []
  notes = '\n'.join(f'- {note}' for note in build.spec.notes)
  return [pages.Heading(2, 'Notes'), pages.Text(notes)]


def _training(build: _Build) -> list:
  log = build.held.training
  png = None if log is None else figures.training(log, arms=build.arms)
  if png is None:
    return []
  caption = f'Training loss of every {" and ".join(["arm", *trials.names(log)])}.'
  return [pages.Heading(2, 'Training'), _figure(build, 'training', png, caption)]


def _run(build: _Build) -> list:
  blocks = [pages.Heading(2, 'How this was made')]
  made = provenance.table(build.held)
  if len(made):
    blocks.append(pages.Table('Date, data and networks', made))
  named = {'Configuration': build.held.config, 'Environment': build.held.env}
  for name, tree in named.items():
    if tree:
      frame = pd.DataFrame(tables.flatten(tree), columns=['field', 'value'])
      blocks.append(pages.Folded(name, [pages.Table(name, frame)]))
    else:
      blocks.append(pages.Text(f'{name}: not stored in this workdir.'))
  return blocks


def _text_table(build: _Build) -> str:
  """The first panel for a terminal, units and metric in its first line."""
  if not build.spec.panels:
    return ''
  panel = build.spec.panels[0]
  cells = {'metric': panel.metric, 'attack': panel.attack}
  frame = tables.pivot(build.held.summary, arms=[arm.name for arm in build.arms], **cells)
  body = frame.to_string(index=False, float_format=lambda value: f'{value:.3f}')
  return f'{panel.metric} under {panel.attack} by level {_units(build, panel.attack)}\n{body}'


def _units(build: _Build, attack: str) -> str:
  """The unit of the levels of an attack in brackets, that of the page where it has none."""
  own = build.spec.attack_units.get(attack, '')
  return f'({own})' if own else build.units


def _printed(value) -> str:
  return tables.number(value) if isinstance(value, float) else str(value)


def _csv(build: _Build, name: str, frame: pd.DataFrame):
  _write(build.folder / 'tables' / f'{_file(name)}.csv', frame.to_csv(index=False))


def _figure(build: _Build, name: str, png: bytes, caption: str) -> pages.Figure:
  return pages.Figure(_write(build.folder / 'figures' / f'{_file(name)}.png', png), caption)


def _write(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
  with files.replacing(path) as temporary:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  return path


def _file(name: str) -> str:
  return re.sub(r'[^\w.+-]+', '_', name)
