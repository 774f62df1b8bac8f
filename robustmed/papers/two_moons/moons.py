"""Two moons, one of them long-tailed, and points far from both: the toy of Liu et al. 2020, Fig. 7.

The whole is drawn `replicates` times, each with points of its own. A point is (x, y, replicate), so
that one batch, and one network with members, holds all of them; `group` is the replicate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.data import store

FIELDS = {
  'replicates': 12,
  'points': 500,  # of each moon to train on
  'noise': 0.15,  # standard deviation about the arcs
  'kept': 20,  # positives that the long-tailed training set keeps
  'decay': 4.0,  # with a probability of exp(-decay t), t in [0, 1] along the arc
  'test_points': 60,  # of each moon
  'far_points': 60,
  'far': 1.0,  # distance from both arcs
  'box': ((-3.0, 4.0), (-3.0, 3.0)),  # of uniform points: x, y
}
NEGATIVE, DROPPED, KEPT, TEST, TAIL, FAR = range(6)  # 'kind'; the first three are to train on
TAIL_FROM = 0.5  # t
_ARC = np.linspace(0, np.pi, 200)


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Number of points per split."""
  one = {'train': 2 * fields['points'], 'test': 2 * fields['test_points'] + fields['far_points']}
  return {name: fields['replicates'] * count for name, count in one.items()}


def check(fields: Mapping[str, Any]) -> None:
  for name in ('replicates', 'points', 'kept', 'test_points', 'far_points'):
    if fields[name] < 1:
      raise errors.UserError(f'data field {name} must be at least 1, not {fields[name]}')
  if fields['kept'] > fields['points']:
    raise errors.UserError(
      f'data field kept={fields["kept"]} is above the points={fields["points"]} there are'
    )
  if len(fields['box']) != 2 or any(not low < high for low, high in fields['box']):
    raise errors.UserError(f'data field box must be (low, high) of x and y, not {fields["box"]}')


def splits(fields: Mapping[str, Any], *, seed: int) -> dict[str, store.Split]:
  """'train' and 'test': image [3], label [1], kind; indices are unique over both.

  Points far from the moons have the label 0: they are no positives.
  """
  check(fields)
  made = {'train': [], 'test': []}
  for replicate in range(fields['replicates']):
    rng = np.random.default_rng([seed % 2**32, replicate, 0x2300])
    made['train'].append((replicate, *_training(rng, fields)))
    made['test'].append((replicate, *_testing(rng, fields)))
  result, first = {}, 0
  for name, parts in made.items():
    columns = [
      (np.full(len(kind), replicate), xy, label, kind) for replicate, xy, label, kind in parts
    ]
    replicate, xy, label, kind = (np.concatenate(column) for column in zip(*columns))
    result[name] = split(xy, replicate=replicate, label=label, kind=kind, first=first)
    first += len(kind)
  return result


def split(xy, *, replicate, label, kind, first: int) -> store.Split:
  """Points [n, 2] as a split with the indices first, first + 1, ..."""
  image = np.concatenate([xy, np.asarray(replicate)[:, None]], axis=1).astype(np.float32)
  label, kind = np.broadcast_to(label, len(image)), np.broadcast_to(kind, len(image))
  examples = [
    {
      'image': image[i],
      'label': np.array([label[i]], np.float32),
      'kind': np.int32(kind[i]),
      'index': np.int32(first + i),
      'group': np.int32(replicate[i]),
      'name': str(first + i),
    }
    for i in range(len(image))
  ]
  return store.Split(examples, [int(group) for group in replicate])


def uniform(rng: np.random.Generator, count: int, box) -> np.ndarray:
  """[count, 2] points of the box."""
  low, high = np.array(box).T
  return rng.uniform(low, high, (count, 2))


def distance(xy: np.ndarray) -> np.ndarray:
  """Distance [n] to the nearer of the two arcs."""
  arcs = np.concatenate([_arc(_ARC, label) for label in (0, 1)])
  return np.sqrt(np.square(xy[:, None] - arcs[None]).sum(-1)).min(1)


def _arc(angle, label):
  upper = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  return upper if label == 0 else np.array([[1.0, 0.5]]) - upper


def _moon(rng, count, label, noise):
  t = rng.uniform(0, 1, count)
  return _arc(np.pi * t, label) + noise * rng.normal(size=(count, 2)), t


def _training(rng, fields):
  count = fields['points']
  negative, _ = _moon(rng, count, 0, fields['noise'])
  positive, t = _moon(rng, count, 1, fields['noise'])
  chance = np.exp(-fields['decay'] * t)
  kept = rng.choice(count, fields['kept'], replace=False, p=chance / chance.sum())
  kind = np.repeat([NEGATIVE, DROPPED], count)
  kind[count + kept] = KEPT
  return np.concatenate([negative, positive]), np.repeat([0, 1], count), kind


def _testing(rng, fields):
  count, far = fields['test_points'], fields['far_points']
  negative, _ = _moon(rng, count, 0, fields['noise'])
  positive, t = _moon(rng, count, 1, fields['noise'])
  found = np.zeros((0, 2))
  for _ in range(1000):
    drawn = uniform(rng, 4 * far, fields['box'])
    found = np.concatenate([found, drawn[distance(drawn) > fields['far']]])[:far]
    if len(found) == far:
      break
  else:
    raise errors.UserError(f'data field far={fields["far"]}: no point of the box is that far away')
  kind = np.concatenate(
    [np.full(count, TEST), np.where(t > TAIL_FROM, TAIL, TEST), np.full(far, FAR)]
  )
  return (
    np.concatenate([negative, positive, found]),
    np.repeat([0, 1, 0], [count, count, far]),
    kind,
  )
