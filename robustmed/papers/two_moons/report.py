"""What the report of the two moons is made of: the six panels, their numbers, the claims."""

import pathlib

import jax
import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.evaluation import claims, statistics
from robustmed.papers.two_moons import arms
from robustmed.papers.two_moons import figures as moons_figures
from robustmed.report import figures, inputs, spec
from robustmed.runs import artifacts

PICTURES, PLACE = 'two_moons.npz', 'Liu et al. 2020, Fig. 7'
MISSED = 0.1  # p(positive) on the tail
MISSED_REASON = 'ours, as if one point in ten were missed; the paper draws colours'
SURE, SIZEABLE = 0.9, 0.1  # p(positive); share of the points far away
SIZEABLE_REASON = f'ours, a tenth of them with p above {SURE:g}; the paper draws colours'
WORDS = {
  'codes': 'random codes',
  'searched_codes': 'searched codes',
  'uniform': 'uniform negatives',
  'searched_uniform': 'searched negatives',
}
COLUMNS = {
  'accuracy': 'accuracy on held-out points',
  'tail': 'p(positive) on the tail',
  'far': 'p(positive) far away',
}


def keep(config, context, models, rows) -> None:
  """results/two_moons.npz: of every arm's first seed the map of p(positive), and its points, both
  of replicate 0."""
  del rows
  source = context.source()
  artifacts.add_pictures(
    context.results / PICTURES,
    artifacts.first_trial(models),
    lambda model: _panel(config, context, source, model),
  )


def _panel(config, context, source, model):
  if model.arm not in config.arms:
    raise errors.UserError(f'{model.arm!r} is no panel of two moons')
  side, (columns, rows) = config.report.grid, config.data.box
  centres = [low + (np.arange(side) + 0.5) * (high - low) / side for low, high in (columns, rows)]
  x, y = np.meshgrid(*centres)
  image = np.stack([x.ravel(), y.ravel(), np.zeros(side * side)], axis=-1).astype(np.float32)
  logit = context.exp.task.predict(model.load(), image)['logit']
  folder = context.results.parent / 'checkpoints' / model.arm / f'seed{model.seed}'
  found = arms.points_of(config, source, model.arm, folder)
  own = found['image'][:, 2] == 0
  # One length for all arms, so that they lie in one array.
  most = max(
    _count_added(config, arms.added_names(options.added)) for options in config.arms.values()
  )
  extra = 2 * config.data.points + most - own.sum()
  pad = lambda array, value: np.concatenate([array, np.full((extra, *array.shape[1:]), value)])
  return {
    'arm': [model.arm],
    'probability': np.asarray(jax.nn.sigmoid(logit)).reshape(1, side, side),
    'xy': pad(found['image'][own, :2], np.nan)[None],
    'label': pad(found['label'][own], 0)[None],
    'added': pad(found['added'][own], False)[None],
  }


def _count_added(config, kinds) -> int:
  return sum(config.search[arms.ADDITIONS[name].count] for name in kinds)


