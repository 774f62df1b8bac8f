"""Joins the processes of a run on several hosts through `jax.distributed`."""

import contextlib
import os
import socket
import sys
import threading

import jax

from robustmed import errors
from robustmed.process import lost_peers, parallel

EX_TEMPFAIL = 75  # exit code: a cluster may start its hosts late, the same command may succeed then
_GRACE = 60  # seconds that the timeout of jaxlib is longer than ours


def initialize(
  *,
  coordinator: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  automatic: bool = False,
  patience: int = 300,
) -> None:
  """Joins the hosts of a run; does nothing for a single process.

  With `automatic` JAX reads the cluster's environment (SLURM, TPU pod, Kubernetes); on the CPU the
  collectives use gloo. If the hosts have not joined after `patience` seconds, the process prints
  one line and ends, with exit code 2 if they were named by hand, else `EX_TEMPFAIL`. Once they have
  joined, the loss of one process ends all others (`lost_peers`).
  """
  if not coordinator and not automatic:
    if num_processes or process_id >= 0:
      raise errors.UserError('--num_processes and --process_id need --coordinator HOST:PORT')
    return
  if jax.config.jax_platforms == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if automatic:
    target, named = 'the hosts that the cluster names', {}
  elif num_processes >= 1 and 0 <= process_id < num_processes:
    target = f'coordinator {coordinator} (process {process_id} of {num_processes})'
    named = {'num_processes': num_processes, 'process_id': process_id}
    named['coordinator_address'] = coordinator
  else:
    raise errors.UserError(
      f'--coordinator needs --num_processes >= 1 and 0 <= --process_id < --num_processes, '
      f'got {num_processes} and {process_id}'
    )
  if hasattr(jax.config, 'jax_enable_preemption_service'):
    jax.config.update('jax_enable_preemption_service', False)  # it would handle SIGTERM itself
  with _time_limit(target, patience, code=EX_TEMPFAIL if automatic else 2):
    jax.distributed.initialize(
      initialization_timeout=patience + _GRACE,
      heartbeat_timeout_seconds=lost_peers.HEARTBEAT,
      **named,
    )
  if jax.process_count() > 1:
    names = ['?'] * jax.process_count()
    try:
      parallel.warm_up_collectives()
      names = parallel.all_gather_text(f'{socket.gethostname()}, pid {os.getpid()}')
    finally:
      lost_peers.watch(names)


@contextlib.contextmanager
def _time_limit(target: str, patience: int, *, code: int):
  """Ends the process with one line if the hosts have not joined after `patience` seconds.

  jaxlib aborts with a stack trace after its own timeout, which cannot be caught; so a thread ends
  the process shortly before.
  """
  line = (
    f'cannot join {target}: %s; check that HOST:PORT is an address of process 0 with a free port, '
    'reachable from here, that every --process_id from 0 on is used once, and start all processes '
    'together'
  )

  def give_up():
    error = errors.UserError(line % f'no answer in {patience} s')
    print(f'robustmed: error: {error}', file=sys.stderr, flush=True)
    os._exit(code)

  timer = threading.Timer(patience, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  except (RuntimeError, ValueError, OSError) as error:
    raise errors.UserError(line % (str(error).splitlines() or ['no reason given'])[0]) from error
  finally:
    timer.cancel()
