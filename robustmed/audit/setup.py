"""Networks and data that fit each other, and the examples that are attacked."""

import functools
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import data, errors, networks, types
from robustmed.audit import classes, example, label_maps, landmarks, threat, whole_images
from robustmed.data import store
from robustmed.data.labelled import phantom
from robustmed.data.labelled import study as studies
from robustmed.networks import description, normalise, segmentation
from robustmed.networks.network import as_task, digest_of
from robustmed.own_data import segmentation as own_data
from robustmed.own_data import surfaces
from robustmed.tasks import segmentation as task_of_label_maps


class Audited(NamedTuple):
  """One network."""

  network: networks.Network
  described: description.Description
  lines: tuple[str, ...]


class Setup(NamedTuple):
  fields: Mapping[str, Any]  # of `data.load`
  study: studies.Study
  audited: Mapping[str, Audited]  # by the name of the arm
  threat: threat.Threat
  chosen: tuple[int, ...]  # places in the test split that are attacked
  most_examples: int
  distances: surfaces.Plan | None  # how those of label maps are measured

  @property
  def part(self):
    """What is measured of the folder's kind of labels."""
    return PARTS[self.study.folder.kind]

  @property
  def padding(self) -> str:
    """How images are brought to one size: 'mirror'; 'zeros', where a network crops to the non-zero
    box and so removes them; 'training', as networks of configs/train.py and those that read
    deviations of the case were trained: 0 in deviations of the case, else the lowest half per
    cent."""
    every = self.audited.values()
    if any(one.described.input.normalise.startswith('nonzero:') for one in every):
      return 'zeros'
    stored = self.fields['intensity'] == 'stored'
    known = not stored or any(one.network.format == 'checkpoint' for one in every)
    return 'training' if known else 'mirror'


PARTS = {'segmentation': label_maps, 'classes': classes, 'landmarks': landmarks}


def make(config: ml_collections.ConfigDict) -> Setup:
  """Returns what config.network (or config.networks) and config.data say together.

  Raises:
    UserError: they do not fit each other.
  """
  paths = [path for path in (config.networks or config.network).split(',') if path.strip()]
  loaded = {name: (path, networks.load(path)) for name, path in _names(paths).items()}
  loaded = loaded or {'brightness': (None, example.make())}
  axes = {network.axes for _, network in loaded.values()}
  if len(axes) > 1:
    raise errors.UserError('config.networks: networks in 2D and in 3D cannot be audited together')
  fields = config.data.to_dict()
  most = fields.pop('most_examples')
  if fields['source'] == 'auto':
    fields['source'] = 'labelled' if fields['dir'] else 'phantom_labelled'
  fields |= {'axes': axes.pop(), 'intensity': 'stored'}
  fields['slice_axis'] = _slice_axis(fields, [network for _, network in loaded.values()])
  fields = data.fields_of(data.source_config(fields))
  found = study_of({**fields, 'axes': 0})
  first = next(iter(loaded.values()))[1]
  flags = {f'{part}.{k}': v for part in ('input', 'output') for k, v in config[part].items()}
  part = errors.lookup(PARTS, found.folder.kind, kind='kind of labels that networks are audited on')
  if part is not label_maps:
    fields = whole_images.fields_of(fields, loaded)
    found = study_of(fields)
    audited = {
      name: Audited(
        network, *whole_images.described(part, path, network, found, flags, _guess(found))
      )
      for name, (path, network) in loaded.items()
    }
    made = threat.make(found, config.threat.to_dict(), config.evaluate.levels)
    return Setup(fields, found, audited, made, _chosen(found, most), most, None)
  if fields['axes'] > found.spatial:
    raise errors.UserError(
      f'{first.name} takes images in {fields["axes"]}D, those of {found.folder.root} are '
      f'{found.spatial}D'
    )
  for path, network in loaded.values():
    if network.channels != found.channels:
      raise errors.UserError(
        f'{path or network.name} takes {network.channels} channels, the images of '
        f'{found.folder.root} have {found.channels}'
      )
  guess = _guess(found)
  describe = functools.partial(
    description.make, guesses=guess, affines=[one.affine for one in found.surveys]
  )
  described = {
    name: describe(network, flags, path=pathlib.Path(path) if path else None)
    for name, (path, network) in loaded.items()
  }
  spacing = {one.input.spacing for one in described.values()}
  if len(spacing) > 1:
    raise errors.UserError('config.networks: networks of unequal input.spacing; audit them apart')
  units = {normalise.OF_CASE.get(one.input.normalise, 'stored') for one in described.values()}
  if len(units) > 1:
    raise errors.UserError(
      'config.networks: networks whose input.normalise is by the whole case and others; audit them '
      'apart'
    )
  multiple = math.lcm(
    *(1 if one.input.window else loaded[name][1].multiple() for name, one in described.items())
  )
  fields |= {'multiple': (multiple,) * fields['axes'], 'intensity': units.pop()}
  found = study_of({**fields, 'spacing': spacing.pop()})
  if all(grid.shape == old.shape for grid, old in zip(found.grids, study_of(fields).grids)):
    found = study_of(fields)  # that is their spacing
  fields['spacing'] = found.fields['spacing']
  audited = {
    name: _audited(loaded[name][1], one, found, multiple) for name, one in described.items()
  }
  made = threat.make(found, config.threat.to_dict(), config.evaluate.levels)
  chosen = _chosen(found, most)
  cases = [places(found)[at] for at in chosen]
  distances = surfaces.plan(found, cases, tolerance=config.report.tolerance)
  return Setup(fields, found, audited, made, chosen, most, distances)


