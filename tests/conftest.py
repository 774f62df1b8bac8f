"""Strict mode for the whole suite: warnings are errors, no silent rank promotion, two devices."""

import importlib.metadata
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Two devices. The tests compile more than they compute: without the compiler's care they take half
# of the time. `XLA_FLAGS='--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true'`
# runs them as users' programs run. An unknown flag ends the process: newer jaxlib may lack some.
_flags = {'force_host_platform_device_count': 2, 'backend_optimization_level': 0}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _flags |= {'cpu_use_fusion_emitters': 'false', 'cpu_parallel_codegen_split_count': 1}
for _flag, _value in _flags.items():
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_{_flag}={_value}'.strip()
# Threads for devices that wait in collectives, see cpu_flags.tune.
os.environ.setdefault('NPROC', str((os.cpu_count() or 1) + 12))
os.environ.setdefault('MPLBACKEND', 'agg')

import gc
import pathlib
import warnings

import jax
import pytest

CACHE = pathlib.Path(
  os.environ.get('ROBUSTMED_TEST_CACHE', pathlib.Path(__file__).parent.parent / '.jax_cache')
)
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')


def pytest_collection_finish():
  # Tracing makes many objects: without this each full collection also goes through all modules.
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
  # Slow files first: of several processes none is then left alone with a long one at the end.
  slow = {item.path for item in items if any(map(item.get_closest_marker, ('slow', 'long')))}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _strict_warnings():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    yield


@pytest.fixture(scope='session')
def shared_data():
  """The folder of real data sets; tests that need one skip with a reason where it is absent."""
  folder = pathlib.Path(
    os.environ.get('ROBUSTMED_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data')
  )
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set ROBUSTMED_DATA')
  return folder
