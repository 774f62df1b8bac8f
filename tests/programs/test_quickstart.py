"""Whole runs at smoke size, as real processes: resumed, killed, reported, attacked elsewhere."""

import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import pandas as pd
import pytest

from robustmed import data
from support import runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/quickstart.py:smoke']
# Long enough to be met in the middle of a training.
LONG = ['--config.train.steps=30', '--config.train.checkpoint_every=5']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An undisturbed run."""
  folder = tmp_path_factory.mktemp('whole')
  words = [*CONFIG, *LONG, '--workdir', folder, '--config.evaluate.save_examples=2']
  return folder, runs.main(*words, fresh=True)


def _summary(folder):
  return (pathlib.Path(folder) / 'results' / 'summary.csv').read_bytes()


def test_a_run_leaves_what_it_promises(whole):
  folder, done = whole
  for name in (
    'config.json',
    'env.json',
    'logs/train.csv',
    'results/rows.parquet',
    'results/checks.json',
    'report/report.md',
    'report/report.html',
    'report/tables/claims.csv',
    'report/figures/curve_DICE_seg_pgd_seg.png',
    'report/figures/examples_pgd_seg_0.07.png',
  ):
    assert (folder / name).stat().st_size > 0, name
  summary = pd.read_csv(folder / 'results' / 'summary.csv', keep_default_na=False)
  assert list(summary.columns) == [
    'arm',
    'attack',
    'eps',
    'metric',
    'mean',
    'std',
    'n',
    'low',
    'high',
  ]
  assert set(summary.arm) == {'std', 'rand', 'adv'}
  assert set(summary.attack) == {'none', 'pgd_seg', 'fgsm', 'noise'}
  assert set(summary.metric) == {'DICE_seg', 'DICE_reg', 'Error_reg'}
  assert set(summary[summary.attack == 'none'].eps) == {0}
  rows = pd.read_parquet(folder / 'results' / 'rows.parquet')
  assert list(rows.columns[:6]) == ['arm', 'attack', 'eps', 'index', 'seed', 'group']
  assert len(rows) == 3 * (1 + 3 * 2) * 10 and rows.groupby('index').group.nunique().eq(1).all()
  assert f'report: {folder}/report/report.html' in done.stdout
  few = '2 groups (patients, volumes, ...) in the test split can decide none of the 5 claims'
  assert done.stderr.index(few) < done.stderr.index('training std')
  assert 'DICE_seg under pgd_seg' in done.stdout and 'adv' in done.stdout
  assert not list(folder.rglob('*.tmp*'))
  assert re.search(r'\[robustmed\] done in (\d+ min )?\d+ s\n$', done.stderr)


def test_a_second_call_does_nothing_again(whole):
  folder, _ = whole
  before = {p: p.stat().st_mtime_ns for p in (folder / 'results' / 'parts').iterdir()}
  again = runs.main(
    *CONFIG, *LONG, '--workdir', folder, '--config.evaluate.save_examples=2', '--stage', 'all'
  )
  assert 'training' not in again.stderr
  assert {p: p.stat().st_mtime_ns for p in (folder / 'results' / 'parts').iterdir()} == before


def test_arms_evaluated_in_two_calls_end_as_in_one(whole, tmp_path):
  folder, _ = whole
  for name in ('checkpoints', 'logs'):
    shutil.copytree(folder / name, tmp_path / name)
  words = [*CONFIG, *LONG, '--workdir', tmp_path, '--config.evaluate.save_examples=2']
  results = tmp_path / 'results'
  runs.main(*words, '--stage', 'evaluate', '--arms', 'rand')
  parts = {path: path.stat().st_mtime_ns for path in (results / 'parts').glob('*.parquet')}
  assert len(parts) == 7 and set(pd.read_csv(results / 'summary.csv').arm) == {'rand'}
  lost = runs.mistake(*words, '--stage', 'evaluate', '--arms', 'std', '--config.seed=1')
  assert 'seed: 0 there, 1 here' in lost
  runs.main(*words, '--stage', 'evaluate', '--arms', 'adv,std')
  assert {path: path.stat().st_mtime_ns for path in parts} == parts
  for name in ('summary.csv', 'checks.json', 'rows.parquet'):
    assert (results / name).read_bytes() == (folder / 'results' / name).read_bytes(), name
  with (
    np.load(results / 'examples.npz') as ours,
    np.load(folder / 'results' / 'examples.npz') as all,
  ):
    assert ours['arm'].tolist() == ['adv', 'adv', 'rand', 'rand', 'std', 'std']
    for name in all.files:
      np.testing.assert_array_equal(ours[name], all[name])


def test_killed_in_training_and_in_evaluation_it_ends_the_same(whole, tmp_path):
  words = [*CONFIG, *LONG, '--workdir', tmp_path, '--config.evaluate.save_examples=2']
  state = tmp_path / 'checkpoints' / 'std' / 'seed0' / 'state'
  code = runs.interrupted(*words, when=lambda: (state / '10').exists())
  assert code == -signal.SIGKILL
  assert not (tmp_path / 'checkpoints' / 'rand').exists()
  parts = tmp_path / 'results' / 'parts'
  runs.interrupted(*words, when=lambda: parts.is_dir() and len(list(parts.glob('*.parquet'))) > 4)
  assert not (tmp_path / 'results' / 'summary.csv').exists()
  runs.main(*words)
  assert _summary(tmp_path) == _summary(whole[0])
  pd.testing.assert_frame_equal(
    pd.read_parquet(tmp_path / 'results' / 'rows.parquet'),
    pd.read_parquet(whole[0] / 'results' / 'rows.parquet'),
  )


def test_sigterm_saves_and_exits_with_143(tmp_path):
  log = tmp_path / 'checkpoints' / 'std' / 'seed0' / 'state' / '5'
  words = [*CONFIG, '--config.train.steps=100000', '--config.train.checkpoint_every=5']
  code = runs.interrupted(
    *words, '--workdir', tmp_path, when=log.exists, signal_number=signal.SIGTERM
  )
  assert code == 143
  steps = sorted(int(p.name) for p in log.parent.iterdir() if p.name.isdigit())
  assert steps[-1] > 5 and not list(log.parent.glob('*tmp*'))


def test_a_saved_network_meets_other_data(whole, tmp_path):
  """Its worst examples of one run are files that the real source reads."""
  folder, _ = whole
  worst = next((folder / 'results' / 'worst').glob('adv.seed0.pgd_seg.*'))
  files = sorted(worst.glob('*.npz'))
  assert len(files) == 2
  raw = tmp_path / 'raw'
  for split in ('train', 'test'):
    (raw / split).mkdir(parents=True)
    for number, file in enumerate(files):
      (raw / split / f'{split}{number}_0.npz').write_bytes(file.read_bytes())
  words = [
    '--config.data.source=lumbar_disks',
    f'--config.data.dir={raw}',
    '--checkpoint',
    folder / 'checkpoints' / 'adv' / 'seed0',
  ]
  done = runs.main(
    *CONFIG, *words, '--workdir', tmp_path / 'w', ROBUSTMED_CACHE=str(tmp_path / 'c')
  )
  changed = raw / 'test' / 'test0_0.npz'
  os.utime(changed, ns=(0, 0))
  (tmp_path / 'w' / 'results' / 'parts' / 'adv.seed0.noise.0.03.parquet').unlink()
  line = runs.mistake(
    *CONFIG, *words, '--workdir', tmp_path / 'w', ROBUSTMED_CACHE=str(tmp_path / 'c')
  )
  assert 'the data of source lumbar_disks are not those' in line and 'data.json' in line
  rows = pd.read_parquet(tmp_path / 'w' / 'results' / 'rows.parquet')
  assert set(rows.arm) == {'adv'} and len(rows) == 2 * 7
  assert 'training' not in done.stderr and not (tmp_path / 'w' / 'checkpoints').exists()
  assert f'report: {tmp_path}/w/report/report.html' in done.stdout
  claims = pd.read_csv(tmp_path / 'w' / 'report' / 'tables' / 'claims.csv')
  assert 'not run' in set(claims['verdict']) and len(claims) == 5
  line = runs.mistake(*CONFIG, *words, '--workdir', tmp_path / 'x', '--config.model.width=0.5')
  assert 'is not the one this configuration describes: model.width: 0.25 there, 0.5 here' in line


def test_several_seeds_and_one_arm_with_its_needs(tmp_path):
  done = runs.main(
    *CONFIG, '--workdir', tmp_path, '--config.seeds=2', '--arms', 'adv', '--stage', 'train'
  )
  assert "arm 'std' was not asked for but is needed" in done.stderr
  found = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob('variables'))
  assert found == [f'checkpoints/{arm}/seed{n}' for arm in ('adv', 'std') for n in (0, 1)]
  folders = [tmp_path / 'checkpoints' / 'std' / f'seed{n}' / 'variables' for n in (0, 1)]
  weights = [next(folder.rglob('manifest.ocdbt')).read_bytes() for folder in folders]
  assert weights[0] != weights[1]
  line = runs.mistake(*CONFIG, '--workdir', tmp_path, '--config.seeds=2', '--stage', 'report')
  assert 'has no results yet' in line


def test_mistakes_of_users(whole, tmp_path):
  folder, _ = whole
  used = runs.mistake(*CONFIG, '--workdir', folder, '--config.train.batch_size=16')
  assert 'train.batch_size: 8 there, 16 here' in used
  nothing = runs.mistake(
    *CONFIG,
    '--workdir',
    tmp_path / 'a',
    '--config.data.source=lumbar_disks',
    '--config.data.dir=/nowhere',
  )
  assert '/nowhere' in nothing and 'SSMSpine' in nothing
  empty = tmp_path / 'raw'
  empty.mkdir()
  for patient in ('p', 'q'):
    (empty / f'{patient}_0.npz').write_bytes(b'not a zip')
  bad = runs.mistake(
    *CONFIG,
    '--workdir',
    tmp_path / 'b',
    '--config.data.source=lumbar_disks',
    f'--config.data.dir={empty}',
  )
  assert '_0.npz' in bad
  assert not (tmp_path / 'a').exists() and not (tmp_path / 'b').exists()
  assert "unknown arm 'avd'" in runs.mistake(*CONFIG, '--workdir', tmp_path / 'c', '--arms', 'avd')
  missing = runs.mistake(
    *CONFIG, '--workdir', tmp_path / 'd', '--stage', 'evaluate', '--checkpoint', tmp_path
  )
  assert 'network.json' in missing
  untrained = runs.mistake(*CONFIG, '--workdir', tmp_path / 'e', '--stage', 'evaluate')
  assert "arm 'std' (seed 0) is not trained" in untrained
  (tmp_path / 'file').write_text('')
  blocked = runs.mistake(*CONFIG, '--workdir', tmp_path / 'file' / 'w')
  assert 'cannot make the workdir' in blocked
  attack = runs.mistake(
    *CONFIG, '--workdir', tmp_path / 'f', '--config.evaluate.attacks.fgsm.name=fgms'
  )
  assert "did you mean 'fgsm'" in attack


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_workdir_that_cannot_be_written(tmp_path):
  tmp_path.chmod(0o500)
  assert 'not writable' in runs.mistake(*CONFIG, '--workdir', tmp_path)


def test_the_json_files_say_what_was_run(whole):
  folder, _ = whole
  config = json.loads((folder / 'config.json').read_text())['config']
  assert config['train']['steps'] == 30 and config['preset'] == 'smoke'
  env = json.loads((folder / 'env.json').read_text())
  assert env['versions']['jax'] and env['platform'] == 'cpu' and env['devices'] == 2


def test_worst_examples_are_the_attacked_images(whole):
  folder, _ = whole
  rows = pd.read_parquet(folder / 'results' / 'rows.parquet')
  cell = rows[(rows.arm == 'std') & (rows.attack == 'pgd_seg') & (rows.eps == 0.07)]
  worst = cell.sort_values(['DICE_seg', 'index']).head(2)
  files = sorted((folder / 'results' / 'worst' / 'std.seed0.pgd_seg.0.07').glob('*.npz'))
  config = json.loads((folder / 'config.json').read_text())['config']['data']
  source = data.load(
    {
      'name': config['source'],
      'side': 64,
      'train_patients': 4,
      'test_patients': 2,
      'contrast': config['contrast'],
      'noise': config['noise'],
    }
  )
  clean = {int(e['index']): e for e in source.test}
  assert len(files) == 2
  for file in files:
    with np.load(file) as stored:
      distances = {
        index: float(np.abs(stored['img'] - clean[index]['image'][..., 0]).max())
        for index in worst['index']
      }
    assert min(distances.values()) <= 0.07 + 1e-4


@pytest.mark.long
def test_a_second_run_compiles_nothing(tmp_path):
  kept = {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  said = []
  for name in ('first', 'second'):
    done = runs.main(*CONFIG, '--workdir', tmp_path / name, fresh=True, **kept)
    found = re.search(r'(\d+) programs were compiled, .* and (\d+) read from (.+), in', done.stderr)
    assert found[3] == kept['JAX_COMPILATION_CACHE_DIR']
    said.append([int(found[1]), int(found[2])])
  (compiled, again), (compiled_then, read_then) = said
  assert compiled > 8, said
  # What else is read may differ: what a forecast measures hangs on how fast the machine is.
  assert compiled_then == 0 and read_then >= compiled, (said, again)