def study_of(fields) -> studies.Study:
  make = phantom.make_study if fields['name'] == 'phantom_labelled' else studies.make
  return make(fields)


def _names(paths: Sequence[str]) -> dict[str, str]:
  """{name of an arm: path}: the file's name, or that of its folder too, letters and digits."""
  paths = [path.strip() for path in paths]
  safe = lambda text: re.sub(r'[^0-9A-Za-z]+', '_', text).strip('_') or 'network'
  stems = [safe(pathlib.Path(path).stem) for path in paths]
  if len(set(stems)) < len(stems):
    stems = [safe('_'.join(pathlib.Path(path).with_suffix('').parts[-2:])) for path in paths]
  if len(set(stems)) < len(stems):
    raise errors.UserError(f'config.networks: {", ".join(paths)} have equal names; rename one')
  return dict(zip(stems, paths))


def _slice_axis(fields, loaded) -> int:
  """The axis across slices: of data.slice_axis, or that of the networks."""
  known = {network.slice_axis for network in loaded} - {-1}
  if fields['slice_axis'] >= 0 or not known:
    return fields['slice_axis']
  if len(known) > 1:
    raise errors.UserError(
      'config.networks: networks of slices across unequal axes; set data.slice_axis'
    )
  return known.pop()


def _guess(found: studies.Study) -> dict[str, Any]:
  kinds = {np.dtype(one.dtype) for one in found.surveys}
  if kinds <= {np.dtype(np.uint8), np.dtype(bool)}:
    return {'input.normalise': 'scale:255'}
  return {}


def _audited(network, described, found, multiple) -> Audited:
  window = described.input.window or found.window
  order = ['zyx'[-network.axes :].index(letter) for letter in described.input.letters]
  turned = window if described.input.window else tuple(window[n] for n in order)
  count = network.output_shape(tuple(turned))[-1]
  if found.regions and count != len(found.classes) and network.activation != 'regions':
    raise errors.UserError(
      f'{found.folder.root} has regions ({", ".join(found.regions)}): a network needs a channel '
      f'for each label, {network.name} has {count}'
    )
  given = segmentation.matched_names(
    described.output.classes, network.values, classes=found.classes, values=found.values
  )
  names, origin = segmentation.channel_names(network, given, count, found.classes)
  if given != described.output.classes:
    origin = f'{described.origin["output.classes"]}, as the folder names them'
  elif origin:
    origin = f'guess: {origin}'
  described = described._replace(output=described.output._replace(classes=names))
  if origin:
    told = {**described.origin, 'output.classes': origin}
    described = described._replace(origin=told)
  lines = [f'{network.name}: {line}' for line in described.lines]
  if not described.input.window:
    lines.append(f'{network.name}: whole images, sides in multiples of {multiple} (tried)')
  lines += [f'{network.name}: {note}' for note in network.notes]
  return Audited(network, described, tuple(lines))


