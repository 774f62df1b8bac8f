"""The page on nodules from made-up rows: every section, table and figure, without training."""

import re

import numpy as np
import pandas as pd
import pytest

from robustmed import errors, report
from robustmed.evaluation import checks
from robustmed.papers.nodules import experiment as nodules
from robustmed.papers.nodules import figures, scans, tables
from robustmed.papers.nodules import report as nodules_report
from robustmed.process import files
from robustmed.runs import commandline
from support import nodule_rows


def workdir(folder, *, complete=True):
  rows = nodule_rows.rows()
  results = folder / 'results'
  results.mkdir(parents=True)
  rows.to_parquet(results / 'rows.parquet')
  found = checks.run(
    rows,
    metric='correct',
    higher_is_better=True,
    main='pgd',
    one_step='one_step',
    undefended='beta_finetune',
  )
  files.write_json(results / 'checks.json', [check._asdict() for check in found])
  files.write_json(folder / 'config.json', {'config': {}})
  if complete:
    nodule_rows.stress().to_parquet(results / 'stress.parquet')
    nodule_rows.made().to_parquet(results / 'made.parquet')
    nodule_rows.submissions(results / 'froc')
    nodule_rows.pictures(results / 'pools.npz')
  return folder


def write(folder):
  config = commandline.load_config('configs/nodules.py:smoke')
  with config.unlocked():
    config.evaluate.resamples = 50
  exp = nodules.build(config)
  return report.write(folder, spec=exp.report(folder))


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  folder = workdir(tmp_path_factory.mktemp('nodules'))
  return folder, write(folder)


def test_every_section_figure_and_number_of_the_paper_is_there(page):
  folder, made = page
  text = made.markdown.read_text()
  for words in (
    'Table 1', 'Table 2', 'Table 3', 'Table 4', 'Table 5', 'Table 6', 'baseline-DeepLung',
    'not in this run', '75.71 (67.16-84.32)', '0.53 ± 0.15', '0.87 ± 0.17', '455.98k', '57.72',
    'Attacked by themselves', 'Is uncertainty enough?', 'Circularity', 'paired over scans',
    'searched codes', 'Candidates', 'Against baseline, trained on as long, paired over scans',
  ):  # fmt: skip
    assert words in text, words
  pictures = re.findall(r'\]\((.*?\.png)\)', text)
  assert all((folder / 'report' / link).is_file() for link in pictures)
  for part in ('froc', 'fig5', 'fig6', 'fig8', 'fig9'):
    assert part in ' '.join(pictures), part


def test_without_scans_and_stress_tests_there_is_still_a_page(tmp_path):
  made = write(workdir(tmp_path, complete=False))
  assert set(made.claims['verdict']) == {'not run'}
  text = made.markdown.read_text()
  assert 'Networks (Table 2)' in text and 'Detection (Table 3)' not in text


def test_table_1_counts_what_is_large_enough():
  nodules = nodule_rows.scans()
  table = nodule_rows.pd.concat([one.nodules for one in nodules]).rename(
    columns={'uid': 'seriesuid'}
  )
  table.loc[table['kind'] == 'solid', 'diameter_mm'] = 5.0
  found = tables.counts(table, scans=20, min_diameter=6.0).set_index('quantity')
  assert found.loc['CT scans', 'here'] == 20 and found.loc['CT scans with nodules', 'here'] == 12
  assert found.loc['solid nodules', 'here'] == 0 and found.loc['ground-glass nodules', 'here'] == 12
  assert found.loc['all nodules that count', ['here', 'in-house (paper)']].tolist() == [36, 150]


def test_stress_tables_are_means_over_patches():
  stress = nodule_rows.stress()
  table = tables.stressed(stress, {'syn': 'beta+syn'}, tables.COLUMNS[4], number=4)
  assert table['method'].tolist() == ['beta+syn', 'beta+syn (paper)']
  cell = stress[(stress['arm'] == 'syn') & (stress['attack'] == 'random')]['confidence']
  assert table['random nodules'].tolist() == [
    f'{cell.mean():.2f} ± {cell.std():.2f}',
    '0.92 ± 0.09',
  ]
  beside = tables.stressed(stress, {'syn': 'x'}, ('uniform 0.6',), number=5)
  assert beside['uniform 0.6'].tolist() == ['–', '0.89 ± 0.11']
  assert [*tables.stressed(stress, {'syn': 'x'}, ('poisson 1', 'none'))] == [
    'method',
    'nodules',
  ]
  assert tables.stressed(stress, {'syn': 'x'}, ('poisson 1',)).empty


