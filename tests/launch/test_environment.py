"""The launch scripts' environment: made whole or not at all, with a stand-in for Python."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = f'set -euo pipefail; . {ROOT}/launch/environment.sh; make_environment "$@"; echo ready'

# `-m venv DIR` copies this file to DIR/bin/python; every call is written to calls; a step that is
# named in the file `broken` fails after it has left something behind.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  -c*) exit 0 ;;
  --version) echo 'Python 3.11.0'; exit 0 ;;
esac
echo "$2" >>"{folder}/calls"
if [ "$2" = venv ]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
else
  touch "${{0%/bin/python}}/package"
fi
if grep -q "$2" "{folder}/broken" 2>/dev/null; then
  echo "$2 says why" >&2
  exit 1
fi
"""


@pytest.fixture
def launch(tmp_path):
  python = tmp_path / 'python'
  python.write_text(PYTHON.format(folder=tmp_path))
  python.chmod(0o755)
  (tmp_path / 'a.txt').write_text('one\n')
  (tmp_path / 'b.txt').write_text('two\n')

  def run(*files, code=0, broken='', **env):
    (tmp_path / 'broken').write_text(broken)
    (tmp_path / 'calls').write_text('')
    done = subprocess.run(
      ['bash', '-c', SCRIPT, 'launch', *[str(tmp_path / file) for file in files or ['a.txt']]],
      env={
        **os.environ,
        'ROBUSTMED_PYTHON': str(python),
        'ROBUSTMED_VENV': str(tmp_path / 'venv'),
        **env,
      },
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stderr
    assert ('ready' in done.stdout) == (code == 0)
    return (tmp_path / 'calls').read_text().split(), done.stderr

  run.venv = tmp_path / 'venv'
  return run


def test_it_is_made_once(launch):
  assert launch()[0] == ['venv', 'pip']
  assert launch()[0] == []
  assert launch('a.txt', 'b.txt')[0] == ['pip']
  assert launch()[0] == launch('a.txt', 'b.txt')[0] == []
  assert {path.name for path in launch.venv.iterdir()} == {
    'bin', 'package', '.stamp-1', '.stamp-2',
  }  # fmt: skip
  assert launch(ROBUSTMED_ACCELERATOR='cuda13')[0] == ['pip']


@pytest.mark.parametrize('step', ['venv', 'pip'])
def test_a_failure_leaves_nothing_and_the_next_call_begins_anew(launch, step):
  _, said = launch(broken=step, code=2)
  lines = said.splitlines()
  assert f'{step} says why' in lines  # the tool's own words are not hidden
  assert lines[-1].startswith('robustmed: error: ') and str(launch.venv) in lines[-1]
  assert not launch.venv.exists()
  assert launch()[0] == ['venv', 'pip']


def test_what_a_kill_left_half_made_is_made_anew(launch):
  (launch.venv / 'bin').mkdir(parents=True)
  (launch.venv / '.making').touch()
  (launch.venv / 'bin' / 'python').write_text('#!/bin/sh\nexit 1\n')
  (launch.venv / 'bin' / 'python').chmod(0o755)
  calls, said = launch()
  assert calls == ['venv', 'pip'] and 'is incomplete' in said
  assert not (launch.venv / '.making').exists()


def test_a_failed_change_of_a_whole_environment_is_done_again(launch):
  launch()
  launch('a.txt', 'b.txt', broken='pip', code=2)
  assert (launch.venv / 'bin' / 'python').exists()  # it was whole before
  # Its first stamp would fit, but what is installed may be half of something else.
  calls, said = launch()
  assert calls == ['pip'] and 'was interrupted' in said
  assert launch()[0] == []


def test_files_of_somebody_else_are_not_removed(launch):
  launch.venv.mkdir()
  (launch.venv / 'mine').touch()
  launch(broken='venv', code=2)
  assert (launch.venv / 'mine').exists()


def test_an_unknown_accelerator_is_one_line(launch):
  calls, said = launch(code=2, ROBUSTMED_ACCELERATOR='gpu')
  assert calls == [] and said.count('\n') == 1 and "not 'gpu'" in said
