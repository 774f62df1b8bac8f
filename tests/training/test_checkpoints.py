import contextlib
import errno
import logging
import resource

import numpy as np
import orbax.checkpoint as ocp
import pytest

from robustmed import errors
from robustmed.process import checksums
from robustmed.training import checkpoints
from support import toys

VARIABLES = {'params': {'w': np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)}}
# What tensorstore says on a disk that is full.
FULL = 'RESOURCE_EXHAUSTED: Error writing "params.w/0.0": Failed to write 9 bytes to file 4: No \
space left on device [os_error_code=\'28\']'


@contextlib.contextmanager
def _small_files(limit=2**18):
  """Files cannot grow beyond `limit` bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_the_system_refuses_is_one_line_and_leaves_no_network(tmp_path, capfd):
  with _small_files(), pytest.raises(errors.UserError, match='File too large; make room') as error:
    checkpoints.save_variables(tmp_path / 'variables', VARIABLES)
  assert f'cannot save the network {tmp_path}/variables' in str(error.value)
  assert not (tmp_path / 'variables').exists()
  store = checkpoints.Store(tmp_path / 'state')
  with _small_files(), pytest.raises(errors.UserError, match=r'the checkpoint .*state/3: File too'):
    store.save(3, VARIABLES, {'step': 3})
  assert store.latest() is None
  assert capfd.readouterr().err == ''
  assert _absl_is_heard()
  # once there is room, the same call succeeds
  store.save(3, VARIABLES, {'step': 3})
  assert store.latest() == 3
  found, extra = store.restore(3, VARIABLES)
  np.testing.assert_array_equal(found['params']['w'], VARIABLES['params']['w'])
  assert extra == {'step': 3}
  store.close()


def _absl_is_heard():
  """Whether an error that is logged by `absl` reaches a handler."""
  logger = logging.getLogger('absl')
  heard = []
  handler = logging.Handler()
  handler.emit = heard.append
  logger.addHandler(handler)
  try:
    logger.error('heard')
  finally:
    logger.removeHandler(handler)
  return len(heard) == 1


def test_networks_that_are_saved_at_the_same_time_leave_the_log_as_it_was():
  first, second = checkpoints._saving('one'), checkpoints._saving('another')
  first.__enter__()
  assert not _absl_is_heard()
  second.__enter__()
  first.__exit__(None, None, None)
  assert not _absl_is_heard()
  second.__exit__(None, None, None)
  assert _absl_is_heard()


def _raised(error):
  try:
    raise error from OSError(errno.ENOSPC, 'No space left on device')
  except type(error) as chained:
    return chained


@pytest.mark.parametrize('error', [ValueError(FULL), _raised(ValueError('commit failed'))])
def test_a_full_disk_is_told_from_other_mistakes(tmp_path, monkeypatch, error):
  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', fail)
  monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
  with pytest.raises(errors.UserError, match='No space left on device; make room there'):
    checkpoints.save_variables(tmp_path / 'variables', VARIABLES)
  store = checkpoints.Store(tmp_path / 'state')
  with pytest.raises(errors.UserError, match='run the same command again to continue'):
    store.save(1, VARIABLES, {})
  store.close()


def test_a_bug_in_saving_is_not_hidden(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise ValueError('no such type')

  monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', fail)
  with pytest.raises(ValueError, match='no such type'):
    checkpoints.save_variables(tmp_path / 'variables', VARIABLES)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('arm', '/elsewhere/x'),
    ('arm', '../x'),
    ('arm', 3),
    ('seed', '../1'),
    ('seed', -1),
    ('fold', 1.5),
  ],
)
def test_a_card_that_leads_out_of_the_workdir_is_refused(tmp_path, field, value):
  card = {'arm': 'std', 'seed': 0, 'model': {}, 'image_shape': [4], field: value}
  checkpoints.write_card(tmp_path, card)
  with pytest.raises(errors.UserError, match=f'{field} in '):
    checkpoints.read_card(tmp_path)


def _store(folder, steps):
  store = checkpoints.Store(folder)
  for step in steps:
    store.save(step, {'w': VARIABLES['params']['w'] + step}, {'step': step})
  return store


def _data_files(folder):
  """The files that hold what was saved, largest first."""
  found = [path for path in folder.rglob('*') if path.is_file() and path.name[0] != '_']
  found = [path for path in found if path.name not in ('commit_success.txt', checksums.LIST)]
  return sorted(found, key=lambda path: -path.stat().st_size)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
  store = _store(tmp_path / 'state', (10, 20))
  like = {'w': np.zeros((400, 400), np.float32)}
  path = _data_files(tmp_path / 'state' / '20')[0]
  toys.flip_bit(path)
  with pytest.raises(errors.UserError, match=r'state/20/.*/d/.* is damaged: its SHA-256'):
    store.restore(20, like)
  found = store.restore_latest(like)
  np.testing.assert_array_equal(found['w'], VARIABLES['params']['w'] + 10)
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{path} is damaged' in line and 'the one of step 10 is taken' in line
  assert store.latest() == 10
  # the last one that is left is not removed
  toys.flip_bit(_data_files(tmp_path / 'state' / '10')[0])
  with pytest.raises(errors.UserError, match=r'state/10/.*there is no other .* train from the'):
    store.restore_latest(like)
  assert store.latest() == 10
  store.close()


def test_every_file_of_a_saved_network_is_compared(tmp_path):
  checkpoints.save_variables(tmp_path / 'v', VARIABLES)
  checkpoints.check_variables(tmp_path / 'v')
  names = _data_files(tmp_path / 'v')
  assert len(names) >= 5
  for path in names:
    content = path.read_bytes()
    toys.flip_bit(path)
    with pytest.raises(errors.UserError, match=rf'{path.name}.* is damaged.*train again'):
      checkpoints.check_variables(tmp_path / 'v')
    path.write_bytes(content)
  checkpoints.check_variables(tmp_path / 'v')


def test_checkpoints_of_earlier_versions_are_loaded_with_one_warning(tmp_path, capsys):
  steps = (1, 2)
  store = _store(tmp_path / 'state', steps)
  for path in tmp_path.rglob(checksums.LIST):
    path.unlink()
  like = {'w': np.zeros((400, 400), np.float32)}
  with checksums.keep():
    for step in steps:
      np.testing.assert_array_equal(
        store.restore(step, like)[0]['w'], VARIABLES['params']['w'] + step
      )
  (line,) = capsys.readouterr().err.splitlines()
  assert 'stored without check sums' in line
  # without sums, what Orbax cannot read gives way as well
  path = tmp_path / 'state' / '2' / 'state' / 'manifest.ocdbt'
  path.write_bytes(path.read_bytes()[:40])
  np.testing.assert_array_equal(store.restore_latest(like)['w'], VARIABLES['params']['w'] + 1)
  assert 'step 1 is taken' in capsys.readouterr().err
  store.close()


@pytest.mark.parametrize('name', ['_METADATA', '_CHECKPOINT_METADATA', 'commit_success.txt'])
def test_what_orbax_says_of_a_checkpoint_may_be_damaged(tmp_path, name):
  store = _store(tmp_path / 'state', (1,))
  store.close()
  like = {'w': np.zeros((400, 400), np.float32)}
  for path in (tmp_path / 'state').rglob(name):
    for content in (b'', b'[1]', b'{"tree_metadata": 3, "item_handlers": 4}', b'\xff\x00'):
      path.write_bytes(content)
      store = checkpoints.Store(tmp_path / 'state')
      try:
        found = store.restore_latest(like)
      except errors.UserError:
        pass
      else:  # a time or a note that no value depends on
        np.testing.assert_array_equal(found['w'], VARIABLES['params']['w'] + 1)
      store.close()