def test_synthetic_nodules_are_compared_where_both_are_kept():
  made = nodule_rows.made()
  made = made[~((made['attack'] == 'codes') & (made['index'] == 0))]
  table = tables.synthetic(made)
  assert table['number'].tolist() == [nodule_rows.SCANS - 1] * 2
  assert table['nodules'].tolist() == ['random codes', 'searched codes']
  real = made[made['attack'] == 'random'].assign(
    attack='real', index=lambda rows: rows['index'] + 9
  )
  table = tables.synthetic(pd.concat([made, real]).assign(border=0.25))
  assert table['nodules'].tolist() == ['training nodules', 'random codes', 'searched codes']
  assert table['number'].tolist() == [nodule_rows.SCANS, *[nodule_rows.SCANS - 1] * 2]
  assert table['in the border'].tolist() == ['25.0 %'] * 3


def test_other_submissions_are_read_on_the_scans_that_are_known(tmp_path):
  folder = nodule_rows.submissions(tmp_path / 'froc', shares={'syn': 1.0})
  other = tmp_path / 'other.csv'
  text = (folder / 'syn.seed0.csv').read_text()
  other.write_text(text + '1.2.3,0,0,0,0.99\n')
  scored = scans.read_scored(folder, min_diameter=6.0, other=str(other))
  ours, theirs = scored['syn', 0], scored['deeplung', 0]
  np.testing.assert_array_equal(ours.probability, theirs.probability)
  assert ours.counts == theirs.counts and scored[scans.FOUND, 0].counts['nodules'] == 48
  other.write_text('seriesuid,coordX,coordY,coordZ\nscan.0,0,0,0\n')
  with pytest.raises(errors.UserError, match=r'other.csv, row 1: has no column probability'):
    scans.read_scored(folder, min_diameter=6.0, other=str(other))
  assert scans.read_scored(tmp_path / 'none', min_diameter=0.0) == {}


def test_labels_are_the_papers():
  found = nodules_report.labels(['syn_random', 'my_own'])
  assert found == {'syn_random': 'beta+syn (random)', 'my_own': 'my own'}


def test_figures_show_what_they_are_given(tmp_path):
  stored, png = nodule_rows.pictures(tmp_path / 'a.npz'), b'\x89PNG'
  draws = (
    figures.before_and_after,
    figures.synthetic,
    figures.attacked,
    lambda stored: figures.noise(stored, {'uniform': (0.3,), 'poisson': (5,)}),
  )
  other = {name: 0 * array if '/number' not in name else array for name, array in stored.items()}
  for draw in draws:
    first = draw(stored)
    assert first.startswith(png) and draw(stored) == first and draw(other) != first
    assert draw({}) is None
  line = ('a', np.array([0.0, 1.0]), np.array([0.0, 0.5]))
  assert figures.froc([line]).startswith(png) and figures.froc([]) is None


def test_attacked_noise_is_shown_beside_the_noise_of_its_number(tmp_path):
  stored = nodule_rows.pictures(tmp_path / 'a.npz')
  draw = lambda more: figures.attacked({**stored, **more}, count=1)
  plain = {'plain_noise 1': stored['noise_pgd 0.15'], 'plain_noise 1/number': np.arange(3)}
  assert draw(plain) != draw({})
  others = {**plain, 'plain_noise 1/number': np.arange(10, 13)}
  assert draw(others) == draw({})


def test_only_pairs_of_equal_numbers_are_put_side_by_side(tmp_path):
  stored = nodule_rows.pictures(tmp_path / 'a.npz')
  stored['codes 0.15/number'] = stored['codes 0.15/number'] + 100
  assert figures.before_and_after(stored) is None
