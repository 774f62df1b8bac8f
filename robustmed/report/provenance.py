"""When and of what a report was made, and what it cannot say: plain text and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics
from robustmed.report import inputs as inputs_lib
from robustmed.report import spec as spec_lib
from robustmed.report import tables

FEW_GROUPS = 10
_SHORT = 12  # digits of a hash in running text


def sentence(held: inputs_lib.Inputs) -> str:
  """Returns one line: when it was evaluated, by which version, on which data."""
  made, data = held.evaluated, held.data
  parts = []
  if made.get('date'):
    parts.append(f'Evaluated on {str(made["date"])[:10]} (UTC)')
  version = made.get('version') or _at(held.env, 'versions', 'robustmed')
  if version:
    commit = f' at commit `{str(made["commit"])[:_SHORT]}`' if made.get('commit') else ''
    parts.append(f'robustmed {version}{commit}')
  if preset := _at(held.config, 'config', 'preset'):
    parts.append(f'preset `{preset}`')
  known = data.get('fingerprint')
  if isinstance(known, str):
    parts.append(f'data `{data.get("name")}`, fingerprint `{known[:_SHORT]}`')
  elif isinstance(known, dict) and 'data' in known:  # of an audit, which has that of networks too
    parts.append(f'fingerprint of the data `{str(known["data"])[:_SHORT]}`')
  return f'{"; ".join(parts)}.' if parts else ''


def table(held: inputs_lib.Inputs) -> pd.DataFrame:
  """Returns the same in full, with the digest of every trained network."""
  lines = [(name, held.evaluated[key]) for key, name in _EVALUATED.items() if key in held.evaluated]
  data = {'source' if name == 'name' else name: value for name, value in held.data.items()}
  lines += [(f'data: {name}', value) for name, value in tables.flatten(data)]
  lines += [(f'network {name}: sha256', digest) for name, digest in held.networks.items()]
  frame = pd.DataFrame(lines, columns=['what', 'value'])
  return frame[frame['value'].astype(str) != ''].astype(str)


def precision(config: Mapping[str, Any], env: Mapping[str, Any]) -> str:
  """Returns what networks computed in, '' where the configuration has no precision."""
  fields = [config.get('model'), *(one.get('model') for one in config.get('arms', {}).values())]
  found = {one['dtype'] for one in fields if one and 'dtype' in one}
  if not found:
    return ''
  said = 'Networks computed in float32'
  if found != {'float32'}:
    said = (
      f'Networks computed in {" and ".join(sorted(found))} in training, with float32 weights and '
      'images, and in float32 in evaluation'
    )
  rounded = {'tpu': 'bfloat16', 'gpu': 'TF32 where the GPU has it'}.get(env.get('platform'))
  inside = f'; there the factors of products in float32 are rounded to {rounded}' if rounded else ''
  return f'{said}{inside}.'


_EVALUATED = {
  'date': 'evaluated (UTC)',
  'commit': 'commit',
  'version': 'robustmed',
  'rows_sha256': 'results/rows.parquet: sha256',
}


def limits(held: inputs_lib.Inputs, *, spec: spec_lib.ReportSpec) -> str:
  """Returns what the numbers of this run cannot show, one item each."""
  rows = held.rows
  groups, seeds = rows['group'].nunique(), rows['seed'].nunique()
  lines = [
    'For research. A network that withstands these attacks is not thereby fit for patients, and '
    'this page is no test of a medical device.',
    'An attack that fails proves nothing: a stronger one, or one of another kind, may succeed. '
    'Numbers under attack are upper bounds of what the network withstands.',
  ]
  if str(held.data.get('name', '')).startswith('phantom'):
    lines.append(
      'The images are synthetic. They show that the method works and how arms compare on such '
      'images; they say nothing about accuracy on patients.'
    )
  if groups < FEW_GROUPS:
    lines.append(f'{_count(groups, "group")} (patients, volumes or scans): intervals are rough.')
  if seeds == 1 and held.training is not None and rows['arm'].nunique() > 1:
    lines.append(
      'One training per arm: another seed may change a difference between arms by more than its '
      'interval says.'
    )
  if unaimed := [panel.shown for panel in spec.panels if not panel.aimed]:
    lines.append(f'No attack aims at {", ".join(unaimed)}: that it stays high shows no robustness.')
  return '\n'.join(f'- {line}' for line in lines)


def by_group(
  held: inputs_lib.Inputs, *, panel: spec_lib.Panel, eps: float, arms: Sequence[spec_lib.Arm]
) -> pd.DataFrame:
  """Returns a line per group: images, and each arm's mean clean and attacked; the worst first."""
  rows, found = held.rows, {}
  cells = {'clean': (statistics.CLEAN, 0.0), f'at {eps:g}': (panel.attack, eps)}
  for arm in arms:
    for words, (attack, level) in cells.items():
      here = rows[
        (rows['arm'] == arm.name) & (rows['attack'] == attack) & np.isclose(rows['eps'], level)
      ]
      if len(here):
        found[f'{arm.shown} {words}'] = here.groupby('group')[panel.metric].mean()
  if not found:
    return pd.DataFrame()
  frame = pd.DataFrame(found)
  attacked = [name for name in frame if name.endswith(f' at {eps:g}')] or [*frame]
  order = frame[attacked].mean(axis=1).sort_values(ascending=panel.higher_is_better, kind='stable')
  images = rows.groupby('group')['index'].nunique().rename('images')
  frame = frame.loc[order.index]
  frame.insert(0, 'images', images.reindex(frame.index))
  return frame.rename_axis('group').reset_index()


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'


def _at(tree: Any, *names: str) -> Any:
  for name in names:
    tree = tree.get(name) if isinstance(tree, dict) else None
  return tree
