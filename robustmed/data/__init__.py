"""Data sources by name; each has a train and a test split with random access.

Every module of `SOURCES` has `DEFAULTS` (its fields), `sizes(fields)` (examples per split, also
without the data), `fingerprint(fields)` (all that the content depends on; checks the fields) and
`Builder` (a `store.Builder`). It may have `arrange(source, fields, facts)`, which returns the
`Source` with all that depends on the fields but is not stored: its views, sampling and crop, with
`windows(fields)`, the grids (spatial sizes) of examples in training and evaluation, where they are
not those that are stored; `features(fields)` where the Builder's need the data; and, where examples
are slices, `depths(fields)`, the number of slices of every test volume; others have
`groups(fields)`, the number of groups of the test split.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from robustmed import errors
from robustmed.data import pipeline, store
from robustmed.data.abdomen import abdomen
from robustmed.data.abdomen import phantom as phantom_abdomen
from robustmed.data.brain import brats
from robustmed.data.brain import phantom as phantom_brats
from robustmed.data.cells import bccd
from robustmed.data.cells import phantom as phantom_bccd
from robustmed.data.cephalograms import ceph
from robustmed.data.cephalograms import phantom as phantom_ceph
from robustmed.data.chest import luna16
from robustmed.data.chest import phantom as phantom_nodules
from robustmed.data.decathlon import msd, phantom_heart, phantom_hippocampus, phantom_prostate
from robustmed.data.labelled import labelled
from robustmed.data.labelled import phantom as phantom_labelled
from robustmed.data.spine import disk_masks, lumbar_disks, spider, ssmspine
from robustmed.data.spine import phantom as phantom_lumbar_disks

SOURCES = {
  'abdomen': abdomen,
  'bccd': bccd,
  'brats': brats,
  'ceph': ceph,
  'disk_masks': disk_masks,
  'labelled': labelled,
  'lumbar_disks': lumbar_disks,
  'luna16': luna16,
  'msd': msd,
  'phantom_abdomen': phantom_abdomen,
  'phantom_bccd': phantom_bccd,
  'phantom_brats': phantom_brats,
  'phantom_ceph': phantom_ceph,
  'phantom_heart': phantom_heart,
  'phantom_hippocampus': phantom_hippocampus,
  'phantom_labelled': phantom_labelled,
  'phantom_lumbar_disks': phantom_lumbar_disks,
  'phantom_nodules': phantom_nodules,
  'phantom_prostate': phantom_prostate,
  'spider': spider,
  'ssmspine': ssmspine,
}
_COMMON = {'name': None, 'cache_dir': ''}


class Source(NamedTuple):
  """The splits of a source: `len(split)`, `split[i]` -> dict of arrays, `split.stack(feature)`.

  Where examples differ in size, `sampling` (training) and `crop` (evaluation) give them one shape.
  """

  train: store.Split
  test: store.Split
  validation: store.Split | None = None
  info: Mapping[str, Any] = {}
  volumes: store.Split | None = None  # every slice of the test volumes, also those not in `test`
  sampling: pipeline.Sampling = pipeline.Sampling()
  crop: pipeline.Crop = lambda example: example


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a source: its defaults, replaced by those in `config`.

  An unknown field, or a value of another type than the default's, is a `UserError`.
  """
  config = dict(config)
  source = errors.lookup(SOURCES, config.get('name'), kind='data source')
  known = {**_COMMON, **source.DEFAULTS}
  for name, value in config.items():
    default = errors.lookup(known, name, kind=f'field of data source {config["name"]}')
    if value is None and name in _COMMON:
      continue
    want = str if default is None else (int, float) if isinstance(default, float) else type(default)
    if isinstance(value, pathlib.Path):
      config[name] = value = str(value)
    if not isinstance(value, want) or isinstance(value, bool) != isinstance(default, bool):
      raise errors.UserError(f'data field {name} must be like {default!r}, not {value!r}')
  return {**known, **config}


