"""A folder of labelled images of any organ: layouts as in `layouts`, formats as in `formats`.

2D or 3D, any number of channels and classes. The fields and their defaults are in
`study.DEFAULTS`; `study.lines` says in words what was recognised and chosen.

Segmentation: an example is a case, or with `axes` 2 a slice of a volume. It has 'image'
[*spatial, c] in the units of the field `intensity` (`units.of`), 'labels' [*spatial] (number of the
class, 0 the background), 'counted' [*spatial] (False where the label is the ignored one; only in
folders that have one), 'units' [2, c] (stored value = image * units[1] + units[0]), 'spacing' (of
its axes), 'case', 'slice', 'index', 'group' (the patient) and 'name'.

What a result needs to be written back in patient space (files, grid, affine, stored type) is in
`Source.info['cases']`, by 'case'; see `writing`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed.data import store
from robustmed.data.files import cubes, threads
from robustmed.data.labelled import kinds, masks, sampling, study, survey, units

DEFAULTS = study.DEFAULTS
NOMINAL = {'train': 10, 'test': 2}
_BYTES, _ZLIB = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB
# Fields that choose among the examples, or change what is seen of them.
_VIEWS = ('dir', 'slices_per_case', 'intensity', 'ct_range', 'patch', 'multiple')


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the examples per split; without the folder, nominal ones."""
  if not fields['dir']:
    return dict(NOMINAL)
  return counts(study.make(fields))


def counts(found: study.Study) -> dict[str, int]:
  """Returns the examples per split."""
  sizes = {part: sum(found.grids[n].slices for n in c) for part, c in found.partition.parts.items()}
  sizes['test'] = sum(len(found.shown(n)) for n in found.partition.parts['test'])
  return {'train': 0, **sizes}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of patients of the test split; without the folder, a nominal one."""
  if not fields['dir']:
    return NOMINAL['test']
  return patients(study.make(fields))


def patients(found: study.Study) -> int:
  """Returns the number of patients of the test split."""
  return len({found.partition.patients[n] for n in found.partition.parts['test']})


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, the splits and the geometry."""
  found = study.make(fields)
  return {'files': survey.key(found.folder), **content(found)}


def content(found: study.Study) -> dict[str, Any]:
  """Returns what the examples depend on besides the files."""
  return {
    'version': survey.VERSION,
    'parts': found.partition.parts,
    'groups': found.groups(),
    'values': found.values,
    **{name: found.fields[name] for name in DEFAULTS if name not in _VIEWS},
  }


class Labelled(store.Builder):
  """Builds 'train', 'test' and 'validation', as far as the folder or the fields have them."""

  def known(self) -> study.Study:
    return study.make(self.fields)

  def read(self, found: study.Study, number: int) -> tuple[np.ndarray, np.ndarray]:
    return read_case(found, number)

  def features(self):
    found = self.known()
    if found.folder.kind == 'segmentation':
      return segmentation_features(found)
    return kinds.features(found)

  def splits(self):
    found = self.known()
    self.facts = {
      'cases': study.facts_of(found),
      'present': {part: [] for part in found.partition.parts},
      'case': {part: [] for part in found.partition.parts},
      'slice': {part: [] for part in found.partition.parts},
    }
    first, result = 0, {}
    for part, chosen in found.partition.parts.items():
      make = self._volumes if found.folder.kind == 'segmentation' else self._pictures
      result[part] = make(found, part, chosen, first=first)
      first += sum(found.grids[n].slices for n in chosen)
    return result

  def _pictures(self, found, part, chosen, *, first) -> Iterator[dict[str, Any]]:
    groups = found.groups()
    read = lambda n: (n, survey.read_image(found.folder.cases[n])[0])
    images = threads.map_in_order(read, chosen, name=f'{part} images')
    for index, (number, image) in enumerate(images, start=first):
      row = kinds.row(found, number, image, self.counts)
      yield {**row, 'group': groups[number], 'index': index}

  def _volumes(self, found, part, chosen, *, first) -> Iterator[dict[str, Any]]:
    groups = found.groups()
    read = threads.map_in_order(lambda n: (n, self.read(found, n)), chosen, name=f'{part} cases')
    for number, (image, labels) in read:
      case, grid = found.folder.cases[number], found.grids[number]
      whole = found.axes == found.spatial
      for place in range(grid.slices):
        cut = ... if whole else (slice(None),) * found.axis + (place,)
        one, numbers = resampled(image[cut], labels[cut], grid.shape)
        self.facts['present'][part].append(_bits(numbers))
        self.facts['case'][part].append(number)
        self.facts['slice'][part].append(place)
        row = {
          'image': one,
          'labels': np.maximum(numbers, 0),
          'units': np.stack([np.zeros(one.shape[-1]), np.ones(one.shape[-1])]).astype(np.float32),
          'spacing': np.array(grid.spacing, np.float32),
          'case': number,
          'slice': place,
          'group': groups[number],
          'index': first,
          'name': case.name if whole else f'{case.name}_{place:03d}',
        }
        if found.folder.ignore is not None:
          row['counted'] = numbers >= 0
        yield row
        first += 1


