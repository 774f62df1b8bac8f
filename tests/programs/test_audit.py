"""configs/audit.py at smoke size, as a real process, with an ONNX file."""

import json
import re

import pytest

from support import audited, runs

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
  card = (report / 'card.md').read_text()
  assert found['networks']['net']['sha256'] in card and 'eps = 0.1 of the image' in card
  page = (report / 'report.md').read_text()
  assert page.index('What was asked') < page.index('How to read this page')
  assert 'Coverage of two checklists' in page
  assert len(list((tmp_path / 'w' / 'results' / 'worst').rglob('*_label.nii.gz'))) == 1
  audited.brightness(path, centres=(0.4, 0.7, 1.1), last='Softmax')
  (tmp_path / 'w' / 'results' / 'parts' / 'net.seed0.pgd.0.1.parquet').unlink()
  assert 'are not those that the run' in runs.mistake(*words)
