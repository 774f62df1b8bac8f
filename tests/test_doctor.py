"""robustmed doctor: what it prints, and that a wrong answer of the attack is found."""

import os
import pathlib

import jax
import pytest

from robustmed import attacks, doctor, main


def test_doctor_names_versions_devices_and_folders_and_passes(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('ROBUSTMED_CACHE', str(tmp_path / 'not' / 'there'))
  assert jax.local_device_count() == 2  # JAX has started: no flag that is added changes it
  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'])  # what it was comes back
  assert main.main(['doctor']) == 0
  lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
  found = dict(lines)
  for name in ('python', 'robustmed', 'jax', 'flax', 'device', 'XLA_FLAGS', 'self-test'):
    assert found[name].strip(), name
  assert '--xla_force_host_platform_device_count=2' in found['XLA_FLAGS']
  text = '\n'.join(map(' '.join, lines))
  assert f'{tmp_path}/not/there' in text and 'GiB free, not made yet' in text
  assert 'compile cache' in text and found['self-test'].startswith('ok: PGD on 2 device(s)')


def test_a_wrong_answer_is_code_1(capsys, monkeypatch):
  monkeypatch.setattr(doctor, '_machine', lambda added: [])
  weak = attacks.pgd(norm='linf', num_steps=1, relative_step=0.1, random_start=False)
  monkeypatch.setattr(attacks, 'pgd', lambda **_: weak)
  assert doctor.main([]) == 1
  assert capsys.readouterr().out.startswith('self-test      WRONG: ')


def test_free_memory_is_unknown_where_there_is_no_proc(monkeypatch):
  assert doctor.free_memory() is None or doctor.free_memory() > 2**20

  def absent(path, encoding):
    raise FileNotFoundError(path)

  monkeypatch.setattr(pathlib.Path, 'read_text', absent)
  assert doctor.free_memory() is None


def test_mistakes_are_one_line(capsys):
  assert main.main(['doctor', '--fast']) == 2
  assert capsys.readouterr().err.startswith('robustmed: error: unrecognized arguments: --fast')


def test_other_commands_can_be_reached(capsys):
  for word in main.COMMANDS:
    with pytest.raises(SystemExit) as ended:
      main.main([word, '--help'])
    assert ended.value.code == 0
  assert 'LUNA16' in capsys.readouterr().out