def segmentation_features(found: study.Study) -> tfds.features.FeaturesDict:
  tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
  grid = (None,) * found.axes
  features = {
    'image': tensor(shape=(*grid, found.channels), dtype=np.float32, encoding=_BYTES),
    'labels': tensor(shape=grid, dtype=np.int16, encoding=_ZLIB),
    'units': tensor(shape=(2, found.channels), dtype=np.float32),
    'spacing': tensor(shape=(found.axes,), dtype=np.float32),
    **{name: scalar(dtype=np.int32) for name in ('case', 'slice', 'group', 'index')},
    'name': tfds.features.Text(),
  }
  if found.folder.ignore is not None:
    features['counted'] = tensor(shape=grid, dtype=np.bool_, encoding=_ZLIB)
  return tfds.features.FeaturesDict(features)


def read_case(found: study.Study, number: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image [*spatial, c] float32, as stored, and the classes [*spatial] int16.

  Voxels of the ignored label are -1.
  """
  case = found.folder.cases[number]
  numbers = masks.read(case.label, picture=found.picture).numbers
  image, _ = survey.read_image(case, rank=numbers.ndim)
  survey.check_shapes(case, image, numbers)
  classes = np.zeros(numbers.shape, np.int16)
  for place, value in enumerate(found.values):
    classes[numbers == value] = place
  if found.folder.ignore is not None:
    classes[numbers == found.folder.ignore] = -1
  return image, classes


def resampled(image, labels, shape) -> tuple[np.ndarray, np.ndarray]:
  """Returns one example on the grid `shape`: the image linearly, labels by nearest voxel."""
  if labels.shape == tuple(shape):
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)
  return cubes.resize(image, shape, order=1), cubes.resize(labels, shape, order=0)


def _bits(classes) -> int:
  """The foreground classes that are shown, as bits: bit 0 is class 1."""
  return sum(1 << int(k) - 1 for k in np.unique(classes) if k > 0)


class Scaled(store.Split):
  """A split with images in other units: image = (stored - shift) / scale of its case."""

  def __init__(self, whole: store.Split, made: units.Units):
    self.groups = whole.groups
    self._whole, self._made = whole, made

  def __len__(self) -> int:
    return len(self._whole)

  def __getitem__(self, index) -> dict[str, Any]:
    example = self._whole[index]
    case = int(example['case'])
    both = np.stack([self._made.shift[case], self._made.scale[case]]).astype(np.float32)
    return {**example, 'image': (example['image'] - both[0]) / both[1], 'units': both}


def arrange(source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  """Returns the source in the units of `intensity`, with its test slices, sampling and window."""
  return arranged(source, study.make(fields), facts)


def arranged(source, found: study.Study, facts: Mapping[str, Any]):
  if found.folder.kind != 'segmentation':
    return source._replace(info=info_of(found, facts))
  made = units.of(found)
  scaled = lambda split: split if made.name == 'stored' else Scaled(split, made)
  test = [
    place
    for place, (case, piece) in enumerate(zip(facts['case']['test'], facts['slice']['test']))
    if piece in found.shown(case)
  ]
  patch, picked = tuple(found.fields['patch']) or found.window, source.sampling
  if len(source.train):
    picked = sampling.sampling(facts['case']['train'], facts['present']['train'], patch=patch)
  whole = scaled(source.test)
  return source._replace(
    train=scaled(source.train) if len(source.train) else source.train,
    test=store.Part(whole, test),
    validation=scaled(source.validation) if source.validation else None,
    volumes=whole,
    sampling=picked,
    crop=sampling.centred(found.window),
    info={**info_of(found, facts), 'units': f'{made.words}; {made.detail}', 'patch': list(patch)},
  )


def info_of(found: study.Study, facts: Mapping[str, Any]) -> dict[str, Any]:
  return {
    'cases': facts['cases'],
    'classes': list(found.classes),
    'values': list(found.values),
    'regions': {name: list(several) for name, several in found.regions.items()},
    'kind': found.folder.kind,
    'axis': found.axis if found.axes < found.spatial else -1,
    'window': list(found.window),
    'lines': study.lines(found),
  }


Builder = Labelled
