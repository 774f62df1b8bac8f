"""Makes batches of numpy arrays in an order that depends on the seed and the step alone (grain)."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from robustmed import errors
from robustmed.data import store

_NOT_TARGET = ('image', 'index', 'group', 'name')
_DRAW_LIMIT = 2**31  # draws are int32; their numbers repeat after two billion samples


Crop = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # example -> example of a common shape


def shuffled(draw: int, *, seed: int, batch_size: int, size: int) -> tuple[int, None]:
  """Returns the position of a draw where every pass over the source is a new permutation."""
  epoch, place = divmod(draw, size)
  return int(_permutation(seed, epoch, size)[place]), None


class Sampling(NamedTuple):
  """How training samples are drawn; functions of the seed and the number of the draw alone.

  choose: (draw, *, seed, batch_size, size) -> (position in the source, params of its crop), with
  the `batch_size` of all hosts together. crop: (example, params) -> example of the batch's shape.
  """

  choose: Callable[..., tuple[int, Any]] = shuffled
  crop: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] = lambda example, params: example


class TrainBatches(Iterator[dict[str, Any]]):
  """Endless batches of one host; `get_state()` is plain data that `set_state` resumes from."""

  def __init__(self, dataset: grain.MapDataset, *, start_step: int):
    self._dataset = dataset
    self.set_state({'step': start_step})

  def __next__(self) -> dict[str, Any]:
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    return {'step': self._step}

  def set_state(self, state: dict[str, int]) -> None:
    self._step = int(state['step'])
    options = grain.ReadOptions(num_threads=min(4, os.cpu_count() or 1), prefetch_buffer_size=4)
    self._iterator = iter(self._dataset[self._step :].to_iter_dataset(options))


def train_batches(
  source: store.Split,
  *,
  batch_size: int,
  seed: int,
  shard_index: int,
  shard_count: int,
  start_step: int = 0,
  sampling: Sampling = Sampling(),  # noqa: B008 a tuple
  examples: int = 0,
) -> TrainBatches:
  """Returns an endless iterator of the batches of host `shard_index` from step `start_step` on.

  `batch_size` is that of one host. The batches of all hosts at a step, one after the other, are the
  global batch, which is the same for every `shard_count` at equal batch_size * shard_count. Of it
  only the first `examples` count (0: all); the rest is padding, copies of the last one with mask
  False, and takes no draws. Each pass over the source is a new permutation, unless `sampling` says
  otherwise. Fields: image, target, mask, index, group and draw, the int32 number of the sample in
  the whole run (step * examples + position).
  """
  _check(source, batch_size, shard_index, shard_count)
  whole = examples or batch_size * shard_count

  def drawn(draw):
    position, params = sampling.choose(draw, seed=seed, batch_size=whole, size=len(source))
    return sampling.crop(source[position], params)

  def batch(number):
    step, shard = divmod(number, shard_count)
    places = shard * batch_size + np.arange(batch_size)
    draws = step * whole + np.minimum(places, whole - 1)
    made = {draw: drawn(draw) for draw in dict.fromkeys(draws.tolist())}
    return _collate([made[draw] for draw in draws.tolist()], draws % _DRAW_LIMIT, places < whole)

  batches = grain.MapDataset.range(sys.maxsize).map(batch)
  return TrainBatches(batches[shard_index::shard_count], start_step=start_step)


@functools.lru_cache(maxsize=8)
def _permutation(seed, epoch, size):
  return np.random.default_rng([seed % 2**32, epoch]).permutation(size)


def eval_batches(
  source: store.Split,
  *,
  batch_size: int,
  shard_index: int,
  shard_count: int,
  crop: Crop = lambda example: example,
) -> grain.MapDataset:
  """Returns the batches of host `shard_index` in the order of the source: len, iteration, [i].

  Every host has the same number of batches; the last ones are padded with copies of the last
  example, with mask False. 'draw' is the position in the source.
  """
  _check(source, batch_size, shard_index, shard_count)
  whole = batch_size * shard_count
  steps = -(-len(source) // whole)

  def batch(number):
    positions = number * batch_size + np.arange(batch_size)
    examples = [crop(source[min(position, len(source) - 1)]) for position in positions]
    return _collate(examples, positions, positions < len(source))

  return grain.MapDataset.range(steps * shard_count).map(batch)[shard_index::shard_count]


def _check(source, batch_size, shard_index, shard_count):
  if batch_size < 1:
    raise errors.UserError(f'batch size must be at least 1, not {batch_size}')
  if not 0 <= shard_index < shard_count:
    raise ValueError(f'shard {shard_index} of {shard_count}')
  if not len(source):
    raise errors.UserError('the data split is empty')


def _collate(examples, draws, mask):
  """Returns examples of a source as one `types.Batch`."""

  def stack(key):
    return np.stack([example[key] for example in examples])

  return {
    'image': stack('image'),
    'target': {key: stack(key) for key in examples[0] if key not in _NOT_TARGET},
    'mask': mask,
    'index': stack('index').astype(np.int32),
    'group': stack('group').astype(np.int32),
    'draw': draws.astype(np.int32),
  }
