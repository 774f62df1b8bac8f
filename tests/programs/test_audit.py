"""configs/audit.py at smoke size, as a real process, with an ONNX file."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from support import audited, folders, runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/audit.py:smoke', '--config.data.source=phantom_labelled']
SCHEMA = runs.ROOT / 'docs' / 'audit.md'


def _paths(value, path=''):
  """The keys of a document, '.NAME' for keys that are names of networks, attacks or fields."""
  named = {'networks', 'attacks', 'smallest_breaking_eps'}
  if isinstance(value, list):
    for one in value:
      yield from _paths(one, f'{path}[]')
  elif isinstance(value, dict):
    for key, inner in value.items():
      place = f'{path}.NAME' if path in named else f'{path}.{key}'.lstrip('.')
      yield place
      if place not in (
        'provenance.environment',
        'provenance.networks',
        'attacks.NAME.settings',
        'networks.NAME.origin',
      ):
        yield from _paths(inner, place)


def test_one_command_audits_a_file(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx', centres=(0.4, 0.7, 1.2), last='Softmax')
  words = [*CONFIG, f'--config.network={path}', '--config.input.normalise=minmax']
  words += ['--config.evaluate.levels=(0.02,0.1)', '--workdir', tmp_path / 'w']
  words += ['--config.evaluate.smoothing.sigma=0.02', '--config.evaluate.smoothing.images=2']
  words += ['--config.evaluate.smoothing.draws=80']
  done = runs.main(*words)
  assert 'net.onnx: output.activation = softmax (the network)' in done.stderr
  assert 'eps = 0.1 of the image' in done.stderr
  report = tmp_path / 'w' / 'report'
  found = json.loads((report / 'audit.json').read_text())
  documented = set(re.findall(r'^\| `([^`]+)`', SCHEMA.read_text(), re.M))
  told = {
    re.sub(r'^cases\[\]\.(DICE|NSD|HD95)_\w+$', r'cases[].\1_CLASS', p) for p in _paths(found)
  }
  assert told == documented
  means = {
    (line['attack'], line['eps']): line['mean']
    for line in found['results']
    if line['metric'] == 'DICE'
  }
  assert means['pgd', 0.1] < means['pgd', 0.02] < means['none', 0] and means['none', 0] > 0.3
  assert means['pgd', 0.1] < means['noise', 0.1] - 0.05
  for line in found['certified']:
    assert line['images'] == 2 and line['certified'] <= line['attacked'] <= line['smoothed']
  assert len(found['certified']) == 3 and found['certified'][0]['certified'] > 0.1
  checks = {check['name']: check['status'] for check in found['checks']}
  assert checks['gradients predict changes'] == checks['the worst is never weaker'] == 'pass'
  card = (report / 'card.md').read_text()
  assert found['networks']['net']['sha256'] in card and "| 0.1: 10 % of the image's" in card
  page = (report / 'report.md').read_text()
  assert page.index('What was asked') < page.index('How to read this page')
  assert 'Coverage of two checklists' in page
  assert len(list((tmp_path / 'w' / 'results' / 'worst').rglob('*_label.nii.gz'))) == 1
  audited.brightness(path, centres=(0.4, 0.7, 1.1), last='Softmax')
  (tmp_path / 'w' / 'results' / 'parts' / 'net.seed0.pgd.0.1.parquet').unlink()
  assert 'are not those that the run' in runs.mistake(*words)


def test_volumes_end_to_end_in_patient_space(tmp_path):
  """A network in 3D, volumes whose sides are no multiples of 2, an affine that flips and shifts."""
  labels = {'background': 0, 'organ': 1, 'lesion': 2}
  folder = folders.nnunet(tmp_path / 'raw', cases=4, labels=labels, shape=(7, 10, 13))
  path = audited.brightness(tmp_path / 'net.onnx', axes=3, centres=(0.1, 0.45, 0.9))
  words = ['--config', 'configs/audit.py:smoke', f'--config.network={path}']
  words += [f'--config.data.dir={folder}', f'--config.data.cache_dir={tmp_path / "cache"}']
  words += ['--config.input.normalise=minmax', '--config.evaluate.levels=(0.05,0.2)']
  words += ["--config.evaluate.corruptions=('rician',)", '--config.evaluate.save_examples=2']
  done = runs.main(*words, '--workdir', tmp_path / 'w')
  assert 'distances: whole cases, in mm, tolerance of NSD 2 mm' in done.stderr
  found = json.loads((tmp_path / 'w' / 'report' / 'audit.json').read_text())
  page = (tmp_path / 'w' / 'report' / 'report.md').read_text()
  assert 'Under artefacts of acquisition of middle severity: rician 0.' in page
  assert found['data']['axes'] == 3 and found['data']['images_attacked'] == 4
  assert found['distances']['whole'] and len(found['cases']) == 4 * (1 + 3 * 2 + 4)
  assert all(line['HD95'] is not None for line in found['cases'] if line['attack'] == 'none')
  assert (tmp_path / 'w' / 'report' / 'figures' / 'examples_pgd_0.05.png').exists()
  worst = tmp_path / 'w' / 'results' / 'worst' / 'net.seed0.pgd.0.2'
  written = sorted(worst.glob('*_label.nii.gz'))
  assert len(written) == 2
  ends = {line['case']: line for line in found['smallest_breaking_eps']['net']['per_case']}
  for label in written:
    name = label.name.removesuffix('_label.nii.gz')
    stored = nib.load(folder / 'imagesTr' / f'{name}_0000.nii.gz')
    image, truth = (
      nib.load(worst / f'{name}.nii.gz'),
      nib.load(folder / 'labelsTr' / f'{name}.nii.gz'),
    )
    for one in (image, nib.load(label)):
      np.testing.assert_allclose(one.affine, stored.affine)
      assert one.shape == stored.shape == (13, 10, 7)
    np.testing.assert_array_equal(nib.load(label).dataobj, truth.dataobj)
    before, after = (np.asarray(one.dataobj, np.float64) for one in (stored, image))
    low, high = np.quantile(before, [0.005, 0.995])
    change = np.abs(after - before).max()
    assert 0.15 * (high - low) < change <= 0.2 * (high - low) + 0.5  # rounded to whole numbers
    line = ends[name]
    assert line['eps'] == 'above' or 0 <= line['not_broken_at'] < line['eps'] <= 0.2


@pytest.mark.parametrize('kind', ['classes', 'landmarks'])
def test_networks_of_whole_images(kind, tmp_path):
  """A class or landmarks of each image: rows per case, AUROC, pictures, words of the kind."""
  if kind == 'classes':
    folder = folders.shades(tmp_path / 'raw')
    path = audited.classifier(tmp_path / 'net.onnx', last='Softmax')
    words, metric = ["--config.output.classes=('dark','bright')"], 'ACCURACY'
  else:
    folder = folders.spots(tmp_path / 'raw')
    path, words, metric = audited.heat_maps(tmp_path / 'net.onnx', stride=2), [], 'MRE'
  words += ['--config', 'configs/audit.py:smoke', f'--config.network={path}']
  words += [f'--config.data.dir={folder}', f'--config.data.cache_dir={tmp_path / "cache"}']
  words += ['--config.evaluate.levels=(0.05,0.25)', '--config.data.most_examples=0']
  words += ['--config.evaluate.attacks.pgd.num_steps=10']
  runs.main(*words, '--workdir', tmp_path / 'w')
  report = tmp_path / 'w' / 'report'
  found = json.loads((report / 'audit.json').read_text())
  assert found['metric']['name'] == metric and found['distances'] is None
  documented = set(re.findall(r'`([^`\n]+)`', SCHEMA.read_text()))
  assert {f'cases[].{metric}', 'smallest_breaking_eps.NAME.metric'} <= documented
  told = {path for path in _paths(found) if not re.match(r'cases\[\]\.|distances', path)}
  assert told <= documented
  means = {(line['attack'], line['eps'], line['metric']): line['mean'] for line in found['results']}
  clean, attacked = (means[n, e, metric] for n, e in (('none', 0.0), ('pgd', 0.25)))
  cases = sorted({line['case'] for line in found['cases']})
  worst = list((tmp_path / 'w' / 'results' / 'worst').rglob('*.png'))
  assert (
    len(worst) == 1
    and worst[0].with_suffix('.csv').exists()
    and worst[0].stem in [case.replace('/', '_') for case in cases]
  )
  card = (report / 'card.md').read_text()
  if kind == 'classes':
    assert clean == 1 and attacked == 0 and means['none', 0.0, 'AUROC'] == 1
    assert cases == sorted(f'{k}/{k}_{n}' for k in ('bright', 'dark') for n in range(4))
    levels = [one['eps'] for one in found['smallest_breaking_eps']['net']['per_case']]
    assert all(isinstance(eps, float) and eps <= 0.25 for eps in levels)
    assert 'its class is wrong' in card and 'AUROC' in (report / 'report.md').read_text()
  else:
    assert clean < 5 < attacked and means['none', 0.0, 'SDR_4mm'] > 0.5
    assert 'mean radial error' in card and 'within 4 mm or pixels' in card


@pytest.mark.long
def test_a_classifier_is_trained_and_its_checkpoint_audited(tmp_path):
  folder = folders.shades(tmp_path / 'raw', cases=5)
  words = [f'--config.data.dir={folder}', f'--config.data.cache_dir={tmp_path / "cache"}']
  trained = tmp_path / 'trained'
  found = runs.main('--config', 'configs/train.py:smoke', *words, '--workdir', trained)
  assert 'ACCURACY under pgd' in found.stdout and (trained / 'report' / 'report.html').exists()
  network = trained / 'checkpoints' / 'adv' / 'seed0'
  words += ['--config', 'configs/audit.py:smoke', f'--config.network={network}']
  words.append('--config.data.most_examples=0')
  done = runs.main(*words, '--workdir', tmp_path / 'audited')
  assert 'output.kind = classification (network.json)' in done.stderr
  assert 'output.classes = bright, dark (network.json)' in done.stderr
  audit = json.loads((tmp_path / 'audited' / 'report' / 'audit.json').read_text())
  assert next(iter(audit['networks'].values()))['format'] == 'checkpoint'
  # the test images of both runs get the same probabilities
  rows = pd.read_parquet(trained / 'results' / 'rows.parquet')
  rows = rows[(rows['arm'] == 'adv') & (rows['attack'] == 'none')]
  ours = {row['case']: row['P_TRUE'] for row in audit['cases'] if row['attack'] == 'none'}
  assert rows['P_TRUE'].nunique() == len(rows) > 2
  for value in rows['P_TRUE']:
    assert min(abs(value - other) for other in ours.values()) < 1e-5
