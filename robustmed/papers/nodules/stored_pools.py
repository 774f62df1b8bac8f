"""Pools of patches, made once and shared by all trainings: sharded, stored, gone on with.

A pool is a row of candidates, numbered from 0. Candidate i begins with patch i of a source, modulo
their number, and has the key fold_in(key, i), so neither shards nor devices nor an interruption
change it. Every shard is a prepared data set of its own (ArrayRecord) that appears complete or not
at all; its folder follows from the recipe, the networks' digests, the source, the seed and the
version of this code, which lie beside it in facts.json.
"""

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

import robustmed
from robustmed import errors
from robustmed.data import mixing, store
from robustmed.papers.nodules import recipes
from robustmed.process import console, parallel

VERSION = 1  # of what is made of a recipe
PATIENCE = 20  # candidates for every patch that is wanted
_BESIDE = 512  # bytes of a patch beside its image, about
_BYTES = tfds.features.Encoding.BYTES


class Pool(store.Builder):
  """One shard; its fields are 'rows', which are there already, and 'facts'."""

  def features(self):
    shape = np.shape(self.fields['rows'][0]['image'])
    scalar = {name: tfds.features.Scalar(np.asarray(v).dtype) for name, v in _blank().items()}
    whole = dict.fromkeys(('target', 'origin', 'index', 'group'), np.int32)
    image = tfds.features.Tensor(shape=shape, dtype=np.float32, encoding=_BYTES)
    return tfds.features.FeaturesDict(
      {'image': image, **scalar, **whole, 'name': tfds.features.Text()}
    )

  def splits(self):
    self.facts = self.fields['facts']
    return {'train': self.fields['rows']}


def _blank():
  return {
    name: np.bool_(value) if isinstance(value, bool) else np.float32(value)
    for name, value in recipes.COLUMNS.items()
  }


