"""What a step needs is compared with what is free before anything is loaded."""

import types

import pytest

from robustmed import errors, main, papers
from robustmed.process import memory
from robustmed.runs import commandline, description, forecast
from support import runs

SMOKE = f'{runs.ROOT / "configs" / "quickstart.py"}:smoke'
GIB = 2**30


@pytest.fixture(scope='module')
def large():
  """An experiment whose batches are large, and one of its arms."""
  words = ['--config', SMOKE, '--workdir', 'x', '--config.train.batch_size=100000']
  config = commandline.parse(words).config
  exp = papers.find(config.experiment).build(config)
  return exp, [exp.arms['std']]


def _program(needed):
  sizes = {'argument_size_in_bytes': 0, 'output_size_in_bytes': GIB, 'alias_size_in_bytes': GIB}
  found = types.SimpleNamespace(temp_size_in_bytes=needed, **sizes)
  return types.SimpleNamespace(memory_analysis=lambda: found)


def test_what_cannot_fit_is_refused_without_compiling(large, monkeypatch):
  bound = description.device_bytes(large[0], ('std',))
  monkeypatch.setattr(memory, 'free_device_bytes', lambda: int(bound / description.SURE) - 1)
  with pytest.raises(errors.UserError) as refused:
    description.require_memory(*large, allowed=False)
  line = str(refused.value)
  assert 'a step of std with train.batch_size=100000 needs about' in line
  assert f'{bound / GIB:.1f} GiB' in line and '--allow-memory' in line
  assert description.require_memory(*large, allowed=True) == {}


def test_what_might_not_fit_is_asked_of_the_program(large, monkeypatch, capsys):
  bound = description.device_bytes(large[0], ('std',))
  free = bound // 3
  monkeypatch.setattr(memory, 'free_device_bytes', lambda: free)
  check = description.require_memory(*large, allowed=False)['std']
  check(_program(free))
  with pytest.raises(errors.UserError, match=rf'needs {(free + GIB) / GIB:.1f} GiB of memory on'):
    check(_program(free + GIB))
  assert 'a step of std needs at most about' in capsys.readouterr().err


@pytest.mark.parametrize('free', [None, 10**18])
def test_what_fits_or_cannot_be_known_is_run(large, monkeypatch, free):
  monkeypatch.setattr(memory, 'free_device_bytes', lambda: free)
  assert description.require_memory(*large, allowed=False) == {}


def test_a_batch_that_no_memory_holds_is_one_line_at_once(tmp_path, capsys):
  words = ['--config', SMOKE, '--workdir', str(tmp_path / 'x')]
  assert main.main([*words, '--config.train.batch_size=1000000000']) == 2
  out, told = capsys.readouterr()
  lines = [line for line in told.splitlines() if not line.startswith('[robustmed] ')]
  assert out == '' and len(lines) == 1
  assert 'train.batch_size=1000000000 needs about' in lines[0]
  assert not (tmp_path / 'x').exists()


@pytest.mark.slow
def test_the_speed_is_measured_on_so_many_images_as_show_it(large, monkeypatch):
  monkeypatch.setattr(forecast, 'SAMPLE', 2**12)
  monkeypatch.setattr(forecast, 'MEASURED', 0.0)
  assert forecast.gradients_per_second(large[0].task, 10**9) > 0


def test_the_flag_is_passed_on_to_the_jobs_of_a_plan():
  words = ['--config', SMOKE, '--workdir', 'x', memory.ALLOW]
  command = commandline.parse(words)
  assert command.allow_memory and memory.ALLOW in command.rerun_flags
  assert not commandline.parse(words[:-1]).allow_memory
