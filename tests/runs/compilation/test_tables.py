"""Tables of compilations, and the page that has that of all papers."""

import json
import pathlib

from robustmed.runs.compilation import __main__ as tables
from support import runs

MIB = 2**20


def _row(program, **more):
  return {
    'program': program,
    'kind': program.split()[0],
    'calls': 90.0,
    'each': 4,
    'idle': 0,
    'arguments': 8 * MIB,
    'temporaries': 135 * MIB,
    'code': 13 * MIB,
    'flops': 5e11,
    'collectives': 0,
    'in_loops': 0,
    'seconds': {'predicted': 0.1},
    'hours': {'predicted': 0.0025},
    'largest': 484,
    'cpu': 30.0,
    'needed': 0,
    'advice': '',
    **more,
  }


def _told(*rows, **more):
  return {
    'target': 'v5e-16',
    'devices': 16,
    'memory': 16 * 1024 * MIB,
    'programs': list(rows),
    'left out': [],
    'distinct': len(rows),
    'hours': {'predicted': 0.0025, 'roofline': 0.001},
    'studies': 0.0,
    **more,
  }


def _written(folder, **told):
  for config, one in told.items():
    path = folder / config / 'compile' / f'{one["target"]}.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(one))
  tables.main(folder)
  return (folder / 'table.md').read_text()


def test_a_run_says_what_was_not_compiled_and_how_long_that_takes(tmp_path):
  rows = _row('attack pgd', quick=True), _row('train amat', cpu=90.0, quick=False)
  left = ['train std', 'train sat_1', 'attack apgd', 'score std']
  text = _written(tmp_path, amat_hippocampus=_told(*rows, **{'left out': left}))
  # two trainings of 90 s, an attack of 30, a score of 60, the mean of what is known
  named = 'train std, sat_1; attack apgd; score std'
  line = (
    f'| amat_hippocampus | v5e-16 | 2 of 6 | 156 MiB | 0.0025, 0.001 | 8 | {named} | about 4 min |'
  )
  assert text.splitlines()[-1].startswith(line)
  pgd = '| amat_hippocampus | v5e-16 | attack pgd | 4 | 8; 135; 13 | 0.95% | 500 | 0 (0) | 484 |'
  assert f'{pgd} 30 s (quick) |' in text.splitlines()


def test_what_does_not_fit_says_by_how_much(tmp_path):
  advice = 'train at does not fit: ... needs less'
  row = _row('train at', needed=20 * 1024 * MIB, advice=advice, largest=0, idle=3)
  text = _written(tmp_path, brats3d=_told(row))
  assert f'- brats3d: {advice}' in text.splitlines()
  assert '20,480 MiB (does not fit)' in text and '1.2e+02%' in text and ' 4 (3) | ' in text


def test_a_table_is_made_of_the_stored_rows_alone(tmp_path):
  text = _written(tmp_path, spine=_told(_row('train std')), brats2d=_told(_row('train at')))
  made = tables.page(*(tables.rows_of(tmp_path / f'{name}.csv') for name in ('runs', 'programs')))
  assert '\n'.join(made) + '\n' == text
  assert text.index('brats2d') < text.index('spine')


def test_the_page_has_the_table_of_the_committed_rows():
  folder = pathlib.Path(runs.ROOT) / 'docs'
  rows = [
    tables.rows_of(folder / 'results' / 'compile' / f'{name}.csv') for name in ('runs', 'programs')
  ]
  text = (folder / 'clusters.md').read_text()
  shown = text.partition('<!-- compiled')[2].partition('-->\n')[2].partition('<!-- /compiled')[0]
  assert shown.strip().splitlines() == tables.page(*rows)