def generate(
  name: str,
  recipe: recipes.Recipe,
  *,
  count: int,
  root: pathlib.Path,
  seed: int,
  first: int,
  stopper: console.Stopper,
  source: store.Split | None = None,
  source_id: Any = None,
  image_shape: tuple[int, ...] = (),
  shard_size: int = 256,
  batch_size: int = 32,
) -> store.Split:
  """The first `count` patches of a pool that its recipe keeps; made where they are not there yet.

  An example has the features of `Pool`; 'index' is `first` plus the number of the candidate,
  'origin' the index of the patch it began with (-1: none), 'group' that patch's, else the number of
  the candidate. source_id: plain data that stands for the source's content. Without a source give
  `image_shape`. `shard_size` should be a multiple of the batch. A stop is heard between shards.
  """
  if count < 1 or shard_size < 1 or batch_size < 1:
    raise errors.UserError(f'pool {name}: count, shard_size and batch_size must be at least 1')
  if source is not None and not len(source):
    raise errors.UserError(f'pool {name}: there are no patches to begin with')
  provenance = {
    'pool': name,
    'made_by': [VERSION, robustmed.__version__],
    'seed': seed,
    'first': first,
    'source': [source_id, len(source)] if source is not None else [*image_shape],
    **recipe.provenance,
  }
  program = functools.cache(lambda: _program(recipe))
  shape = np.shape(source[0]['image']) if source is not None else image_shape
  progress, parts, kept, tried = console.Progress(f'pool {name}', count), [], 0, 0
  size = min(shard_size, -(-count // batch_size) * batch_size)
  while kept < count:
    if tried >= PATIENCE * count:
      raise errors.UserError(
        f'pool {name}: only {kept} of {tried} candidates can be kept, {count} are wanted; train '
        'the synthesiser longer, or lower the smallest size or the number of patches'
      )
    numbers = np.arange(tried, tried + size)
    make = lambda numbers=numbers: _rows(
      program(), recipe, name, numbers, source, image_shape, seed, first, batch_size
    )
    need = size_of(count - kept, shape)
    part = _shard(make, {**provenance, 'candidates': [tried, size]}, root, stopper, need)
    parts.append(part)
    kept, tried = kept + len(part), tried + size
    progress.update(min(kept, count), f'{kept} of {tried} candidates kept')
  progress.close()
  joined = mixing.Concatenated(parts)
  return store.Part(joined, range(count))


def size_of(count: int, image_shape: tuple[int, ...]) -> int:
  """Bytes of `count` patches of a pool on the disk."""
  return count * (math.prod(image_shape) * np.dtype(np.float32).itemsize + _BESIDE)


def check_space(folder: pathlib.Path, need: int, *, what: str) -> None:
  """A `UserError` if `need` bytes do not fit on the disk of `folder`."""
  free = store.free_bytes(folder)
  if need > free:
    raise errors.UserError(
      f'{what}: takes {store.amount(need)} more, but {folder} has {store.amount(free)} free; put '
      'the workdir on a larger disk, or lower pools.counts and the counts of stress'
    )


def _shard(make, provenance, root, stopper, need) -> store.Split:
  """What is kept of one shard; of one without any its first candidate lies there alone.

  need: bytes that the pool takes from here on.
  """
  folder = store.location(Pool, root=root, fingerprint=provenance)
  if not bool(parallel.broadcast_from_writer(np.array(store.is_prepared(folder)))):
    if stopper.requested():
      console.say(f'stopped in pool {provenance["pool"]}; the same command goes on from there')
      raise console.Stopped
    check_space(root, need, what=f'pool {provenance["pool"]}')
    rows = make()
    if parallel.is_writer():
      kept = [row for row in rows if row['keep']]
      facts = {'provenance': provenance, 'keep': [*range(len(kept))]}
      fields = {'rows': kept or rows[:1], 'facts': facts}
      store.prepare(Pool, fields, root=root, fingerprint=provenance)
    parallel.barrier('pool')
  splits, folder = store.prepare(Pool, {}, root=root, fingerprint=provenance)
  return store.Part(splits['train'], store.facts(folder)['keep'])


def _program(recipe):
  def one_device(variables, table, key):
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(table['number'])
    return recipe.run(variables, table['image'], keys)

  return parallel.each_device(one_device, split=(1,))


def _rows(program, recipe, name, numbers, source, image_shape, seed, first, batch_size):
  """All candidates of a shard as examples; hosts make equal shares of every batch."""
  rows, key = [], jax.random.key(seed)
  hosts, host = parallel.process_count(), parallel.process_index()
  share = parallel.round_up(-(-batch_size // hosts))
  for begin in range(0, len(numbers), share * hosts):
    chunk = numbers[begin : begin + share * hosts]
    begun = [None if source is None else source[int(i) % len(source)] for i in chunk]
    own = np.minimum(np.arange(host * share, (host + 1) * share), len(chunk) - 1)
    blank = np.zeros(image_shape, np.float32)
    image = [blank if begun[place] is None else begun[place]['image'] for place in own]
    table = {'number': chunk[own].astype(np.int32), 'image': np.stack(image)}
    made = program(recipe.variables, table, key)
    made = parallel.gather_rows({column: np.asarray(value) for column, value in made.items()})
    for place, number in enumerate(chunk.tolist()):
      start = begun[place]
      columns = {column: value[place] for column, value in made.items()}
      rows.append(
        {
          **_blank(),
          **columns,
          'target': recipe.target,
          'origin': -1 if start is None else int(start['index']),
          'index': first + number,
          'group': number if start is None else int(start['group']),
          'name': f'{name}_{number:06d}',
        }
      )
  return rows


class Filled(store.Split):
  """A pool whose examples have the features of `like`, so that both can be in one batch.

  What a pool's patch has not is zero there; what `like` has not is left out.
  """

  def __init__(self, pool: store.Split, like: Mapping[str, Any]):
    self.groups, self._pool = pool.groups, pool
    arrays = {key: np.asarray(value) for key, value in like.items() if key != 'name'}
    self._like = {
      key: np.broadcast_to(np.zeros((), array.dtype), array.shape) for key, array in arrays.items()
    }

  def __len__(self) -> int:
    return len(self._pool)

  def __getitem__(self, index) -> dict[str, Any]:
    example = self._pool[index]
    if example['image'].shape != self._like['image'].shape:
      raise errors.UserError(
        f'patches of a pool are {example["image"].shape}, those it joins '
        f'{self._like["image"].shape}; make the pool anew'
      )
    found = {
      key: np.asarray(example.get(key, blank), blank.dtype) for key, blank in self._like.items()
    }
    return {**found, 'name': example['name']}
