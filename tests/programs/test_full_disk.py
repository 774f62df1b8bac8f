"""Disks that are really full: one line, and the same call goes on once there is room."""

import os
import subprocess

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.process import files
from robustmed.runs import locks
from robustmed.training import checkpoints
from support import runs


@pytest.fixture
def disk(tmp_path):
  """A disk of 100 KiB, and a function that gives it another size."""
  place = tmp_path / 'disk'
  place.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', str(place)]
  if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('mounting a small disk needs root; test_checkpoints limits the size of files')
  try:
    yield (
      place,
      lambda size: subprocess.run(['mount', '-o', f'remount,size={size}', str(place)], check=True),
    )
  finally:
    subprocess.run(['umount', '-l', str(place)], check=True)


def test_a_checkpoint_of_many_arrays(disk, capfd):
  place, resize = disk
  random = np.random.default_rng(0)
  state = {f'w{i}': random.normal(size=(60, 60)).astype(np.float32) for i in range(60)}
  store = checkpoints.Store(place / 'state')
  for _ in range(3):  # each of the writes that fail may be the last one to be told of
    with pytest.raises(errors.UserError, match=r'state/1: No space left on device; make room'):
      store.save(1, state, {})
  with pytest.raises(errors.UserError, match=r'the network .*: No space left on device'):
    checkpoints.save_variables(place / 'variables', state)
  assert store.latest() is None and capfd.readouterr().err == ''
  resize('8m')
  store.save(1, state, {})
  checkpoints.save_variables(place / 'variables', state)
  np.testing.assert_array_equal(store.restore_latest(state)['w7'], state['w7'])
  store.close()


def test_prepared_data(disk):
  place, resize = disk
  fields = {'name': 'phantom_lumbar_disks', 'side': 64, 'train_patients': 12, 'test_patients': 2}
  fields['cache_dir'] = str(place / 'cache')
  with pytest.raises(errors.UserError, match=r'cannot write prepared data to .*No space left'):
    data.load(fields)
  assert not any(path.is_file() for path in place.rglob('*'))
  resize('8m')
  assert len(data.load(fields).test) > 0


def test_locks_and_results(disk):
  place, resize = disk
  (place / 'ballast').write_bytes(bytes(96 * 2**10))  # one block is left for a folder or a file
  with pytest.raises(errors.UserError, match='cannot write'):
    for number in range(9):
      files.write_text(place / f'{number}.csv', 'x' * 4096)
  with (
    pytest.raises(errors.UserError, match=r'lock .*train.std.json: No space left'),
    locks.hold(place, ['train.std']),
  ):
    pass
  left = [path.name for path in place.rglob('*') if path.name not in ('0.csv', 'ballast')]
  assert left == []
  resize('1m')
  with locks.hold(place, ['train.std']):
    files.write_text(place / 'a.csv', 'x')


@pytest.mark.long
def test_a_run_goes_on_whenever_there_is_room(disk, tmp_path):
  place, resize = disk
  words = ['--config', 'configs/quickstart.py:smoke', '--arms', 'std']
  whole = runs.main(*words, '--workdir', tmp_path / 'whole')
  assert 'report' in whole.stdout
  for size in ('100k', '900k', '2600k', '2700k', '2800k'):
    resize(size)
    line = runs.mistake(*words, '--workdir', place / 'run')
    assert 'No space left on device' in line and str(place) in line
  resize('20m')
  runs.main(*words, '--workdir', place / 'run')
  compared = subprocess.run(
    ['diff', '-r', str(tmp_path / 'whole' / 'results'), str(place / 'run' / 'results')],
    capture_output=True,
    text=True,
    check=False,
  )
  assert compared.returncode == 0, compared.stdout