def spec_of(config, task, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figure is drawn into report/figures."""
  held = inputs.read(folder)
  labels = {name: _label(config, name) for name in config.arms}
  return spec.ReportSpec(
    title='Two moons: what searched points add',
    description=(
      'A ReLU network tells two moons apart. The positive one is long-tailed: '
      f'{config.data.kept} of {config.data.points} points are kept, most of them from the '
      'beginning of its arc. Missing positives are replaced by samples of a small auto-encoder '
      'fitted to the kept ones: from random codes, or from codes searched by PGD for points that '
      'the network of panel b does not take for positives. Negatives are added to the positives of '
      'panel c, at random, or moved by PGD to where the network of panel b is sure of a positive.',
      f'Points, networks and searches were drawn {config.data.replicates} times, and these '
      'replicates are the groups of all intervals and tests. What is far away counts as negative.',
    ),
    panels=(
      spec.Panel('p_true', 'pgd', True, 'probability of the true class', (0.0, 1.0)),
      spec.Panel('tail', 'pgd', True, 'p(positive) on the tail', (0.0, 1.0)),
      spec.Panel('far', 'pgd', False, 'p(positive) far away', (0.0, 1.0)),
    ),
    level_units=task.units,
    arms=tuple(spec.Arm(name, label) for name, label in labels.items()),
    claims=make_claims(config, held.rows),
    notes=(
      'The paper gives no settings for its figure; all numbers here are ours. Its panels are read '
      'as adding up: the samples of c fill the hole, then the negatives of d bound it, so d keeps '
      'the positives of c; e has searched samples in their place. Of f the text says only that its '
      'searched negatives come "in addition to the uniform spots": here they take the place of the '
      'uniform ones beside the positives of c, so that d and f differ in their negatives alone.',
      f'Search: Linf, eps {config.search.codes_eps:g} of the code and '
      f'{config.search.uniform_eps:g} of the point; {config.search.codes} codes and '
      f'{config.search.uniform} negatives are added to every replicate. '
      'Codes and negatives begin at the same random ones as those that are not searched.',
    ),
    sections=(_figure(config, folder, labels, held),),
  )


def _label(config, arm: str) -> str:
  options = config.arms[arm]
  real = 'all positives' if options.real == 'full' else f'{config.data.kept} positives'
  shown = ' + '.join((real, *(WORDS[name] for name in arms.added_names(options.added))))
  return f'{arm[0]}: {shown}' if arm[1:2] == '_' else f'{arm}: {shown}'


def _figure(config, folder, labels, held) -> spec.Section:
  pictures, stored = [], inputs.arrays(folder / 'results' / PICTURES)
  if stored is not None:
    png = moons_figures.panels(stored, arms=tuple(labels.items()), box=config.data.box)
    pictures = figures.save(folder, 'fig7_two_moons', png)
  return spec.Section(
    'The six panels (Fig. 7)',
    'Colour and line are p(positive) of replicate 0; the numbers are means over all replicates ± '
    'their standard deviation, every replicate counting alike (in the results above every point '
    'does).',
    pictures,
    [('Panels', table(held.rows, labels))],
  )


def table(rows: pd.DataFrame, labels) -> pd.DataFrame:
  """One line per panel: mean ± standard deviation over the replicates on clean points."""
  lines = []
  for arm, label in labels.items():
    cell = rows[(rows['arm'] == arm) & (rows['eps'] == 0)]
    if cell.empty:
      continue
    line = {'panel': label}
    for metric, title in COLUMNS.items():
      by_group = cell.groupby('group')[metric].mean().dropna()
      line[title] = (
        f'{by_group.mean():.3f} ± {by_group.std(ddof=1) if len(by_group) > 1 else 0:.3f}'
      )
    lines.append(line)
  return pd.DataFrame(lines)


def make_claims(config, rows: pd.DataFrame | None = None) -> tuple[claims.Claim, ...]:
  """What the figure shows, each decided over the replicates; `rows` are the results, if any."""
  arm = {
    (options.real, *arms.added_names(options.added)): name for name, options in config.arms.items()
  }
  find = lambda real, *added: arm.get(
    (real, *added), f'({real}, {" and ".join(added) or "nothing"} added)'
  )
  full, tail = find('full'), find('tail')
  codes, searched = find('tail', 'codes'), find('tail', 'searched_codes')
  uniform, moved = (find('tail', 'codes', name) for name in ('uniform', 'searched_uniform'))
  clean = {'attack': 'none', 'eps': 0.0}
  greater = lambda first, second, metric, **margin: claims.greater(
    first, second, metric=metric, **margin, **clean
  )
  rows = pd.DataFrame(columns=[*statistics.KEYS, 'group', 'far']) if rows is None else rows
  far = rows['far'].to_numpy(float)
  sure = rows.assign(far_sure=np.where(np.isnan(far), np.nan, far > SURE))
  sizeable = claims.above(
    codes, metric='far_sure', threshold=SIZEABLE, reason=SIZEABLE_REASON, **clean
  )
  made = (
    (
      "Without the tail's positives the network misses them",
      greater(full, tail, 'tail', margin=MISSED, reason=MISSED_REASON),
    ),
    ('Random codes bring part of the tail back', greater(codes, tail, 'tail')),
    (
      'With random codes a sizeable part of what is far away is a sure positive',
      claims.Elsewhere(sizeable, sure),
    ),
    ('Searched codes bring more of it back', greater(searched, codes, 'tail')),
    ('Uniform negatives lower the confidence far away', greater(codes, uniform, 'far')),
    ('Searched negatives lower it more', greater(uniform, moved, 'far')),
  )
  return tuple(claims.Claim(statement, PLACE, test) for statement, test in made)
