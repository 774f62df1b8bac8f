"""SLURM and Kubernetes without either: a recording srun, and the fields of the job sets."""

import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "${{JAX_LOCAL_DEVICE_IDS:-unset}}" "$SRUN_CPUS_PER_TASK" "$@" >"{folder}/srun"
exit "$(cat "{folder}/code")"
"""


@pytest.fixture
def slurm(tmp_path):
  for path, text in (
    ('bin/srun', SRUN),
    ('bin/scontrol', '#!/usr/bin/env bash\necho "$@" >>"{folder}/scontrol"\n'),
    ('.venv/bin/python', '#!/bin/sh\n'),
  ):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.format(folder=tmp_path))
    file.chmod(0o755)

  def submit(*words, ends=0, **env):
    (tmp_path / 'code').write_text(str(ends))
    (tmp_path / 'scontrol').write_text('')
    done = subprocess.run(
      ['bash', str(LAUNCH / 'slurm.sbatch'), *words],
      env={
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'SLURM_SUBMIT_DIR': str(tmp_path),
        'SLURM_JOB_ID': '77',
        'SLURM_NTASKS_PER_NODE': '8',
        'SLURM_GPUS_ON_NODE': '8',
        **env,
      },
      capture_output=True,
      text=True,
      check=False,
    )
    called = (tmp_path / 'srun').read_text().splitlines() if (tmp_path / 'srun').exists() else []
    return done, called, (tmp_path / 'scontrol').read_text()

  submit.folder = tmp_path
  return submit


def test_every_task_runs_main_on_a_gpu_of_its_own(slurm):
  done, called, again = slurm('--config', 'c.py', '--workdir', 'a b')
  assert done.returncode == 0 and again == ''
  assert called[0] == 'unset'  # JAX goes by SLURM_LOCALID
  start = called.index('-m')
  assert called[start:] == [
    '-m', 'robustmed.main', '--config', 'c.py', '--workdir', 'a b', '--distributed',
  ]  # fmt: skip


def test_a_process_alone_on_its_node_takes_all_gpus(slurm):
  _, called, _ = slurm(SLURM_NTASKS_PER_NODE='1', SLURM_GPUS_ON_NODE='4')
  assert called[0] == '0,1,2,3'


def test_every_task_gets_its_cores(slurm):
  _, called, _ = slurm(SLURM_CPUS_PER_TASK='8')
  assert called[1] == '8'  # srun does not look at the job's own any more


def test_an_array_job_has_one_arm_each(slurm):
  _, called, _ = slurm('--stage', 'train', ARMS='std rand adv', SLURM_ARRAY_TASK_ID='1')
  assert called[-2:] == ['--arms', 'rand']
  done, _, _ = slurm(ARMS='std', SLURM_ARRAY_TASK_ID='1')
  assert done.returncode == 2 and "ARMS='std' has no entry number 1" in done.stderr


@pytest.mark.parametrize(
  ('code', 'before', 'queued'),
  [(143, 9, True), (75, 0, True), (75, 3, False), (2, 0, False), (0, 0, False)],
)
def test_what_was_stopped_is_queued_again(slurm, code, before, queued):
  done, _, again = slurm(ends=code, SLURM_RESTART_COUNT=str(before))
  assert done.returncode == code and again == ('requeue 77\n' if queued else '')


def test_without_an_environment_it_says_what_to_do(slurm):
  shutil.rmtree(slurm.folder / '.venv')
  done, called, _ = slurm()
  assert done.returncode == 2 and called == [] and 'bash launch/local.sh --help' in done.stderr


def test_the_directives_of_the_job():
  text = (LAUNCH / 'slurm.sbatch').read_text()
  directives = [line for line in text.splitlines() if line.startswith('#SBATCH ')]
  assert '#SBATCH --signal=TERM@180' in directives and '#SBATCH --requeue' in directives
  # SLURM reads them only before the first command, and takes no comment behind them.
  assert text.rindex('#SBATCH') < text.index('set -euo')
  assert not [line for line in directives if ' #' in line]


def _job_sets():
  yaml = pytest.importorskip('yaml', reason='PyYAML is not installed')
  found = list(yaml.safe_load_all((LAUNCH / 'gke_jobset.yaml').read_text()))
  return found, [document for document in found if document['kind'] == 'JobSet']


def test_the_job_sets_hang_together():
  found, sets = _job_sets()
  kinds = [document['kind'] for document in found]
  assert kinds == ['ServiceAccount', 'Role', 'RoleBinding', 'JobSet', 'JobSet']
  role = {r for rule in found[1]['rules'] for r in rule['resources']}
  assert role == {'pods', 'services', 'jobs'}  # what JAX's detection asks for
  assert all(document['metadata']['labels']['part'] for document in found)
  for document in sets:
    (replicated,) = document['spec']['replicatedJobs']
    job = replicated['template']['spec']
    assert job['parallelism'] == job['completions'] and job['completionMode'] == 'Indexed'
    assert job['backoffLimit'] == 0
    (rule,) = job['podFailurePolicy']['rules']
    pod = job['template']['spec']
    (container,) = pod['containers']
    assert rule['onExitCodes'] == {
      'containerName': container['name'], 'operator': 'In', 'values': [2],
    }  # fmt: skip
    assert document['spec']['failurePolicy']['rules'][0]['action'] == 'FailJobSet'
    assert pod['serviceAccountName'] == found[0]['metadata']['name']
    assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] >= 60
    assert container['command'][-2:] == ['-m', 'robustmed.main']
    assert '--distributed' in container['args']
    (chips,) = container['resources']['limits'].values()
    assert chips >= 1


def test_the_tpu_slice_has_as_many_chips_as_its_topology():
  _, sets = _job_sets()
  job = sets[1]['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  across, down = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  chips = pod['containers'][0]['resources']['limits']['google.com/tpu']
  assert int(across) * int(down) == chips * job['parallelism']


def test_kubernetes_takes_the_job_sets():
  if shutil.which('kubeconform') is None:
    pytest.skip('kubeconform is not installed')
  words = ['kubeconform', '-strict', '-ignore-missing-schemas', str(LAUNCH / 'gke_jobset.yaml')]
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout
