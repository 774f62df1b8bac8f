"""Evaluates trained generators against segmenters, slice by slice, and joins slices to subjects.

One `Case` is a generator, the segmenter that it was trained against and all segmenters that are
evaluated on its images. Its rows have the evaluated segmenter as 'arm', the kind of image as
'attack' (see `KINDS`; made against another segmenter: 'dv_from_<arm>') and xi as 'eps'.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import attacks, types
from robustmed.evaluation import grid, stored_tables
from robustmed.generators import losses, synthesis
from robustmed.metrics import deformation
from robustmed.ops import warp
from robustmed.process import console, files, parallel
from robustmed.tasks import segmentation

PyTree = Any
# both fields, one alone, a random field of the same spectrum and p, PGD at the same p
KINDS = ('dv', 'd', 'v', 'smooth', 'pgd')
_ROUNDS = 4  # iterations that fit the size of a random field
_SIZINGS = 2  # runs of PGD, the second with a corrected eps
_SALT = zlib.crc32(b'synthesis') & 0x7FFFFFFF


class Case(NamedTuple):
  """A generator and the segmenters that are evaluated on its images."""

  name: str  # of the generator's arm
  xi: float
  generator: Callable[[int], PyTree]  # seed -> variables
  target: str  # arm that it was trained against
  segmenters: tuple[str, ...]  # arms that are evaluated on its images, the target first
  controls: bool  # also evaluate the controls at equal p and the single fields

  def file(self, seed: int) -> str:
    return f'{self.name}.on_{"+".join(self.segmenters)}.seed{seed}.parquet'


def cost(
  case: Case,
  images: int,
  *,
  task_of: Callable[[str], types.Task],
  generator: types.Task,
  pgd_steps: int,
  draws: int,
) -> types.Cost:
  """The cost of so many images on the target; `generator` is the task of generators alone."""
  shown = len(KINDS) if case.controls else 1
  search = case.controls * _SIZINGS * _attack(pgd_steps).num_gradients
  before = case.controls  # the outputs on clean images, for the search
  others = [(generator, types.Cost(forwards=images * (1 + case.controls * draws), passes=0))]
  # A score looks at the image and at the clean one.
  for arm in case.segmenters[1:]:
    others.append((task_of(arm), types.Cost(forwards=2 * images * 2, passes=0)))
  return types.Cost(
    gradients=images * search,
    forwards=images * (2 * (1 + shown) + before),
    passes=0,
    others=tuple(others),
  )


def _attack(num_steps):
  return attacks.pgd(norm='linf', num_steps=num_steps, score_last=False)


class Programs:
  """The compiled programs for generators of one architecture and any segmenters."""

  def __init__(self, model: synthesis.Model, *, key: jax.Array, draws: int, pgd_steps: int):
    self._model, self._draws, self._steps = model, draws, pgd_steps
    self._key = jax.random.fold_in(key, _SALT)
    self._draw = parallel.each_device(self._draw_one, split=(1,), gathered=True)
    self._spread = parallel.each_device(self._spread_one, split=(1,), gathered=True)
    self._smooth = parallel.each_device(self._smooth_one, split=(0, 1), gathered=True)
    self._pgd: dict[int, Callable] = {}
    self._score: dict[int, Callable] = {}

  def images(self, task, victim: PyTree, variables: PyTree, batch, *, controls: bool):
    """({kind: image}, displacement fields, {column: [b]}) of this host's batch."""
    drawn = self._draw(variables, batch)
    images = {'dv': drawn['dv']}
    columns = {name: drawn[name] for name in ('folds', 'D', 'V')}
    if controls:
      images |= {'d': drawn['d'], 'v': drawn['v']}
      images['smooth'] = self._smooth(drawn, batch)
      if id(task) not in self._pgd:
        self._pgd[id(task)] = parallel.each_device(self._pgd_one(task), split=(1, 2))
      images['pgd'] = self._pgd[id(task)](victim, drawn, batch)
      columns['spread'] = self._spread(variables, batch)
    return images, drawn['field'], columns

  def score(self, task, variables: PyTree, batch, image, field) -> dict[str, jax.Array]:
    """Columns [b]: counts against the truth and the truth moved with D, X, p."""
    if id(task) not in self._score:
      self._score[id(task)] = parallel.each_device(score_one(task), split=(1, 2, 3))
    return self._score[id(task)](variables, batch, image, field)

  def _keys(self, batch, number=0):
    key = jax.random.fold_in(self._key, number)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])

  def _draw_one(self, variables, batch):
    image = batch['image']
    fields, _ = self._model.draw(variables, image, self._keys(batch), train=False)
    made = {
      parts.lower(): synthesis.compose(image, fields, parts=parts) for parts in ('DV', 'D', 'V')
    }
    length = jnp.linalg.norm(fields.displacement, axis=-1)
    return {
      **made,
      'field': fields.displacement,
      'intensity': fields.intensity,
      'folds': deformation.fold_share(fields.displacement),
      'D': length.mean((1, 2)),
      'V': jnp.abs(fields.intensity).mean((1, 2, 3)),
    }

  def _spread_one(self, variables, batch):
    """Standard deviation over draws of z of each pixel of I_DV, averaged over pixels."""
    image = batch['image']

    def body(number, sums):
      fields, _ = self._model.draw(variables, image, self._keys(batch, number), train=False)
      change = synthesis.compose(image, fields) - image
      return sums[0] + change, sums[1] + jnp.square(change)

    total, squares = jax.lax.fori_loop(0, self._draws, body, (jnp.zeros_like(image),) * 2)
    variance = squares / self._draws - jnp.square(total / self._draws)
    return jnp.sqrt(jnp.maximum(variance, 0.0)).mean((1, 2, 3))

  def _smooth_one(self, drawn, batch):
    keys = self._keys(batch, 1001)
    fields = synthesis.Fields(
      scramble_phases(drawn['field'], keys), scramble_phases(drawn['intensity'], keys), {}
    )
    image = batch['image']
    wanted = synthesis.perceptibility(drawn['dv'], image)
    return scale_to_perceptibility(image, fields, wanted)

  def _pgd_one(self, task):
    attack = _attack(self._steps)

    def one_device(victim, drawn, batch):
      image, keys = batch['image'], self._keys(batch, 1002)
      wanted = synthesis.perceptibility(drawn['dv'], image)
      before = task.predict(victim, image)['head0']
      objective = lambda image: losses.strength(before, task.predict(victim, image)['head0']).value
      run = lambda eps: attack(objective, image, eps=eps, key=keys).x
      found = run(wanted)
      realised = synthesis.perceptibility(found, image)
      # The share of the L-infinity ball that PGD fills hardly depends on its size.
      return run(wanted * wanted / jnp.maximum(realised, 1e-6))

    return one_device


