"""The page on gliomas from made-up rows: every section, table and figure, without a network."""

import itertools
import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from robustmed import errors, report
from robustmed.data import store
from robustmed.data.brain import phantom
from robustmed.evaluation import checks
from robustmed.papers.brats import experiment, figures, notes, pairing, tables
from robustmed.papers.brats import report as brats_report
from robustmed.process import files
from robustmed.runs import commandline
from support import tumour_rows

pytestmark = pytest.mark.slow


def config(dimension, other=''):
  chosen = commandline.load_config(f'configs/brats{dimension}d.py:paper')
  with chosen.unlocked():
    chosen.report.other = str(other)
    for name in ('teacher_20', 'distil_20', 'teacher_500', 'distil_500'):  # not in the rows
      del chosen.arms[name]
  return chosen


def curves(rows, *, alpha=0.005, steps=20):
  """Dice that falls from that of clean images by as much with every step."""
  clean = rows[(rows['arm'] == 'std') & (rows['attack'] == 'none')]
  rng, parts = np.random.default_rng(0), []
  for attack, step in itertools.product(('ifgsm', 'tifgsm'), range(steps + 1)):
    part = clean.assign(attack=attack, eps=round(step * alpha, 6))
    for metric in ('dice_wt', 'dice_tc', 'dice_et'):
      part[metric] = part[metric] - 0.02 * step + 0.001 * rng.normal(size=len(part))
    parts.append(part)
  return pd.concat(parts, ignore_index=True)


def workdir(folder, rows, *, dimension=3, **fields):
  """`fields` replace those of the demo's config.data."""
  (folder / 'results').mkdir(parents=True)
  demo = commandline.load_config(f'configs/brats{dimension}d.py:demo')
  data = {**demo.data.to_dict(), **fields}
  stored = json.loads(json.dumps({'dimension': dimension, 'data': data}))
  files.write_json(folder / 'config.json', {'config': stored})
  found = phantom.fingerprint(pairing.source_fields(stored))
  place = store.location(phantom.PhantomBrats, root=pathlib.Path(), fingerprint=found)
  info = {'fingerprint': place.name, 'sizes': {'train': 48}}
  files.write_json(folder / 'data.json', info)
  return fill(folder, rows)


def fill(folder, rows):
  """What training and evaluation leave of a run with these rows."""
  (folder / 'logs').mkdir()
  rows.to_parquet(folder / 'results' / 'rows.parquet')
  found = checks.run(rows, metric='dice_wt', higher_is_better=True, main='ifgsm')
  files.write_json(folder / 'results' / 'checks.json', [check._asdict() for check in found])
  tumour_rows.log().assign(loss=0.5).to_csv(folder / 'logs' / 'train.csv', index=False)
  curves(rows).to_parquet(folder / 'results' / 'iterations.parquet')
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
  assert 'more_defenses' not in ' '.join(pictures)


def test_arms_beside_the_papers_have_a_family_and_a_figure_of_their_own(tmp_path, monkeypatch):
  dice = {**tumour_rows.DICE, 'pgd_05': (0.87, 0.79, 0.7, 0.7, 0.7), 'wrong_labels': (0.8,) * 5}
  for name in ('20', '500'):
    dice[f'distil_{name}'] = tumour_rows.DICE['distil_100']
  for name in ('01', '10'):
    dice[f'at_{name}'] = tumour_rows.DICE['at_05']
  rows = tumour_rows.rows(dice, subjects=12)
  shown = {name: name for name in dice}
  _, tests = tables.defenses(rows, arms=shown, dimension=3, levels=(0.05, 0.1))
  families = tests.groupby('family', sort=False).size()
  assert families.tolist() == [63, 27]
  assert families.index[0] == '7 defenses of the paper x 3 regions x 3 levels: 63 tests'
  paper = tests[tests['first'].str.startswith(('distil', 'at_'))]
  alone = tables.defenses(
    rows[rows['arm'].str.startswith(('std', 'distil', 'at_'))],
    arms={name: name for name in dice if name.startswith(('std', 'distil', 'at_'))},
    dimension=3,
    levels=(0.05, 0.1),
  )[1]
  assert len(paper) == 63
  np.testing.assert_array_equal(paper['p_holm'], alone['p_holm'])

  drawn = []
  keep = lambda summary, arms, **more: drawn.append((set(arms), 'paper' in more)) or b''
  monkeypatch.setattr(figures, 'against_eps', keep)
  folder = workdir(tmp_path / 'run', rows)
  chosen = config(3)
  with chosen.unlocked():
    for name in dice.keys() - chosen.arms.keys():
      level = int(name[3:]) / 100 if name.startswith('at_') else 0.0
      chosen.arms[name] = {'defense': {'name': 'standard', 'eps': level}}
  brats_report.spec_of(chosen, experiment.make_task(chosen), folder)
  assert drawn[1:] == [
    ({'std', 'at_01', 'at_05', 'at_10', 'noise'}, True),
    ({'std', 'pgd_05', 'wrong_labels'}, False),
  ]


