"""The page on gliomas from made-up rows: every section, table and figure, without a network."""

import re

import numpy as np
import pytest

from robustmed import errors, report
from robustmed.evaluation import checks
from robustmed.papers.brats import experiment, notes
from robustmed.papers.brats import report as brats_report
from robustmed.process import files
from robustmed.runs import commandline
from support import tumour_rows


def config(dimension, other=''):
  chosen = commandline.load_config(f'configs/brats{dimension}d.py:paper')
  with chosen.unlocked():
    chosen.report.other = str(other)
  return chosen


def workdir(folder, rows, *, dimension=3):
  """What training and evaluation leave of a run with these rows."""
  (folder / 'results').mkdir(parents=True)
  (folder / 'logs').mkdir()
  rows.to_parquet(folder / 'results' / 'rows.parquet')
  found = checks.run(rows, metric='dice_wt', higher_is_better=True, main='ifgsm')
  files.write_json(folder / 'results' / 'checks.json', [check._asdict() for check in found])
  files.write_json(folder / 'config.json', {'config': {'dimension': dimension}})
  files.write_json(folder / 'data.json', {'sizes': {'train': 48}})
  tumour_rows.log().assign(loss=0.5).to_csv(folder / 'logs' / 'train.csv', index=False)
  curves = rows[(rows['arm'] == 'std') & rows['attack'].isin(['ifgsm', 'tifgsm'])]
  curves.to_parquet(folder / 'results' / 'iterations.parquet')
  rng = np.random.default_rng(0)
  cells = [(arm, 'fgsm', 0.03) for arm in tumour_rows.DICE]
  cells += [('std', name, 0.05) for name in ('fgsm', 'ifgsm', 'tifgsm')]
  draw = lambda: rng.uniform(0, 1, (len(cells), 8, 8, 4)).astype(np.float32)
  labels = rng.integers(0, 4, (len(cells), 8, 8))
  np.savez(
    folder / 'results' / 'slices.npz',
    **{name: np.array(part) for name, part in zip(('arm', 'attack', 'eps'), zip(*cells))},
    **{name: draw() for name in ('image', 'adversarial')},
    **dict.fromkeys(('truth', 'clean', 'attacked'), labels),
  )
  return folder


def write(folder, chosen):
  task = experiment.make_task(chosen)
  return report.write(folder, spec=brats_report.spec_of(chosen, task, folder))


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  slices = workdir(
    folder / '2d', tumour_rows.rows({'std': (0.78, 0.5, 0.3, 0.4, 0.5)}), dimension=2
  )
  cubes = workdir(folder / '3d', tumour_rows.rows())
  return cubes, write(cubes, config(3, slices)), write(slices, config(2))


def test_every_section_and_figure_is_there(pages):
  folder, made, _ = pages
  page = made.markdown.read_text()
  for words in (
    'Table 1', 'Table 2', '0.561 ± 0.077', '0.809 ± 0.161', 'adaptive column', 'Verdicts',
    'T=5000: **masked**', 'AT 0.05: **holds**', 'Cost of training', 'rank-sum', 'Fig. 9',
    'Distillation against adversarial training', 'times the seconds', 'Diagnostics',
  ):  # fmt: skip
    assert words in page, words
  pictures = re.findall(r'\]\((.*?\.png)\)', page)
  assert all((folder / 'report' / link).is_file() for link in pictures)
  for part in ('fig2', 'fig3_4', 'fig5', 'fig7', 'fig9', 'adaptive', 'label_leak'):
    assert part in ' '.join(pictures), part


def test_claims_compare_both_dimensions(pages):
  decided = pages[1].claims.set_index('statement')['verdict']
  both = decided[decided.index.str.startswith('The 3D network is better')]
  assert len(both) == 3 and set(both) == {'holds'}
  assert decided['i-FGSM lowers core Dice more than FGSM'] == 'holds'


def test_the_undefended_network_alone_makes_a_page(pages):
  page = pages[2].markdown.read_text()
  assert 'Table 1' in page and 'Verdicts' not in page and 'against adversarial' not in page
  decided = pages[2].claims.set_index('statement')
  assert 'not run' in set(decided['verdict'])
  assert not decided.index.str.contains('enhancing tumour under FGSM').any()  # 3D alone


@pytest.mark.parametrize('kept', ['fgsm', 'tifgsm'])
def test_one_attack_alone_makes_a_page(tmp_path, kept):
  rows = tumour_rows.rows(subjects=6)
  folder = workdir(tmp_path / 'run', rows[rows['attack'].isin(['none', kept])])
  chosen = config(3)
  with chosen.unlocked():
    for name in set(chosen.evaluate.attacks) - {kept}:
      del chosen.evaluate.attacks[name]
  if kept == 'fgsm':  # of which there are no curves
    (folder / 'results' / 'iterations.parquet').unlink()
  made = write(folder, chosen)
  page = made.markdown.read_text()
  assert ('under `fgsm`: not run' in page) == (kept != 'fgsm')
  assert 'Table 1' in page and 'Diagnostics' in page
  assert ('Defenses under FGSM (Table 2' in page) == (kept == 'fgsm')
  verdicts = made.claims.set_index('statement')['verdict']
  names = {'fgsm': 'FGSM', 'tifgsm': 'ti-FGSM'}
  for name, shown in names.items():
    ran = verdicts[f'{shown} lowers core Dice'] != 'not run'
    assert ran == (name == kept)


def test_the_other_run_must_be_of_the_other_dimension(pages, tmp_path):
  folder = pages[0]
  with pytest.raises(errors.UserError, match=r'no results in .*; finish that run first'):
    write(folder, config(3, tmp_path))
  with pytest.raises(errors.UserError, match='is no brats run in 2D'):
    write(folder, config(3, folder))


def test_a_damaged_file_of_pictures_is_named(tmp_path):
  folder = workdir(tmp_path / 'run', tumour_rows.rows(subjects=2))
  (folder / 'results' / 'slices.npz').write_bytes(b'no archive')
  with pytest.raises(errors.UserError, match=r'slices\.npz.*delete it and run that stage again'):
    write(folder, config(3))


def test_a_loss_beside_the_papers_is_said():
  said = lambda preset: ' '.join(
    notes.notes(commandline.load_config(f'configs/brats2d.py:{preset}'))
  )
  assert 'sum of dice and ce' in said('demo')
  assert 'sum of' not in said('paper').split('Soft Dice')[0]