def score_one(task: types.Task):
  """Returns `Programs.score` of one device for the network of `task`."""

  def one_device(variables, batch, image, field):
    labels = batch['target']['labels']
    before = task.predict(variables, batch['image'])['head0']
    after = task.predict(variables, image)['head0']
    found = losses.strength(before, after)
    columns = {'X': found.value, '_pixels': found.pixels}
    columns['p'] = synthesis.perceptibility(image, batch['image'])
    for prefix, truth in (('', labels), ('moved_', warp.nearest(labels, field))):
      for kind, count in segmentation.hard_counts(after, truth).items():
        columns |= {f'_{prefix}{kind}{k + 1}': count[:, k] for k in range(count.shape[1])}
    return columns

  return one_device


def scramble_phases(field, keys):
  """Random fields [b, h, w, c] with the amplitude spectrum of `field` and random phases."""

  def one(values, key):
    noise = jax.random.normal(key, values.shape)
    phase = jnp.fft.fft2(noise, axes=(0, 1))
    amplitude = jnp.abs(jnp.fft.fft2(values, axes=(0, 1)))
    turned = amplitude * phase / jnp.maximum(jnp.abs(phase), 1e-12)
    return jnp.fft.ifft2(turned, axes=(0, 1)).real

  return jax.vmap(one)(field, keys)


def scale_to_perceptibility(image, fields: synthesis.Fields, wanted):
  """I_0 changed by both fields, scaled per example so that p is about `wanted` [b]."""
  scale = jnp.ones(image.shape[:1])
  column = lambda values: values.reshape(-1, 1, 1, 1)

  def attacked(scale):
    scaled = fields._replace(
      displacement=column(scale) * fields.displacement, intensity=column(scale) * fields.intensity
    )
    return synthesis.compose(image, scaled)

  for _ in range(_ROUNDS):
    realised = synthesis.perceptibility(attacked(scale), image)
    scale = jnp.clip(scale * wanted / jnp.maximum(realised, 1e-6), 0.0, 20.0)
  return attacked(scale)