def source_config(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the `config` of `load` for the `data` of a configuration: its 'source' as 'name', and
  the fields that this source has."""
  fields = dict(fields)
  name = fields.pop('source')
  known = (*errors.lookup(SOURCES, name, kind='data source').DEFAULTS, 'cache_dir')
  return {'name': name, **{key: value for key, value in fields.items() if key in known}}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of examples per split, for most sources a nominal one without the data."""
  fields = fields_of(config)
  return SOURCES[fields['name']].sizes(fields)


class Shapes(NamedTuple):
  """{feature: shape and dtype} of an example, without those that are not in batches."""

  train: Mapping[str, jax.ShapeDtypeStruct]
  test: Mapping[str, jax.ShapeDtypeStruct]


def shapes(config: Mapping[str, Any]) -> Shapes:
  """Returns the shapes of examples as batches hold them, from the fields alone."""
  fields = fields_of(config)
  source = SOURCES[fields['name']]
  if hasattr(source, 'features'):
    features = source.features(fields)
  else:
    builder = source.Builder.__new__(source.Builder)  # its making would touch the disk
    builder.fields = fields
    features = builder.features()
  whole = lambda dtype: np.dtype(np.int32) if dtype.kind == 'i' else dtype
  stored = {
    name: (tuple(one.shape), whole(np.dtype(one.np_dtype)))
    for name, one in features.items()
    if name != 'name'
  }
  grid = stored['image'][0][:-1]

  def on(window):
    moved = lambda shape: (*window, *shape[len(grid) :]) if shape[: len(grid)] == grid else shape
    return {
      name: jax.ShapeDtypeStruct(moved(shape), dtype) for name, (shape, dtype) in stored.items()
    }

  return Shapes(*map(on, source.windows(fields) if hasattr(source, 'windows') else (grid, grid)))


def depths(config: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the number of slices of every test volume in the order of the groups.

  Slices that are not in the test split count, too. () where examples are not slices of volumes; for
  most sources nominal numbers without the data.
  """
  fields = fields_of(config)
  source = SOURCES[fields['name']]
  return tuple(source.depths(fields)) if hasattr(source, 'depths') else ()


def groups(config: Mapping[str, Any]) -> int:
  """Returns the number of groups of the test split, nominal as `sizes`.

  There may be fewer, where volumes or exams have nothing to be tested on.
  """
  fields = fields_of(config)
  source = SOURCES[fields['name']]
  return source.groups(fields) if hasattr(source, 'groups') else len(depths(config))


def load(config: Mapping[str, Any]) -> Source:
  """Returns the source that `config` (plain data with a 'name') describes; prepares it if needed.

  info: 'name'; 'sizes' per split; 'groups' (number of patients, volumes, ...) per split; 'folder'
  of the prepared data; 'fingerprint', equal if and only if the content was made of the same files
  and fields; 'counts' of what the source left out or repaired; and entries of the source itself.
  """
  fields = fields_of(config)
  source = SOURCES[fields['name']]
  with store.report_read_errors(fields['name']):
    fingerprint = source.fingerprint(fields)
  splits, folder = store.prepare(
    source.Builder,
    fields,
    root=store.cache_root(fields['cache_dir']),
    fingerprint=fingerprint,
  )
  splits = {'train': store.Split([], []), **splits}  # a source may have test examples alone
  result = Source(**splits)
  if hasattr(source, 'arrange'):
    result = source.arrange(result, fields, store.facts(folder))
  named = dict.fromkeys((*splits, 'validation'))  # which may be cut out of what is stored
  splits = {name: part for name in named if (part := getattr(result, name)) is not None}
  info = {
    'name': fields['name'],
    'sizes': {name: len(split) for name, split in splits.items()},
    'groups': {name: len(set(split.groups)) for name, split in splits.items()},
    'folder': str(folder),
    'fingerprint': folder.name,
    'counts': store.counts(folder),
  }
  return result._replace(info={**info, **result.info})
