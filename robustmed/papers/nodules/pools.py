"""Which pools of patches there are, what they begin with and which network they attack."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import pandas as pd

from robustmed import errors, types
from robustmed.data import store
from robustmed.data.chest import nodule_patches, nodule_scans
from robustmed.papers.nodules import recipes, stored_pools, synthesiser
from robustmed.process import console
from robustmed.training import checkpoints

SYNTHESISER = 'synthesiser'
FIRST = 100_000_000  # indices of a pool's patches begin at a multiple of it, those of files below
FOLDER = 'pools'


class Pool(NamedTuple):
  """role: of the patches it begins with. kind: 'class/kind' in the mixture of training. search: the
  field of config.pools with its settings. Each is '' where there is none."""

  number: int
  role: str
  kind: str
  search: str = ''


POOLS = {
  'random': Pool(1, 'background', 'positive/synthetic'),
  'codes': Pool(2, 'background', 'positive/synthetic', 'code_search'),
  'positives': Pool(3, 'nodule', 'positive/attacked', 'patch_search'),
  'noise': Pool(4, '', 'negative/attacked', 'patch_search'),
  'negatives': Pool(5, 'background', 'negative/attacked', 'patch_search'),
  'poisson_positives': Pool(6, 'nodule', 'positive/attacked'),
  'poisson_negatives': Pool(7, 'negative', 'negative/attacked'),
  'plain_noise': Pool(8, '', ''),
}
SYNTHETIC = ('random', 'codes')
OUTSIDE = 0.05  # share of nodules in the border of patches from which there is something wrong


def needs_synthesiser(names: Sequence[str]) -> bool:
  return any(name in SYNTHETIC for name in names)


def cost(config: ml_collections.ConfigDict, name: str, count: int) -> types.Cost:
  """The cost of `count` patches of a pool on the network that the searches attack."""
  if name.startswith('poisson'):
    return types.Cost(passes=0)
  attack = recipes.make_search(search_of(config, name))[0] if POOLS[name].search else None
  gradients = count * (attack.num_gradients if attack else 0)
  forwards = count * (attack.num_forwards if attack else 1)  # the value of what was made
  own = types.Cost(gradients, forwards, passes=0)
  if name not in SYNTHETIC:
    return own
  decoded = own._replace(forwards=forwards + count)
  return own._replace(others=((make_synthesiser(config).decoder, decoded),))


def make_synthesiser(config: ml_collections.ConfigDict) -> synthesiser.Model:
  shape = (config.data.side,) * 3 + (1,)
  return synthesiser.make(config.synthesiser.network.to_dict(), image_shape=shape)


class Trained(NamedTuple):
  """The finished networks of one seed, as recipes want them; `folder` is the workdir."""

  config: ml_collections.ConfigDict
  task_of: Callable[[str], types.Task]
  load: Callable[[str], Any]
  folder: pathlib.Path
  seed: int
  stopper: console.Stopper

  def place(self, arm: str) -> pathlib.Path:
    return self.folder / 'checkpoints' / arm / f'seed{self.seed}'

  def has(self, arm: str) -> bool:
    return (self.place(arm) / 'variables').exists()

  def victim(self, arm: str = '') -> recipes.Victim:
    """The network of `arm`, by default that of config.pools.victim."""
    arm = arm or self.config.pools.victim
    digest = checkpoints.digest(self.place(arm))
    return recipes.Victim(self.task_of(arm), self.load(arm), digest)

  def synthesis(self) -> recipes.Synthesis:
    options = self.config.synthesiser
    return recipes.Synthesis(
      make_synthesiser(self.config),
      self.load(SYNTHESISER),
      checkpoints.digest(self.place(SYNTHESISER)),
      spacing=self.config.data.spacing,
      threshold=options.threshold,
      smallest=options.smallest,
    )


def search_of(config: ml_collections.ConfigDict, name: str) -> dict[str, Any] | None:
  """The settings of the search of a pool as plain data; None where there is none."""
  field = POOLS[name].search
  return config.pools[field].to_dict() if field else None


def recipe(trained: Trained, name: str, *, victim: str = '') -> recipes.Recipe:
  """How the patches of pool `name` are made; `victim` names another network to attack."""
  config, search = trained.config, search_of(trained.config, name)
  attacked = lambda: trained.victim(victim)
  levels = tuple(config.pools.poisson)
  known = {
    'random': lambda: recipes.codes(trained.synthesis(), attacked()),
    'codes': lambda: recipes.codes(trained.synthesis(), attacked(), search=search),
    'positives': lambda: recipes.attacked(attacked(), target=recipes.POSITIVE, search=search),
    'noise': lambda: recipes.noise(attacked(), search=search),
    'negatives': lambda: recipes.attacked(attacked(), target=recipes.NEGATIVE, search=search),
    'poisson_positives': lambda: recipes.poisson(target=recipes.POSITIVE, levels=levels),
    'poisson_negatives': lambda: recipes.poisson(target=recipes.NEGATIVE, levels=levels),
    'plain_noise': lambda: recipes.noise(attacked(), search=None),
  }
  return errors.lookup(known, name, kind='pool')()


def begins(
  config: ml_collections.ConfigDict, scans: nodule_scans.Scans, split: str, role: str
) -> int:
  """How many patches of a role a split of scans has; no scan is read."""
  uids = scans.splits.get(split, ())
  each = {'negative': config.data.negatives, 'background': config.data.backgrounds}
  if role == 'nodule':
    return sum(scans.counts[uid] for uid in uids)
  return len(uids) * each.get(role, 0)


def part_of(source: Any, split: str, role: str) -> store.Split | None:
  """The patches of a role that a pool begins with; None where it begins with none.

  `split` 'test' means all patches of the test scans, also those that networks are not judged on.
  """
  if not role:
    return None
  whole = source._replace(test=source.volumes) if split == 'test' else source
  return nodule_patches.of_role(whole, split, role)


def training(trained: Trained, name: str, source: Any) -> store.Split:
  """Pool `name` for training, made where it is not there yet."""
  role = POOLS[name].role
  begin = part_of(source, 'train', role)
  made = generate(
    trained,
    name,
    recipe(trained, name),
    begin=begin,
    source_id=[source.info['fingerprint'], 'train', role],
    count=trained.config.pools.counts[name],
    salt=0,
  )
  if name in SYNTHETIC:
    warn(name, store.Part(made, range(min(len(made), 64))), begin)
  return made


def warn(name: str, pool: store.Split, begin: store.Split) -> None:
  """Says so if the synthetic nodules of training pool `name` are none."""
  table = synthetic_nodules(pool, begin, first=FIRST * POOLS[name].number)
  outside = table['border'].mean()
  if outside > OUTSIDE:
    console.say(
      f'warning: pool {name}: {outside:.0%} of the synthetic nodules lies in the border of the '
      'patch; the synthesiser has not learnt nodules, see config.synthesiser.weights and its steps'
    )


def synthetic_nodules(pool: store.Split, begin: store.Split, *, first: int) -> pd.DataFrame:
  """Diameter in mm, mean HU and border (`nodule_synthesiser.border`) of the nodules in a pool.

  The patches they are in begin as `begin`: where both differ there is the nodule. Indices count
  from `first`. Columns are those of the grid; the arm is the synthesiser.
  """
  lines = []
  for example in pool:
    number = int(example['index']) - first
    inside = example['image'] != begin[number % len(begin)]['image']
    lines.append((number, example['group'], example['diameter'], *_look(example['image'], inside)))
  return _nodules(lines)


def real_nodules(part: store.Split, *, spacing: float, smallest: float) -> pd.DataFrame:
  """The same of real nodules with a mask, those of `smallest` mm or more."""
  lines = []
  for example in part:
    inside = example['soft'] > 0.5
    size = float(synthesiser.diameter(inside[None], spacing=spacing)[0])
    if example['has_mask'] and size >= smallest:
      look = _look(example['image'], inside)
      lines.append((example['index'], example['group'], size, *look))
  return _nodules(lines)


def _look(image, inside):
  hu = nodule_scans.to_hu(image[inside]).mean() if inside.any() else np.nan
  return hu, synthesiser.border(inside[None])[0]


def _nodules(lines):
  types_of = {'index': int, 'group': int, 'diameter': float, 'hu': float, 'border': float}
  table = pd.DataFrame(lines, columns=[*types_of]).astype(types_of)
  return table.assign(arm=SYNTHESISER, eps=1.0)


def generate(
  trained: Trained,
  name: str,
  how: recipes.Recipe,
  *,
  begin: store.Split | None,
  source_id: Any,
  count: int,
  salt: int,
  first: int = 0,
) -> store.Split:
  """`count` patches by `how`, 0: one for each patch of `begin`; kept in the workdir.

  Pools of equal `salt` and seed begin with equal random numbers: searched codes with those that are
  not searched.
  """
  config = trained.config
  if begin is not None and not len(begin):
    raise errors.UserError(
      f'pool {name}: there are no patches of the role it begins with; raise data.negatives or '
      'data.backgrounds'
    )
  if not count and begin is None:
    raise errors.UserError(f'pool {name}: pools.counts.{name} must be at least 1')
  count, shape = count or len(begin), (config.data.side,) * 3 + (1,)
  size = count * 4 * config.data.side**3
  console.say(f'pool {name}: {count} patches, {size / 1e6:.0f} MB in {trained.folder / FOLDER}')
  return stored_pools.generate(
    name,
    how,
    count=count,
    root=trained.folder / FOLDER,
    seed=config.seed + 1000 * trained.seed + 500_009 * salt,
    first=first or FIRST * POOLS[name].number,
    stopper=trained.stopper,
    source=begin,
    source_id=source_id,
    image_shape=shape,
    shard_size=config.pools.shard_size,
    batch_size=config.pools.batch_size,
  )
