import contextlib
import errno
import logging
import resource

import numpy as np
import orbax.checkpoint as ocp
import pytest

from robustmed import errors
from robustmed.training import checkpoints

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

  monkeypatch.setattr(ocp.StandardCheckpointer, 'save', fail)
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

  monkeypatch.setattr(ocp.StandardCheckpointer, 'save', fail)
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