def tasks(setup: Setup) -> dict[str, types.Task]:
  """Returns the task of every network, on stored images, attacked in the units of the levels."""
  space = setup.threat.space()
  return {name: task._replace(space=space) for name, task in _tasks(setup).items()}


def _tasks(setup: Setup) -> dict[str, types.Task]:
  found = setup.study
  if setup.part is not label_maps:
    units = setup.threat.units
    return {
      name: own_data.with_case(as_task(one.network, *setup.part.make_task(found, one, units=units)))
      for name, one in setup.audited.items()
    }
  names = own_data.names(setup)
  regions = dict(zip(names, found.regions.values())) if found.regions else None
  shape = (*found.window, found.channels)
  made = {}
  for name, one in setup.audited.items():
    task = task_of_label_maps.make(
      None,
      image_shape=shape,
      classes=names if regions is None else found.classes[1:],
      regions=regions,
      units=setup.threat.units,
    )
    predict = segmentation.predictor(one.network, one.described, classes=found.classes)
    made[name] = own_data.with_case(as_task(one.network, task, predict))
  return made


def places(found: studies.Study) -> list[int]:
  """Returns the case of every example of the test split."""
  return [n for n in found.partition.parts['test'] for _ in found.shown(n)]


def _chosen(found: studies.Study, most: int) -> tuple[int, ...]:
  count = len(places(found))
  if not count:
    raise errors.UserError(f'{found.folder.root} has no test cases; set data.split=all')
  if not most or count <= most:
    return tuple(range(count))
  return tuple((2 * part + 1) * count // (2 * most) for part in range(most))


def sizes(setup: Setup) -> dict[str, int]:
  return {**data.sizes(setup.fields), 'test': len(setup.chosen)}


def groups(setup: Setup) -> int:
  cases = places(setup.study)
  return len({setup.study.partition.patients[cases[at]] for at in setup.chosen})


class _Sized(store.Split):
  """A split whose examples know the scale of their attack."""

  def __init__(self, whole: store.Split, made: threat.Threat):
    self.groups = whole.groups
    self._whole, self._made = whole, made

  def __len__(self) -> int:
    return len(self._whole)

  def __getitem__(self, index) -> dict[str, Any]:
    found = self._whole[index]
    return {**found, **self._made.sizes(int(found['case']))}


def load(setup: Setup, made: Mapping[str, types.Task]):
  """Returns the source with the examples that are attacked, whose outputs are finite."""
  source = data.load(setup.fields)
  test = _Sized(store.Part(source.test, setup.chosen), setup.threat)

  maps = setup.part is label_maps
  window = setup.study.window
  crop = label_maps.crop_of(setup) if maps else source.crop
  train, drawn = source.train, source.sampling
  if len(train) and maps:
    train, drawn = _Sized(train, setup.threat), drawn
    patch = tuple(setup.fields['patch']) or window
    drawn = drawn._replace(crop=label_maps.padded(setup, drawn.crop, patch))

  # Weights may lie in files of their own beside the network's.
  digests = {name: digest_of(one.network.variables) for name, one in setup.audited.items()}
  info = {
    **source.info,
    'fingerprint': {
      'data': source.info['fingerprint'],
      'weights': digests,
      'networks': {name: one.network.digest for name, one in setup.audited.items()},
    },
    'name': f'{source.info["name"]}, with the networks',
  }
  _check_outputs(setup, made, crop(test[0]))
  return source._replace(train=train, test=test, sampling=drawn, crop=crop, info=info)


def _check_outputs(setup, made, first) -> None:
  for name, task in made.items():
    outputs = task.predict(task.init(None), jnp.asarray(first['image'])[None])
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(outputs)):
      raise errors.UserError(
        f'{setup.audited[name].network.name} gives NaN or infinite outputs on the case '
        f'{first["name"]}; check input.normalise '
        f'({setup.audited[name].described.input.normalise}) and the file'
      )


def data_digest(setup: Setup) -> str:
  """Returns the sha256 of all images and label maps, as far as their values go."""
  found = hashlib.sha256()
  for case, one in zip(setup.study.folder.cases, setup.study.surveys):
    found.update(json.dumps([case.name, one.digest, list(one.shape), list(one.values)]).encode())
    label = case.label
    found.update(label.read_bytes() if isinstance(label, pathlib.Path) else repr(label).encode())
  return found.hexdigest()
