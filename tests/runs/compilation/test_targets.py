import importlib.util
import os
import re
import subprocess
import sys

import pytest

from robustmed import errors, main
from robustmed.runs.compilation import targets


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('v5e-16', ('v5e-16', 'v5e', 16, 'v5e:4x4')),
    ('v5litepod-256', ('v5e-256', 'v5e', 256, 'v5e:16x16')),
    ('v6e-8', ('v6e-8', 'v6e', 8, 'v6e:2x4')),
    ('v4-8', ('v4-8', 'v4', 4, 'v4:2x2x1')),  # two cores a chip
    ('v5p-32', ('v5p-32', 'v5p', 16, 'v5p:2x2x4')),
    ('cpu-8', ('cpu-8', 'cpu', 8, '')),
  ],
)
def test_names_of_targets(name, expected):
  assert targets.parse(name) == expected


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5e-3', 'there is no slice v5e-3; there are v5e-1, v5e-4'),
    ('v4-9', 'there is no slice v4-9; there are v4-8'),
    ('h100', "unknown target 'h100'; take one like v5e-16"),
    ('cpu-0', 'must have 1 to 64 devices'),
  ],
)
def test_a_target_that_there_is_not_is_one_line(name, message):
  with pytest.raises(errors.UserError, match=message):
    targets.parse(name)


def _error(capsys, *words):
  assert main.main(['--config', 'configs/two_moons.py:smoke', *words]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_the_compiler_of_tpus_that_is_absent_is_one_line(capsys, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name, *a: None if name == 'libtpu' else find(name, *a)
  )
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  line = _error(capsys, '--stage', 'compile', '--target', 'v5e-16')
  assert 'pip install -r launch/tpu_compile.txt' in line


def test_flags_that_do_not_go_together(capsys):
  assert '--stage compile needs --target' in _error(capsys, '--stage', 'compile')
  assert '--full can be used with --stage compile only' in _error(
    capsys, '--stage', 'describe', '--full'
  )
  assert 'no other stage has one' in _error(capsys, '--stage', 'describe', '--target', 'cpu-2')
  assert 'JAX has started with 2 CPU devices' in _error(
    capsys, '--stage', 'compile', '--target', 'cpu-8'
  )


def test_unless_in_full_the_compiler_spends_less_effort():
  tpu, cpu = targets.parse('v5e-16'), targets.parse('cpu-2')
  assert targets.options(tpu, full=True) == targets.options(cpu, full=True) == {}
  assert targets.options(tpu, full=False) == {'exec_time_optimization_effort': -1.0}
  assert targets.options(cpu, full=False) == {'xla_llvm_disable_expensive_passes': True}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5e-16', 'v6e-8', 'v4-8', 'v5p-8'])
def test_the_memory_of_a_chip_is_what_the_compiler_says(name):
  """In a process of its own: topologies of two kinds of chips do not go together in one."""
  if importlib.util.find_spec('libtpu') is None and not os.environ.get('TPU_LIBRARY_PATH'):
    pytest.skip('the compiler of TPUs is not installed')
  done = subprocess.run([sys.executable, '-c', _TOO_LARGE, name], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  wanted, there_is = re.findall(r'\(([\d.]+)G\)', done.stdout)
  assert targets.parse(name).chip.memory == float(there_is) * targets.GIB
  assert f'needed {float(wanted)} GiB' in done.stdout


_TOO_LARGE = """
import sys
from robustmed.runs.compilation import estimate, targets
target = targets.parse(sys.argv[1])
targets.prepare(target)
import jax
import jax.numpy as jnp
device = jax.sharding.SingleDeviceSharding(targets.devices_of(target)[0])
array = jax.ShapeDtypeStruct((32, 2**30), jnp.float32, sharding=device)
lowered = jax.jit(lambda x: x + 1).lower(array)
try:
  lowered.compile()
except RuntimeError as error:
  print(error)
print('needed', estimate.compile_program(lowered).needed / targets.GIB, 'GiB')
"""
