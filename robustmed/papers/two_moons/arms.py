"""The six panels as arms, the auto-encoder that four of them need, and the points they add."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from robustmed import data, errors, types
from robustmed.data import mixing, store
from robustmed.defenses import standard
from robustmed.papers.two_moons import moons, points
from robustmed.process import files, parallel
from robustmed.report import inputs
from robustmed.runs import experiment, preparation

VAE, ADDED = 'vae', 'added.npz'
REAL = {
  'full': (moons.NEGATIVE, moons.DROPPED, moons.KEPT),
  'tail': (moons.NEGATIVE, moons.KEPT),
  'kept': (moons.KEPT,),
}


class Addition(NamedTuple):
  """What points are added: how many a replicate (field of config.search), their label, how."""

  count: str
  label: int
  searched: bool

  @property
  def needs_codes(self) -> bool:
    return self.count == 'codes'


ADDITIONS = {
  'codes': Addition('codes', 1, False),
  'searched_codes': Addition('codes', 1, True),
  'uniform': Addition('uniform', 0, False),
  'searched_uniform': Addition('uniform', 0, True),
}


def make(config, task: types.Task) -> dict[str, experiment.Arm]:
  """config.arms, and `VAE` fitted to the positives that the long-tailed set keeps."""
  arms, module = {}, make_vae(config)
  arms[VAE] = experiment.Arm(
    name=VAE,
    defense=points.fitting(module, divergence=config.vae.divergence),
    train=experiment.train_options(config, {'train': config.vae.train}),
    network=experiment.Network(
      points.make_task(module),
      {'vae': {name: config.vae[name] for name in ('widths', 'latent')}},
    ),
    evaluated=False,
    prepared=experiment.Prepared(source=lambda finished: _mixed('kept', None, finished)),
  )
  for name, options in config.arms.items():
    errors.lookup(REAL, options.real, kind=f'real points of arm {name!r}')
    kinds = _kinds(name, options.added)
    needs, gradients = (), 0
    for how in kinds:
      if how.needs_codes:
        needs += (VAE,)
      if how.searched:
        errors.lookup(config.arms, config.search.victim, kind='arm that the searches attack')
        needs += (config.search.victim,)
        steps = config.search.attacks[how.count].num_steps
        gradients += steps * config.search[how.count] * config.data.replicates
    arms[name] = experiment.Arm(
      name=name,
      defense=standard.make(task),
      train=experiment.train_options(config, {}),
      prepared=experiment.Prepared(
        needs=tuple(dict.fromkeys(needs)),
        cost=lambda examples, count=gradients: types.Cost(gradients=count, passes=0),
        source=lambda finished, real=options.real, kinds=kinds: _mixed(
          real, kinds and (lambda: added(config, task, kinds, finished)), finished
        ),
      ),
    )
  return arms


def added_names(value) -> tuple[str, ...]:
  """The kinds of points of an arm's `added`: names, or as in earlier configurations one or ''."""
  return tuple(filter(None, [value])) if isinstance(value, str) else tuple(value)


def _kinds(arm: str, names) -> tuple[Addition, ...]:
  names = added_names(names)
  for name in names:
    errors.lookup(ADDITIONS, name, kind='kind of added points')
    if names.count(name) > 1:
      raise errors.UserError(f'arm {arm!r} adds {name!r} twice')
  return tuple(ADDITIONS[name] for name in names)


def make_vae(config) -> points.Vae:
  return points.Vae(config.data.replicates, tuple(config.vae.widths), config.vae.latent)


def training_points(source, kinds) -> store.Split:
  """The real training points of these kinds."""
  kind = source.train.stack('kind')
  return store.Part(source.train, np.flatnonzero(np.isin(kind, kinds)).tolist())


def _mixed(real: str, make_added, finished: preparation.Finished) -> data.Source:
  """Real and added points at shares by their numbers, so that each counts alike."""
  parts = {'real': training_points(finished.source, REAL[real])}
  if make_added:
    parts['added'] = make_added()
  joined, sampling = mixing.mix(parts, {name: len(part) for name, part in parts.items()})
  return finished.source._replace(train=joined, sampling=sampling)


def added(config, task, kinds: tuple[Addition, ...], finished: preparation.Finished) -> store.Split:
  """The added points of an arm, kind after kind, made once and kept in its folder."""
  path = finished.folder / ADDED
  if not bool(parallel.broadcast_from_writer(np.array(path.is_file()))):
    made = [np.asarray(_search(config, task, how, finished)) for how in kinds]
    label = np.repeat([how.label for how in kinds], [len(image) for image in made])
    if parallel.is_writer():
      with files.replacing(path) as temporary:
        np.savez_compressed(temporary, image=np.concatenate(made), label=label)
    parallel.barrier(ADDED)
  image, label = (inputs.arrays(path)[name] for name in ('image', 'label'))
  sizes = moons.sizes(config.data)
  return moons.split(
    image[:, :2],
    replicate=image[:, 2],
    label=label,
    kind=np.where(label, moons.KEPT, moons.NEGATIVE),
    first=sizes['train'] + sizes['test'],
  )


def _search(config, task, how, finished):
  options, replicates = config.search, config.data.replicates
  # What is searched begins where what is not searched stays.
  key = jax.random.fold_in(jax.random.key(config.seed), 0x5EA + finished.seed)
  variables = {}
  attack, eps = None, 0.0
  if how.searched:
    variables['classifier'] = finished.load(options.victim)
    attack = experiment.make_attack(options.attacks[how.count].to_dict())
    eps = options[f'{how.count}_eps']
  member = np.repeat(np.arange(replicates), options[how.count]).astype(np.float32)
  if how.needs_codes:
    variables['vae'] = finished.load(VAE)
    return points.samples(
      make_vae(config), task, variables, member, key=key, attack=attack, eps=eps
    )
  rng = np.random.default_rng([config.seed % 2**32, finished.seed, 0x0F])
  xy = moons.uniform(rng, len(member), config.data.box)
  image = np.concatenate([xy, member[:, None]], axis=1).astype(np.float32)
  if attack is None:
    return image
  return points.noise(task, variables, image, key=key, attack=attack, eps=eps)


def points_of(config, source, arm: str, folder) -> Mapping[str, np.ndarray]:
  """What an arm has learnt from: image [n, 3], label [n], added [n]; real points first."""
  options = config.arms[arm]
  real = training_points(source, REAL[options.real])
  found = {'image': real.stack('image'), 'label': real.stack('label')[:, 0]}
  found['added'] = np.zeros(len(real), bool)
  if not options.added:
    return found
  kept = inputs.arrays(folder / ADDED)
  more = {
    'image': kept['image'],
    'label': kept['label'].astype(np.float32),
    'added': np.ones(len(kept['image']), bool),
  }
  return {name: np.concatenate([found[name], more[name]]) for name in found}