def run(
  cases: Sequence[Case],
  programs: Programs,
  *,
  seeds: Iterable[int],
  task_of: Callable[[str], types.Task],
  load: Callable[[str, int], PyTree],
  batches: grid.Batches,
  folder,
  stopper: console.Stopper,
) -> pd.DataFrame:
  """The rows of all cases; each is one file in `folder`, which is not made again if it exists."""
  todo = [(case, seed) for seed in seeds for case in cases]
  make = functools.partial(_rows, programs=programs, task_of=task_of, load=load, batches=batches)
  pieces = [
    stored_tables.Table(
      case.file(seed),
      functools.partial(make, case, seed),
      f'generator {case.name!r} (seed {seed})',
      case.name,
    )
    for case, seed in todo
  ]
  stored_tables.fill_missing('generators', pieces, folder=folder, stopper=stopper)
  if not todo:
    return pd.DataFrame()
  tables = [files.read_with(folder / piece.file, pd.read_parquet) for piece in pieces]
  rows = pd.concat(tables, ignore_index=True)
  keys = ['arm', 'seed', 'attack', 'eps', 'index']
  # The rows of a segmenter's clean images are repeated for every generator.
  return rows.drop_duplicates(keys).sort_values(keys, kind='stable', ignore_index=True)


def _rows(case, seed, *, programs, task_of, load, batches) -> pd.DataFrame:
  generator = case.generator(seed)
  segmenters = {arm: (task_of(arm), load(arm, seed)) for arm in case.segmenters}
  task, victim = segmenters[case.target]
  tables = []
  for batch in map(grid.device_batch, batches()):
    images, field, columns = programs.images(task, victim, generator, batch, controls=case.controls)
    still = np.zeros_like(np.asarray(field))
    for arm, (own, variables) in segmenters.items():
      away = '' if arm == case.target else f'_from_{case.target}'
      shown = {'dv': images['dv']} if away else images
      for kind, image in {grid.CLEAN: batch['image'], **shown}.items():
        moved = field if kind in ('dv', 'd') else still
        scored = programs.score(own, variables, batch, image, moved)
        keep = {name: batch[name] for name in ('mask', 'index', 'group')}
        more = columns if kind == 'dv' and not away else {}
        table = {name: np.asarray(c) for name, c in {**keep, **scored, **more}.items()}
        frame = pd.DataFrame(parallel.gather_rows(table))
        clean = kind == grid.CLEAN
        frame.insert(0, 'arm', arm)
        frame.insert(1, 'attack', kind if clean else kind + away)
        frame.insert(2, 'eps', 0.0 if clean else case.xi)
        tables.append(frame)
  rows = pd.concat(tables, ignore_index=True).assign(seed=seed)
  return rows[rows.pop('mask').astype(bool)]


def subjects(rows: pd.DataFrame, organs: Sequence[str], *, min_pixels: float) -> pd.DataFrame:
  """One row per cell and subject: Dice of whole volumes per organ, and means over slices.

  Columns: DICE_<organ> (nan if neither truth nor output has it), their mean DICE, the same against
  the truth moved with D as MOVED_<organ>, and the means of X, p, folds, D, V and spread over slices
  with `min_pixels` organ pixels in the clean output.
  """
  keys = ['arm', 'seed', 'attack', 'eps', 'group']
  counts = [
    name for name in rows.columns if name[1:].rstrip('0123456789').endswith(('tp', 'fp', 'fn'))
  ]
  sums = rows.groupby(keys, as_index=False, sort=True)[counts].sum()
  result = sums[keys].assign(index=sums['group'])
  for head, prefix in (('DICE', ''), ('MOVED', 'moved_')):
    for k, organ in enumerate(organs, start=1):
      tp, fp, fn = (sums[f'_{prefix}{kind}{k}'].to_numpy(float) for kind in ('tp', 'fp', 'fn'))
      size = 2 * tp + fp + fn
      result[f'{head}_{organ}'] = np.where(size > 0, 2 * tp / np.maximum(size, 1), np.nan)
  result['DICE'] = result[[f'DICE_{organ}' for organ in organs]].mean(axis=1)
  result['MOVED'] = result[[f'MOVED_{organ}' for organ in organs]].mean(axis=1)
  kept = rows[rows['_pixels'] >= min_pixels]
  extra = [n for n in ('X', 'p', 'folds', 'D', 'V', 'spread') if n in rows.columns]
  means = kept.groupby(keys, as_index=False)[extra].mean()
  return result.merge(means, on=keys, how='left')


def table(found: pd.DataFrame, organs: Sequence[str], cells: Mapping[str, tuple]) -> pd.DataFrame:
  """Table 1: a row of Dice per organ in per cent, p and X for each name -> (arm, attack, xi)."""
  lines = []
  for name, (arm, attack, xi) in cells.items():
    at = (found['arm'] == arm) & (found['attack'] == attack) & np.isclose(found['eps'], xi)
    here = found[at]
    if here.empty:
      continue
    dice = {organ: 100 * here[f'DICE_{organ}'].mean() for organ in organs}
    lines.append({'image': name, 'xi': xi, **dice, 'p': here['p'].mean(), 'X': here['X'].mean()})
  return pd.DataFrame(lines, columns=['image', 'xi', *organs, 'p', 'X'])
