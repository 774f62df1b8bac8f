import contextlib
import errno
import multiprocessing
import os
import pathlib
import tempfile

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data import store
from robustmed.data.spine import phantom
from robustmed.process import checksums, leftovers
from support import toys


def test_split_is_random_access_to_read_only_arrays(small):
  split = small.train
  assert len(split) == 15 and len(list(split)) == 15
  example = split[np.int64(4)]
  assert example['name'] == 'phantom0001_2' and example['index'] == 4 and example['group'] == 1
  with pytest.raises(ValueError, match='read-only'):
    example['image'][0] = 1
  for beyond in (15, -1):
    with pytest.raises(IndexError):
      split[beyond]


def test_stack_is_in_order(small):
  stacked = small.train.stack('contour')
  assert stacked.shape == (15, 176, 2)
  np.testing.assert_array_equal(stacked[7], small.train[7]['contour'])
  np.testing.assert_array_equal(small.train.stack('group'), small.train.groups)


def test_large_splits_are_not_kept(small, monkeypatch):
  monkeypatch.setattr(store, 'KEEP_BYTES', 100)
  reader = store.Split(small.train._source, list(small.train.groups))
  first, second = reader[2], reader[2]
  assert first is not second
  np.testing.assert_array_equal(first['image'], second['image'])
  assert small.train[2] is small.train[2]


def _prepare(root, barrier, queue):
  fields = {**phantom.DEFAULTS, 'side': 16, 'train_patients': 12, 'test_patients': 2}
  barrier.wait()
  source = data.load({**fields, 'name': 'phantom_lumbar_disks', 'cache_dir': str(root)})
  queue.put((source.info['folder'], float(source.train.stack('image').sum())))


def test_two_processes_prepare_at_once(tmp_path):
  context = multiprocessing.get_context('spawn')
  barrier, queue = context.Barrier(2), context.Queue()
  workers = [context.Process(target=_prepare, args=(tmp_path, barrier, queue)) for _ in range(2)]
  for worker in workers:
    worker.start()
  results = [queue.get(timeout=120) for _ in workers]
  for worker in workers:
    worker.join()
    assert worker.exitcode == 0
  assert results[0] == results[1]
  left = [path.name for path in (tmp_path / 'phantom_lumbar_disks').iterdir()]
  assert left == [pathlib.Path(results[0][0]).name]  # one result and no temporary folder


def test_the_slower_process_takes_what_the_faster_made(tmp_path, monkeypatch):
  fields = {**phantom.DEFAULTS, 'side': 16, 'train_patients': 1, 'test_patients': 1}
  config = {**fields, 'name': 'phantom_lumbar_disks', 'cache_dir': str(tmp_path)}
  build = store._build

  def overtaken(*args, **kwargs):
    monkeypatch.setattr(store, '_build', build)
    overtaken.folder = data.load(config).info['folder']
    overtaken.time = pathlib.Path(overtaken.folder).stat().st_mtime_ns
    build(*args, **kwargs)

  monkeypatch.setattr(store, '_build', overtaken)
  source = data.load(config)
  assert source.info['folder'] == overtaken.folder and len(source.train) == 5
  assert pathlib.Path(overtaken.folder).stat().st_mtime_ns == overtaken.time
  assert len(list((tmp_path / 'phantom_lumbar_disks').iterdir())) == 1


