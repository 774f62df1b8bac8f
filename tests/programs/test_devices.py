"""One device, eight, and two processes of two devices each give the same answers."""

import json
import socket

import numpy as np
import pytest

from support import forked, runs

pytestmark = pytest.mark.slow

_WORKER = """
import json, os, sys
spec = json.loads(sys.argv[1])
count = spec['devices']
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={count}'
os.environ.pop('NPROC', None)
from robustmed.process import cpu_flags, hosts, parallel
cpu_flags.tune()
import jax
jax.config.update('jax_platforms', 'cpu')
if spec['processes'] > 1:
  hosts.initialize(
    coordinator=spec['coordinator'], num_processes=spec['processes'], process_id=spec['process']
  )
assert parallel.local_device_count() == count
assert parallel.device_count() == count * spec['processes']
import numpy as np
from support import toys
from robustmed import attacks
from robustmed.process import console
from robustmed.defenses import adversarial, amat
from robustmed.evaluation import grid
from robustmed.training import optimisers, state as train_state, step

PER_DEVICE, TOTAL = spec['per_device'], 32
task = toys.task()
variables = task.init(jax.random.key(0))
local = PER_DEVICE * count
whole = local * spec['processes']
out = {}
for norm in ('linf', 'l2'):
  attack = attacks.pgd(norm=norm, num_steps=8, relative_step=0.25, bounds=(0.0, 1.0))
  evaluator = grid.Evaluator(
    task, {'pgd': grid.Probe(attack, 'bce', (0.1,))}, key=jax.random.key(5), main='pgd'
  )
  images, numbers = [], []
  for start in range(0, TOTAL, whole):
    mine = start + spec['process'] * local
    batch = grid.device_batch(toys.batch(local, start=mine))
    found, _ = evaluator.attack(variables, batch, 'pgd', 0.1)
    rows = parallel.gather_rows({'index': batch['index'], 'image': np.asarray(found)})
    images.append(rows['image'])
    numbers.append(rows['index'])
  order = np.argsort(np.concatenate(numbers))
  assert np.array_equal(np.concatenate(numbers)[order], np.arange(TOTAL))
  out[norm] = np.concatenate(images)[order]

attack = attacks.pgd(num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
def train(defense):
  rules = {'main': optimisers.make({'name': 'adamax', 'lr': 0.02}, num_steps=6)}
  run = step.make(defense, optimisers=rules, num_steps=6)
  state = train_state.create(
    task,
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=8,
    average=False,
  )
  losses, per_host = [], 16 // spec['processes']
  for number in range(6):
    start = number * 16 + spec['process'] * per_host
    batch = {k: v for k, v in toys.batch(per_host, start=start).items()}
    batch['index'] = batch['index'] * 5 // 3 % 8  # 8 examples, some of them oftener in a batch
    state, scalars = run(state, batch, jax.random.key(1))
    losses.append(float(np.asarray(scalars['main/loss'])))
  return state, np.array(losses)

state, out['losses'] = train(
  adversarial.make(task, attack=attack, objectives={'bce': 0.5}, eps=0.05)
)
out['kernel'] = np.asarray(state.params['hidden']['kernel'])
attack = attacks.pgd(norm='l2', num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
state, _ = train(amat.make(task, attack=attack, step=0.3, thresholds=(0.69,), epoch_steps=2))
out['margin'] = np.asarray(state.memory['margin'])
assert len(np.unique(out['margin'])) > 2
parallel.barrier('done')
if parallel.is_writer():
  np.savez(spec['out'], **out)
"""


def _free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def _run(folder, *, processes, devices, per_device):
  path = folder / f'{processes}x{devices}x{per_device}.npz'
  coordinator = f'127.0.0.1:{_free_port()}'
  started = []
  for process in range(processes):
    spec = {
      'processes': processes,
      'process': process,
      'devices': devices,
      'per_device': per_device,
      'coordinator': coordinator,
      'out': str(path),
    }
    started.append(
      forked.Process([json.dumps(spec)], code=_WORKER, env=runs.environment(), cwd=runs.ROOT)
    )
  for process in started:
    texts = process.communicate(timeout=900)
    assert process.returncode == 0, texts
  with np.load(path) as stored:
    return {name: stored[name] for name in stored.files}


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  return _run(tmp_path_factory.mktemp('one'), processes=1, devices=1, per_device=4)


@pytest.mark.parametrize('processes, devices', [(1, 8), (2, 2)])
def test_equal_batches_per_device_give_equal_bits(one_device, tmp_path, processes, devices):
  other = _run(tmp_path, processes=processes, devices=devices, per_device=4)
  np.testing.assert_array_equal(other['linf'], one_device['linf'])
  np.testing.assert_array_equal(other['l2'], one_device['l2'])
  np.testing.assert_allclose(other['losses'], one_device['losses'], rtol=1e-5)
  np.testing.assert_allclose(other['kernel'], one_device['kernel'], atol=1e-5)
  np.testing.assert_allclose(other['margin'], one_device['margin'], rtol=1e-5)


def test_other_batches_per_device_differ_by_rounding_alone(one_device, tmp_path):
  other = _run(tmp_path, processes=1, devices=2, per_device=8)
  assert np.mean(other['linf'] == one_device['linf']) >= 0.999
  np.testing.assert_allclose(other['l2'], one_device['l2'], atol=1e-5)
  np.testing.assert_allclose(other['margin'], one_device['margin'], rtol=1e-4)
