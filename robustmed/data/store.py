"""Builds a source once as ArrayRecord files and gives random access to them, without TensorFlow."""

import abc
import collections
import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.process import checksums, files, leftovers

_AGAIN = 'remove that folder; the next run builds it again'
KEEP_BYTES = 512 * 2**20  # splits up to this size are kept in memory, decoded, once read


class _Info(tfds.core.DatasetInfo):
  """Is not looked up among the data sets of TFDS, which leaves an empty temporary folder."""

  def initialize_from_bucket(self):
    pass


class Builder(tfds.core.GeneratorBasedBuilder):
  """Base class of every source: stores examples in the order of `splits`, floats checked as finite.

  A subclass defines `features` and `splits`; `fields` are its settings, plain data. Every example
  has 'image' [*spatial, c], 'index' (unique over all splits), 'group' and 'name'; all other
  features become the target of a batch.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, fields: Mapping[str, Any], data_dir: str):
    self.fields = dict(fields)
    self.counts = collections.Counter()  # of what a source left out or repaired, for the user
    self.facts = {}  # plain data about the whole set, stored with it
    super().__init__(data_dir=data_dir, file_format='array_record')

  @abc.abstractmethod
  def features(self) -> tfds.features.FeaturesDict:
    """Returns the features for these fields."""

  @abc.abstractmethod
  def splits(self) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Returns the examples of each split; malformed input is a `UserError` that names the file."""

  def _info(self):
    return _Info(builder=self, features=self.features(), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    with report_read_errors(self.name):
      rows = self.splits()
    self.groups = {name: [] for name in rows}  # filled as the examples are written
    return {name: self._generate_examples(name, rows[name]) for name in rows}

  def _generate_examples(self, split, rows):
    for position, row in enumerate(_read_through(rows, self.name)):
      self.groups[split].append(int(row['group']))
      for key, value in row.items():
        if np.asarray(value).dtype.kind == 'f' and not np.isfinite(value).all():
          raise errors.UserError(f'{row["name"]}: {key} has values that are not finite')
      yield position, row


@contextlib.contextmanager
def report_read_errors(source: str):
  """Raises a `UserError` for an `OSError` of reading files; `prepare` does so for writing."""
  try:
    yield
  except OSError as error:
    where = error.filename or 'its files'
    raise errors.UserError(
      f'data source {source} cannot read {where}: {error.strerror or error}; check that it is '
      'there, that you may read it and that its disk works'
    ) from error


def _read_through(rows, source):
  rows = iter(rows)
  while True:
    with report_read_errors(source):
      try:
        row = next(rows)
      except StopIteration:
        return
    yield row


class Split:
  """Random access to one prepared split: `len`, and `[i]` -> dict of numpy arrays.

  `groups` has the group of every example, known without reading them. The arrays are read-only:
  small splits stay in memory and are shared by all readers.
  """

  def __init__(self, data_source, groups: list[int], *, folder: pathlib.Path | None = None):
    self.groups = tuple(groups)
    self._source, self._folder = data_source, folder
    self._kept: dict[int, dict[str, Any]] | None = None

  def __len__(self) -> int:
    return len(self._source)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index) -> dict[str, Any]:
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(f'{index} of {len(self)}')
    if self._kept is not None and index in self._kept:
      return self._kept[index]
    example = self._read(index)
    for key, value in example.items():
      if isinstance(value, np.ndarray):
        value.setflags(write=False)
      elif isinstance(value, bytes):
        example[key] = value.decode()
    if self._kept is None:
      size = sum(np.asarray(value).nbytes for value in example.values())
      self._kept = {} if size * len(self) <= KEEP_BYTES else None
    if self._kept is not None:
      self._kept[index] = example
    return example

  def _read(self, index):
    try:
      return dict(self._source[index])
    except (RuntimeError, ValueError, zlib.error) as error:
      if self._folder is None:
        raise
      raise _damaged(self._folder, error) from error

  def stack(self, feature: str) -> np.ndarray:
    """Returns one feature of all examples, [n, ...]."""
    return np.stack([example[feature] for example in self])


class Part(Split):
  """The subset of a split at `positions`, in that order."""

  def __init__(self, whole: Split, positions: Sequence[int]):
    self.groups = tuple(whole.groups[position] for position in positions)
    self._whole, self._positions = whole, tuple(positions)

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f'{index} of {len(self)}')
    return self._whole[self._positions[int(index)]]


