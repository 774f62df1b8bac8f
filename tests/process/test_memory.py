import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from robustmed import errors
from robustmed.process import memory

GIB = 2**30


def _host(monkeypatch, tmp_path, *, groups=()):
  """A host with 8 GiB available, of which the process has mapped 1."""
  proc, group = tmp_path / 'proc', tmp_path / 'cgroup'
  (proc / 'self').mkdir(parents=True)
  (proc / 'meminfo').write_text('MemTotal:  99 kB\nMemAvailable:   8388608 kB\n')
  (proc / 'self' / 'status').write_text('Name:\tpython\nVmSize:\t 1048576 kB\n')
  for name, text in groups:
    (group / name).parent.mkdir(parents=True, exist_ok=True)
    (group / name).write_text(text)
  monkeypatch.setattr(memory, '_PROC', proc)
  monkeypatch.setattr(memory, '_CGROUP', group)
  monkeypatch.setattr(memory, 'address_limit', lambda: None)


NEW = [('memory.max', str(6 * GIB)), ('memory.current', str(3 * GIB))]
OLD = [('memory/memory.limit_in_bytes', str(4 * GIB)), ('memory/memory.usage_in_bytes', str(GIB))]


@pytest.mark.parametrize(
  ('groups', 'limit', 'free'),
  [
    ([], None, 8),
    ([('memory.max', 'max\n'), ('memory.current', '1')], None, 8),
    (NEW, None, 3),
    ([*NEW, ('memory.stat', f'anon 5\ninactive_file {GIB}\n')], None, 4),
    (OLD, None, 3),
    ([], 3 * GIB, 2),
    (NEW, GIB // 2, 0),
  ],
)
def test_what_is_free_is_the_least_of_all_limits(monkeypatch, tmp_path, groups, limit, free):
  _host(monkeypatch, tmp_path, groups=groups)
  monkeypatch.setattr(memory, 'address_limit', lambda: limit)
  assert memory.free_bytes() == free * GIB
  assert memory.free_device_bytes() == free * GIB // jax.local_device_count()


def test_where_nothing_is_known_nothing_is_said(monkeypatch, tmp_path):
  monkeypatch.setattr(memory, '_PROC', tmp_path)
  monkeypatch.setattr(memory, '_CGROUP', tmp_path)
  monkeypatch.setattr(memory, 'address_limit', lambda: None)
  assert memory.free_bytes() is None and memory.free_device_bytes() is None
  memory.check_address_space()


def test_little_address_space_is_said_before_anything_is_imported():
  root = pathlib.Path(__file__).parents[2]
  words = f'ulimit -v 3000000; exec {sys.executable} -m robustmed.main --config a.py --workdir x'
  done = subprocess.run(
    ['bash', '-c', words],
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
    env={'PYTHONPATH': str(root)},
  )
  assert done.returncode == 2 and done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('robustmed: error: ulimit -v allows 2.9 GiB of address space, a run needs')
  assert '--allow-memory' in line


def test_a_program_says_what_it_needs():
  add = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)
  compiled = add.lower(jax.ShapeDtypeStruct((512, 256), jnp.float32)).compile()
  least = 4 * (512 * 256 + 512 * 512)  # the argument and the result
  assert least <= memory.program_bytes(compiled) <= 4 * least


def test_unlimited_is_no_limit(monkeypatch):
  import resource

  for soft, expected in ((resource.RLIM_INFINITY, None), (5, 5)):
    monkeypatch.setattr(resource, 'getrlimit', lambda _, soft=soft: (soft, soft))
    assert memory.address_limit() == expected
  with pytest.raises(errors.UserError, match=r'ulimit -v allows 0\.0 GiB'):
    memory.check_address_space()
