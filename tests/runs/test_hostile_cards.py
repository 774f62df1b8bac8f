"""The card beside a saved network cannot make a run write outside of its workdir."""

import json

import pytest

from robustmed import main
from support import runs

SMOKE = f'{runs.ROOT / "configs" / "quickstart.py"}:smoke'


def _files(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('arm', '{outside}/x'),
    ('arm', '../../outside/x'),
    ('arm', '.'),
    ('arm', 'a\0b'),
    ('arm', 'a' * 300),
    ('arm', ['std']),
    ('seed', '../../outside/1'),
    ('seed', True),
    ('seed', 10**30),
    ('fold', '../0'),
  ],
)
def test_names_that_lead_out_of_the_workdir_are_one_line(tmp_path, capsys, field, value):
  outside = tmp_path / 'outside'
  outside.mkdir()
  if isinstance(value, str):
    value = value.replace('{outside}', str(outside))
  network = tmp_path / 'network'
  (network / 'variables').mkdir(parents=True)
  card = {'arm': 'std', 'seed': 0, 'model': {}, 'image_shape': [4], field: value}
  (network / 'network.json').write_text(json.dumps(card))
  before = _files(tmp_path)
  words = ['--config', SMOKE, '--workdir', str(tmp_path / 'run'), '--stage', 'evaluate']
  assert main.main([*words, '--checkpoint', str(network)]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('robustmed: error: ') and f'{field} in {network}' in line
  assert len(line) < 500 + len(str(network))
  assert _files(tmp_path) == before