def cache_root(cache_dir: str | None) -> pathlib.Path:
  """Returns the folder of prepared data: `cache_dir`, $ROBUSTMED_CACHE, else ~/.cache/robustmed."""
  chosen = cache_dir or os.environ.get('ROBUSTMED_CACHE') or '~/.cache/robustmed'
  return pathlib.Path(chosen).expanduser()


def location(builder_class: type[Builder], *, root: pathlib.Path, fingerprint: Any) -> pathlib.Path:
  """Returns the folder in which `prepare` puts what it builds."""
  text = json.dumps([builder_class.name, str(builder_class.VERSION), fingerprint], sort_keys=True)
  return root / builder_class.name / hashlib.sha256(text.encode()).hexdigest()[:16]


def is_prepared(folder: pathlib.Path) -> bool:
  return (folder / 'dataset_info.json').is_file()


def prepare(
  builder_class: type[Builder],
  fields: Mapping[str, Any],
  *,
  root: pathlib.Path,
  fingerprint: Any,
) -> tuple[dict[str, Split], pathlib.Path]:
  """Returns the splits and the folder that holds them; builds them if the folder is not there.

  `fingerprint` (plain data) is all that the content depends on. The folder appears complete or not
  at all; of several processes that prepare it at once, all use the folder of the first.
  """
  folder = location(builder_class, root=root, fingerprint=fingerprint)
  if not is_prepared(folder):
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
      leftovers.sweep(folder.parent)
      suffix = f'.{leftovers.owner()}.tmp'
      with tempfile.TemporaryDirectory(
        prefix='.building-', suffix=suffix, dir=folder.parent
      ) as temporary:
        _build(builder_class, fields, temporary=temporary, folder=folder)
    except (OSError, RuntimeError) as error:
      code = files.os_error(error)
      if code is None and not isinstance(error, OSError):
        raise
      reason = os.strerror(code) if code else error
      raise errors.UserError(
        f'cannot write prepared data to {folder.parent}: {reason}; '
        'set the data field cache_dir or $ROBUSTMED_CACHE to a writable folder with space'
      ) from error
  checksums.check_list(folder, help_text=_AGAIN)
  try:
    builder = tfds.builder_from_directory(str(folder))
    groups = files.parsed_json(folder / 'groups.json', help_text=_AGAIN)
    splits = {
      name: Split(builder.as_data_source(name), groups[name], folder=folder) for name in groups
    }
  except errors.UserError:
    raise
  except Exception as error:  # TFDS and protobuf raise their own kinds
    raise _damaged(folder, error) from error
  return splits, folder


def _damaged(folder, error) -> errors.UserError:
  reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
  return errors.UserError(f'the prepared data in {folder} are damaged ({reason}); {_AGAIN}')


def free_bytes(folder: pathlib.Path) -> int:
  """What the disk of a folder has free, also of a folder that is yet to be made."""
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free


def amount(size: float) -> str:
  """A number of bytes for people."""
  return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


def counts(folder: pathlib.Path) -> dict[str, int]:
  """Returns the `Builder.counts` of a folder of prepared data; {} if there are none."""
  path = folder / 'counts.json'
  return files.parsed_json(path, help_text=_AGAIN) if path.is_file() else {}


def facts(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the `Builder.facts` of a folder of prepared data; {} if there are none."""
  path = folder / 'facts.json'
  return files.parsed_json(path, help_text=_AGAIN) if path.is_file() else {}


def _build(builder_class, fields, *, temporary, folder):
  with _quiet():
    builder = builder_class(fields=fields, data_dir=temporary)
    builder.download_and_prepare()
  for name in ('groups', 'counts', 'facts'):
    path = pathlib.Path(builder.data_dir, f'{name}.json')
    path.write_text(json.dumps(getattr(builder, name)), encoding='utf-8')
  checksums.write_list(pathlib.Path(builder.data_dir))
  try:
    os.rename(builder.data_dir, folder)
  except OSError:
    if not is_prepared(folder):  # else another process was faster
      raise


@contextlib.contextmanager
def _quiet():
  """Hides the output of TFDS on stdout, which is for results, and its progress bars."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
