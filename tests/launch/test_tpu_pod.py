"""The pod script against a stand-in for gcloud that records its calls."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'tpu_pod.sh'
# One line of quoted words per call; `broken` names verbs that fail.
GCLOUD = """#!/usr/bin/env bash
printf '%q ' "$@" >>"{folder}/calls"; echo >>"{folder}/calls"
[ "$4" != "$(cat "{folder}/broken" 2>/dev/null)" ] || {{ echo 'gcloud says why' >&2; exit 1; }}
"""
AT = ['--name', 'pod', '--zone', 'us-west4-a']
MAIN = ['--config', 'configs/quickstart.py', '--workdir', 'gs://bucket/it is']


@pytest.fixture
def pod(tmp_path):
  (tmp_path / 'bin').mkdir()
  tool = tmp_path / 'bin' / 'gcloud'
  tool.write_text(GCLOUD.format(folder=tmp_path))
  tool.chmod(0o755)

  def call(*words, code=0, broken=''):
    (tmp_path / 'broken').write_text(broken)
    (tmp_path / 'calls').write_text('')
    done = subprocess.run(
      [str(SCRIPT), *words],  # as a user calls it: it must be executable
      env={
        **os.environ,
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'TMPDIR': str(tmp_path),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stderr
    calls = [shlex.split(line) for line in (tmp_path / 'calls').read_text().splitlines()]
    assert all(words[:3] == ['compute', 'tpus', 'tpu-vm'] for words in calls)
    return [words[3:] for words in calls], done

  call.folder = tmp_path
  return call


def test_create_status_logs_stop_delete(pod):
  calls, _ = pod('create', *AT, '--type', 'v5litepod-16', '--spot', '--project=p')
  (made,) = calls
  assert made == [
    'create', 'pod', '--accelerator-type=v5litepod-16', '--version=v2-alpha-tpuv5-lite', '--spot',
    '--zone=us-west4-a', '--project=p',
  ]  # fmt: skip
  calls, _ = pod('create', *AT, '--type=v9-8', '--version=new')
  assert '--version=new' in calls[0] and '--spot' not in calls[0]
  calls, _ = pod('status', *AT)
  assert calls[0][:2] == ['describe', 'pod'] and '--worker=all' in calls[1]
  calls, _ = pod('logs', *AT, '--worker', '3', '--follow')
  assert '--worker=3' in calls[0] and calls[0][4].endswith('worker.sh logs -f')
  calls, _ = pod('stop', *AT)
  assert calls[0][:4] == ['ssh', 'pod', '--worker=all', '--command']
  assert pod('delete', *AT)[0] == [['delete', 'pod', '--zone=us-west4-a']]
  assert '--quiet' in pod('delete', *AT, '--yes')[0][0]


def test_run_sends_the_commit_and_starts_the_same_command_everywhere(pod):
  extra = ['--config.evaluate.levels=(0.1, 0.2)', "--config.note=it's $HOME", '--arms=a']
  calls, done = pod('run', *MAIN[:2], *AT, *MAIN[2:], *extra)
  busy, scp, install, start = calls
  assert busy[0] == 'ssh' and 'worker.sh status' in busy[4]
  assert scp[0] == 'scp' and scp[2] == 'pod:robustmed.tar.gz' and '--worker=all' in scp
  head = subprocess.run(
    ['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
  ).stdout.strip()
  assert head in scp[1] and not pathlib.Path(scp[1]).exists()
  assert 'ROBUSTMED_ACCELERATOR=tpu' in install[4] and 'tar -xzf' in install[4]
  assert '--worker=all' in start
  # What the worker's shell will read is exactly what was typed.
  assert shlex.split(start[4]) == [
    'bash', 'robustmed/launch/worker.sh', 'start', *MAIN, *extra, '--distributed',
  ]  # fmt: skip
  assert 'must be on a disk' not in done.stderr


def test_own_flags_after_two_dashes_go_to_main_and_a_local_workdir_is_warned_of(pod):
  mine = ['--distributed', '--config=configs/spine.py:paper', '--workdir=runs/x', '--name', 'y']
  calls, done = pod('run', *AT, '--', *mine)
  assert shlex.split(calls[-1][4])[3:] == mine
  assert "the workdir 'runs/x' must be on a disk that all workers share" in done.stderr


def test_a_dry_run_prints_every_command_and_runs_none(pod):
  calls, done = pod('run', *AT, '--dry-run', *MAIN)
  assert calls == [] and not list(pod.folder.glob('*.tar.gz'))
  printed = [shlex.split(line) for line in done.stdout.splitlines()]
  really, _ = pod('run', *AT, *MAIN)
  of_gcloud = [words[4:] for words in printed if words[0] == 'gcloud']
  assert of_gcloud == really
  assert [words[0] for words in printed] == ['gcloud', 'git', 'gcloud', 'rm', 'gcloud', 'gcloud']
  for what in ('setup', 'logs', 'status', 'stop', 'delete'):
    calls, done = pod(what, *AT, '--dry-run')
    assert calls == [] and 'gcloud compute tpus tpu-vm' in done.stdout


def test_flags_win_over_the_env_file(pod, tmp_path):
  file = tmp_path / 'mine.env'
  file.write_text('# a pod\nNAME=other\nZONE=z\nTYPE=v4-8\nSPOT=yes')
  calls, _ = pod('create', '--name=pod', '--env', str(file))
  assert calls[0] == [
    'create', 'pod', '--accelerator-type=v4-8', '--version=tpu-ubuntu2204-base', '--spot',
    '--zone=z',
  ]  # fmt: skip
  file.write_bytes(b'NAME="pod"\r\nZONE=z  # c\r\n')
  calls, _ = pod('stop', '--env', str(file))
  assert calls[0][:2] == ['ssh', 'pod'] and calls[0][-1] == '--zone=z'
  file.write_text('NAME=$(touch x)\nRUN=1\n')
  _, done = pod('stop', '--env', str(file), code=2)
  assert "the line 'RUN=1'" in done.stderr and not pathlib.Path('x').exists()


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (['fly', *AT], "unknown command 'fly'"),
    (['stop', '--zone=z'], 'stop needs --name'),
    (['stop', '--name=pod'], 'stop needs --zone'),
    (['create', *AT], 'create needs --type'),
    (['create', *AT, '--type=v9-1'], "the runtime version for the type 'v9-1' is unknown"),
    (['run', *AT], "run needs the main program's --config and --workdir"),
    (['run', *AT, '--config=configs/spine.py'], "run needs the main program's --config and"),
    (['run', *AT, '--config', 'configs/x.py:paper', '--workdir=w'], 'has no file configs/x.py'),
    (['run', *AT, *MAIN, '--ref', 'nowhere'], "there is no commit 'nowhere'"),
    (['run', *AT, *MAIN, '--worker', '0'], 'run does not take --worker'),
    (['create', *AT, '--type=v4-8', '--follow'], 'create does not take --follow'),
    (['stop', *AT, '--force'], 'stop does not take --force'),
    (['stop', '--name'], '--name needs a value'),
    (['setup', *AT, '--ref=nowhere'], "there is no commit 'nowhere'"),
    (['stop', '--env=/nowhere'], 'no file /nowhere'),
  ],
)
def test_mistakes_are_one_line(pod, words, says):
  calls, done = pod(*words, code=2)
  assert not [words for words in calls if words[0] != 'ssh']
  assert done.stderr.count('\n') == 1 and done.stderr.startswith('robustmed: error: ')
  assert says in done.stderr


def test_a_failing_gcloud_ends_the_script(pod):
  calls, done = pod('run', *AT, *MAIN, code=1, broken='scp')
  assert calls[-1][0] == 'scp' and 'gcloud says why' in done.stderr


def test_the_scripts_are_clean():
  if shutil.which('shellcheck') is None:
    pytest.skip('shellcheck is not installed')
  scripts = sorted((ROOT / 'launch').glob('*.sh')) + sorted((ROOT / 'launch').glob('*.sbatch'))
  done = subprocess.run(
    ['shellcheck', *map(str, scripts)], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


def test_check_compiles_here_and_calls_no_cloud(pod):
  words = ['--type', 'v5litepod-16', '--config', 'configs/quickstart.py:paper', '--arms=adv']
  calls, done = pod('check', *words, '--dry-run')
  assert calls == []
  ran = shlex.split(done.stdout)
  assert ran[0] == 'env' and 'ROBUSTMED_EXTRA=launch/tpu_compile.txt' in ran
  assert ran[-7:] == ['--stage', 'compile', '--target', *words[1:]]
  assert 'check needs --type' in pod('check', *words[2:], code=2)[1].stderr
  assert "needs the main program's --config" in pod('check', *words[:2], code=2)[1].stderr
  assert 'check does not take --spot' in pod('check', *words, '--spot', code=2)[1].stderr
