"""The benchmark at a size for tests: its rows, its counts, its mistakes."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from robustmed import attacks, errors
from robustmed.benchmark import problems, workloads
from robustmed.runs import commandline

FIELDS = [
  'workload',
  'batch',
  'steps',
  'seconds',
  'grads_per_s',
  'loop_overhead',
  'compilations',
  'compile_seconds',
  'device',
]


def _config(preset='smoke', **more):
  config = commandline.load_config(f'configs/benchmark.py:{preset}')
  config.update(more)
  return config


def _tiny(batch=2, width=1.0):
  return problems.Problem(
    variables=jnp.ones(3),
    image=jnp.ones((batch, 3)),
    target=None,
    objective=lambda variables, image, target: jnp.sum(image * variables[None], 1),
    attack=lambda steps: attacks.pgd(num_steps=steps, random_start=False),
  )


def test_prints_one_line_per_workload(capsys, tmp_path, monkeypatch):
  measure = functools.partial(workloads.measure_attack, _tiny)
  monkeypatch.setitem(workloads.WORKLOADS, 'spine', workloads.Workload(8, 20, measure))
  rows = workloads.run(_config(), workdir=tmp_path)
  printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert printed == rows == json.loads((tmp_path / 'benchmark.json').read_text())
  assert [row['workload'] for row in rows] == ['spine', 'small_grids']
  assert list(rows[0]) == FIELDS
  assert list(rows[1]) == [*FIELDS, 'gflop_per_s']
  for row in rows:
    assert (row['batch'], row['steps']) == (2, 2)
    assert row['seconds'] >= 0
    assert row['grads_per_s'] > 0
    assert row['loop_overhead'] > 0
    assert row['compile_seconds'] >= 0
  assert rows[0]['compilations'] == 1
  assert rows[1]['compilations'] == 3  # one a grid
  assert set(rows[1]['gflop_per_s']) == {'1x1', '2x2', '4x4'}
  for speeds in rows[1]['gflop_per_s'].values():
    assert set(speeds) == {'ours', 'lax'}


def test_the_figures_of_a_row(monkeypatch):
  """By hand, with a clock of our own: attacks of 2 s and gradients of 0.9 s, two to an attack."""
  ticks = {'attacked': 2.0, 'gradient': 0.9}
  called = []

  def clock(run, *args):
    called.append((run.__name__, args[3] if len(args) > 3 else None))
    run(*args)
    return ticks[run.__name__] + (5.0 if len(called) == 1 else 0.0)

  monkeypatch.setattr(workloads, 'seconds', clock)
  row = workloads.measure_attack(
    lambda batch, width: _tiny(), name='tiny', batch=2, steps=2, repeats=3, width=1.0
  )
  assert row['seconds'] == 2.0
  assert row['grads_per_s'] == 2.0
  assert row['loop_overhead'] == pytest.approx(2.0 / 1.8, abs=1e-4)
  assert row['compile_seconds'] == 5.0
  levels = [level for name, level in called if name == 'attacked']
  assert sorted(levels) == sorted(problems.LEVELS)
  # In turn: after each timed attack as many bare gradients as it has steps.
  assert [name for name, _ in called[2:5]] == ['attacked', 'gradient', 'gradient']


def test_compilations_counts_by_name():
  def attacked(x):
    return x * 2

  with workloads.Compilations('attacked') as counter:
    run = jax.jit(attacked)
    run(jnp.ones(3))
    run(jnp.ones(3))
    assert counter.count == 1
    run(jnp.ones(4))
    jax.jit(lambda x: x * 3)(jnp.ones(3))
  assert counter.count == 2
  jax.jit(attacked)(jnp.ones(5))
  assert counter.count == 2


def test_a_level_that_compiles_again_shows_in_the_count():
  settings = {'name': 'tiny', 'batch': 2, 'steps': 2, 'repeats': 7, 'width': 1.0}
  levels = (1, jnp.float32(0.1), jnp.int32(1), jnp.zeros(2), True, 0.5)
  tiny = _tiny()._replace(levels=levels)
  row = workloads.measure_attack(lambda batch, width: tiny, **settings)
  assert row['compilations'] > 1


def test_workloads_by_name_from_the_command_line():
  words = ['--config', 'configs/benchmark.py', '--config.workloads=spine', '--workdir', 'x']
  command = commandline.parse([*words, '--config.batch=4', '--config.steps=3'])
  assert tuple(command.config.workloads) == ('spine',)
  assert (command.config.batch, command.config.steps) == (4, 3)


@pytest.mark.slow
def test_full_size_does_the_work_of_the_paper():
  made = []

  def trace():
    problem = problems.spine(8, 1.0)
    made.append(problem)
    value = problem.objective(problem.variables, problem.image, problem.target)
    return problem.variables, problem.image, value

  variables, image, value = jax.eval_shape(trace)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 38_998_721
  assert image.shape == (8, 128, 128, 1)
  assert value.shape == (8,)
  attack = made[0].attack(20)
  assert (attack.num_gradients, attack.num_forwards) == (20, 0)
  assert (attack.step_size, attack.threat.bounds, attack.random_start) == (0.01, (0.0, 1.0), True)
  assert workloads.WORKLOADS['spine'][:2] == (8, 20)
  assert _config('').workloads == ('spine',)


def test_brats3d_is_fgsm_on_the_published_network():
  made = []

  def trace():
    problem = problems.brats3d(1, 1.0, 32)
    made.append(problem)
    value = problem.objective(problem.variables, problem.image, problem.target)
    return problem.variables, problem.image, value

  variables, image, value = jax.eval_shape(trace)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 8_269_676
  assert image.shape == (1, 32, 32, 32, 4) and value.shape == (1,)
  attack = made[0].attack(1)
  assert (attack.num_gradients, attack.num_forwards, attack.random_start) == (1, 0, False)
  assert (attack.relative_step, attack.threat.bounds) == (1.0, (0.0, 1.0))
  assert workloads.WORKLOADS['brats3d'][:2] == (1, 1)


def test_only_some_workloads_have_a_size(monkeypatch):
  seen = []

  def measure(**settings):
    seen.append(settings)
    return {}

  for name, sized in (('spine', False), ('brats3d', True)):
    monkeypatch.setitem(workloads.WORKLOADS, name, workloads.Workload(1, 1, measure, sized))
  workloads.run(_config(workloads=('spine', 'brats3d'), size=64))
  assert [settings.get('size') for settings in seen] == [None, 64]


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    ({'size': 40}, 'multiple of 16, not 40'),
    ({'workloads': ('spin',)}, "did you mean 'spine'"),
    ({'workloads': 'spine,nothing'}, "unknown workload 'nothing'"),
    ({'repeats': 0}, 'repeats >= 1'),
    ({'batch': -1}, 'batch >= 0'),
  ],
)
def test_mistakes(wrong, says):
  with pytest.raises(errors.UserError, match=says), _config().unlocked() as config:
    for name, value in wrong.items():
      with config.ignore_type():
        config[name] = value
    workloads.run(config)


def test_unknown_preset():
  with pytest.raises(errors.UserError, match="unknown preset 'huge'"):
    _config('huge')


@pytest.mark.slow
def test_networks_from_onnx_are_one_row(monkeypatch):
  """The networks at a size for tests; timing is a stand-in, which calls what it times once."""
  called = []

  def measured(make, *, name, batch, steps, repeats, width):
    problem = make(batch, width)
    value = jax.eval_shape(problem.objective, problem.variables, problem.image, problem.target)
    called.append((name, value))
    figures = {'seconds': 1.5, 'loop_overhead': 1.0, 'compilations': 1, 'compile_seconds': 2.0}
    return {**figures, 'grads_per_s': 4.0 - len(called)}

  monkeypatch.setattr(workloads, 'measure_attack', measured)
  row = workloads.measure_onnx(name='onnx', batch=2, steps=1, repeats=1, width=1 / 32, size=16)
  assert [name for name, _ in called] == ['UNet 2D', 'UNet 3D', 'SegResNet']
  assert all(value.shape == (2,) for _, value in called)
  assert list(row) == [*FIELDS, 'networks']
  assert (row['seconds'], row['compilations'], row['grads_per_s']) == (4.5, 3, 1.0)
  assert row['networks'] == {'UNet 2D': 3.0, 'UNet 3D': 2.0, 'SegResNet': 1.0}


@pytest.mark.long
@pytest.mark.parametrize('name', ['ensemble', 'sweep', 'volume'])
def test_searches_have_cpu_seconds_and_memory(name):
  (row,) = workloads.run(_config(workloads=(name,), size=16, batch=1, steps=1))
  assert row['workload'] == name and (row['batch'], row['steps']) == (1, 1)
  assert row['cpu_seconds'] > 0 and 0.1 < row['peak_gib'] < 64
  if name == 'volume':
    assert row['volume'] == '48x48x32' and row['windows'] == 5 * 5 * 3
    assert 0 < row['temporary_gib'] < 1
  if name == 'ensemble':
    assert row['members'] == 3 and 0 <= row['robust_passes'] <= 1
  if name == 'sweep':
    assert row['levels'] == 4 and row['over_levels'] > 0