def test_nothing_is_left_when_building_is_cut_short(tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise RuntimeError('bug')

  monkeypatch.setattr(phantom, 'draw_patient', broken)
  with pytest.raises(RuntimeError, match='bug'):
    data.load({'name': 'phantom_lumbar_disks', 'side': 16, 'cache_dir': str(tmp_path)})
  assert list((tmp_path / 'phantom_lumbar_disks').iterdir()) == []


def test_values_that_are_not_finite_are_named(tmp_path, monkeypatch):
  draw = phantom.draw_patient

  def spoilt(*args, **kwargs):
    contour, image = draw(*args, **kwargs)
    image[1, 3, 3] = np.nan
    return contour, image

  monkeypatch.setattr(phantom, 'draw_patient', spoilt)
  with pytest.raises(errors.UserError, match='phantom0000_2: image has values that are not finite'):
    data.load({'name': 'phantom_lumbar_disks', 'side': 16, 'cache_dir': str(tmp_path)})


def test_a_cache_that_cannot_be_written(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  with pytest.raises(errors.UserError, match=r'cannot write prepared data to .*ROBUSTMED_CACHE'):
    data.load({'name': 'phantom_lumbar_disks', 'side': 16, 'cache_dir': str(blocked)})


SMALL = {'name': 'phantom_lumbar_disks', 'side': 16, 'train_patients': 1, 'test_patients': 1}


@pytest.mark.parametrize('place', ['first', 'later', 'fingerprint'])
def test_files_that_cannot_be_read_are_not_a_cache_that_cannot_be_written(
  place, tmp_path, monkeypatch
):
  def vanished(*args, **kwargs):
    return (tmp_path / 'gone' / 'p_1.npz').read_bytes()

  if place == 'fingerprint':
    monkeypatch.setattr(phantom, 'fingerprint', vanished)
  if place == 'first':
    monkeypatch.setattr(phantom.Builder, 'splits', vanished)
  if place == 'later':
    monkeypatch.setattr(phantom, 'draw_patient', vanished)
  message = r'phantom_lumbar_disks cannot read .*gone/p_1\.npz: No such file'
  with pytest.raises(errors.UserError, match=message) as caught:
    data.load({**SMALL, 'cache_dir': str(tmp_path / 'cache')})
  assert 'cache_dir' not in str(caught.value)
  assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_a_full_cache_is_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'shard')

  monkeypatch.setattr(store.os, 'rename', full)
  with pytest.raises(
    errors.UserError, match=r'cannot write prepared data.*No space left.*cache_dir'
  ):
    data.load({**SMALL, 'cache_dir': str(tmp_path)})
  assert list((tmp_path / 'phantom_lumbar_disks').iterdir()) == []


def test_prepared_data_that_were_damaged_are_named(tmp_path):
  fields = {**phantom.DEFAULTS, 'side': 16, 'train_patients': 12, 'test_patients': 2}
  fields |= {'name': 'phantom_lumbar_disks', 'cache_dir': str(tmp_path)}
  folder = pathlib.Path(data.load(fields).info['folder'])
  for path in folder.glob('*test.array_record*'):
    path.write_bytes(b'bad')
  with pytest.raises(errors.UserError, match=f'{folder}/.*test.array_record.* is damaged: its SHA'):
    data.load(fields)
  # of an earlier version
  (folder / checksums.LIST).unlink()
  with pytest.raises(errors.UserError, match=f'prepared data in {folder} are damaged .*; remove'):
    data.load(fields).test[0]


@pytest.mark.parametrize('name', ['groups', 'features', 'dataset_info', 'counts', 'facts'])
def test_descriptions_of_prepared_data_that_were_damaged_are_named(tmp_path, name):
  fields = {**phantom.DEFAULTS, 'side': 16, 'train_patients': 12, 'test_patients': 2}
  fields |= {'name': 'phantom_lumbar_disks', 'cache_dir': str(tmp_path)}
  folder = pathlib.Path(data.load(fields).info['folder'])
  path = folder / f'{name}.json'
  toys.flip_bit(path)
  with pytest.raises(errors.UserError, match=f'{path} is damaged.*the next run builds it again'):
    data.load(fields)
  (folder / checksums.LIST).unlink()
  for content in ('', '[3]', '{"a": 1}', '7', 'null'):
    path.write_text(content)
    with contextlib.suppress(errors.UserError):  # or what is missing is not needed
      data.load(fields)


def test_nothing_is_left_among_temporary_files_and_what_a_killed_build_left_goes(
  tmp_path, monkeypatch
):
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
  host = leftovers.owner().split('-')[0]
  left = tmp_path / 'phantom_lumbar_disks' / f'.building-x.{host}-{os.getpid()}-1.tmp'
  (left / 'phantom_lumbar_disks' / '1.0.0').mkdir(parents=True)
  fields = {**phantom.DEFAULTS, 'side': 16, 'train_patients': 12, 'test_patients': 2}
  fields |= {'name': 'phantom_lumbar_disks', 'cache_dir': str(tmp_path)}
  for _ in range(2):
    folder = pathlib.Path(data.load(fields).info['folder'])
  assert list((tmp_path / 'temporary').iterdir()) == []
  assert list(folder.parent.iterdir()) == [folder]


def test_cache_root(monkeypatch):
  monkeypatch.delenv('ROBUSTMED_CACHE', raising=False)
  assert store.cache_root('') == pathlib.Path.home() / '.cache' / 'robustmed'
  monkeypatch.setenv('ROBUSTMED_CACHE', '/somewhere')
  assert store.cache_root(None) == pathlib.Path('/somewhere')
  assert store.cache_root('here') == pathlib.Path('here')


def test_building_prints_nothing(tmp_path, capfd):
  data.load(
    {
      'name': 'phantom_lumbar_disks',
      'side': 16,
      'train_patients': 1,
      'test_patients': 1,
      'cache_dir': str(tmp_path),
    }
  )
  assert capfd.readouterr() == ('', '')
