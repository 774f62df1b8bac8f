"""Hosts that are to find each other, and do not."""

import subprocess
import sys

import jax
import pytest

from robustmed import errors
from robustmed.process import hosts, parallel
from support import runs


def test_alone_there_is_nobody_to_wait_for():
  hosts.initialize()
  assert parallel.is_writer() and parallel.process_count() == 1


def test_hosts_named_by_hand_are_checked():
  with pytest.raises(errors.UserError, match='num_processes'):
    hosts.initialize(coordinator='127.0.0.1:1', num_processes=0, process_id=0)
  with pytest.raises(errors.UserError, match='process_id'):
    hosts.initialize(coordinator='127.0.0.1:1', num_processes=2, process_id=2)


_NAMED = "coordinator='127.0.0.1:{}', num_processes=2, process_id={}"
_SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': '127.0.0.1',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_NUM_NODES': '1',
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('given', 'code', 'whom'),
  [
    (_NAMED.format(1, 1), 2, 'coordinator 127.0.0.1:1 (process 1 of 2)'),
    (_NAMED.format(0, 0), 2, 'coordinator 127.0.0.1:0 (process 0 of 2)'),
    ('automatic=True', hosts.EX_TEMPFAIL, 'the hosts that the cluster names'),
  ],
)
def test_hosts_that_do_not_meet_end_with_one_line(given, code, whom):
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f'from robustmed.process import hosts; hosts.initialize({given}, patience=2)',
    ],
    env=runs.environment(**_SLURM),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == code, done.stderr
  (line,) = [text for text in done.stderr.splitlines() if text.startswith('robustmed: error: ')]
  assert f'cannot join {whom}: no answer in 2 s' in line
  assert 'Traceback' not in done.stderr


def test_a_refusal_of_jax_is_a_user_error(monkeypatch):
  def refuse(*args, **kwargs):
    raise RuntimeError('port is taken\nand more')

  monkeypatch.setattr(jax.distributed, 'initialize', refuse)
  with pytest.raises(errors.UserError, match=r'join the hosts that .*: port is taken; check'):
    hosts.initialize(automatic=True)