def test_the_first_row_of_figure_9_is_of_clean_images():
  cells = [('std', 'fgsm', 0.03), ('at_05', 'fgsm', 0.03)]
  stored = {name: np.array(part) for name, part in zip(('arm', 'attack', 'eps'), zip(*cells))}
  rng = np.random.default_rng(0)
  stored |= {name: rng.uniform(size=(2, 8, 8, 4)) for name in ('image', 'adversarial')}
  stored |= {name: np.ones((2, 8, 8), int) for name in ('truth', 'clean', 'attacked')}
  draw = lambda **more: figures.models(
    {**stored, **more}, arms={'std': 'a', 'at_05': 'b'}, attack='fgsm', eps=0.03
  )
  assert draw() == draw() != draw(clean=2 * np.ones((2, 8, 8), int))


def test_claims_compare_both_dimensions(pages):
  decided = pages[1].claims.set_index('statement')['verdict']
  both = decided[decided.index.str.startswith('The 3D network is better')]
  assert len(both) == 3 and set(both) == {'holds'}
  assert decided['i-FGSM lowers core Dice more than FGSM'] == 'holds'


def test_claims_belong_to_the_dimension_of_which_the_paper_says_them(pages):
  cubes, slices = (set(page.claims['statement']) for page in pages[1:])
  of_cubes = ('Robustness to FGSM grows with T', 'Distillation keeps the clean', 'i-FGSM lowers')
  for start in of_cubes:
    assert any(one.startswith(start) for one in cubes), start
    assert not any(one.startswith(start) for one in slices), start
  decided = pages[1].claims.set_index('statement')['verdict']
  grows = decided[decided.index.str.startswith('Robustness to FGSM grows')]
  assert set(grows) == {'undecided'}  # one training of each
  falls = decided[decided.index.str.startswith('Dice falls with the iterations')]
  assert len(falls) == 6 and set(falls) == {'holds'}
  core = 'distil_5000 is better than no defense under FGSM 0.05 and 0.1 (core)'
  assert decided[core] == 'holds'


def test_runs_on_other_cases_are_not_paired(tmp_path):
  rows = tumour_rows.rows({'std': (0.78, 0.5, 0.3, 0.4, 0.5)}, subjects=6)
  cubes = workdir(tmp_path / '3d', rows)
  same = workdir(tmp_path / '2d', rows, dimension=2)
  assert pairing.mismatch(cubes, same) == ''
  other = workdir(tmp_path / 'other', rows, dimension=2, test_cases=9)
  said = 'the cases of both runs differ in the data field test_cases'
  assert pairing.mismatch(cubes, other) == said
  made = write(cubes, config(3, other)).claims.set_index('statement')
  line = made.loc['The 3D network is better than the 2D network on clean images']
  assert line['verdict'] == 'not run' and line['numbers'] == said
  files.write_json(same / 'data.json', {'fingerprint': 'another'})
  assert 'have changed since it was made' in pairing.mismatch(cubes, same)


def test_the_undefended_network_alone_makes_a_page(pages):
  page = pages[2].markdown.read_text()
  assert 'Table 1' in page and 'Verdicts' not in page and 'against adversarial' not in page
  decided = pages[2].claims.set_index('statement')
  assert 'not run' in set(decided['verdict'])
  assert not decided.index.str.startswith('Robustness to FGSM grows').any()  # 3D alone


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
