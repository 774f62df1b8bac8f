"""The whole report of a small run: every file, every promise of the page."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from robustmed import errors, report
from robustmed.evaluation import statistics
from robustmed.process import checksums, files
from robustmed.report import content
from support import buckets


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced and gathers what the page refers to."""

  VOID = ('meta', 'img', 'br')

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.tags, self.text = [], [], [], ''
    self.anchors, self.names = [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name == 'href' and value.startswith('#'):
        self.anchors.append(value[1:])
      elif name in ('src', 'href'):
        self.sources.append(value)
      elif name == 'id':
        self.names.append(value)
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.text += data


def test_every_file_is_there_and_nothing_else(written):
  folder = written.html.parent
  found = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
  assert found == {
    'report.md', 'report.html',
    'figures/curve_DICE_seg_pgd_seg.png', 'figures/curve_Error_reg_pgd_seg.png',
    'figures/examples_pgd_seg_0.07.png', 'figures/training.png',
    'tables/summary.csv', 'tables/claims.csv', 'tables/checks.csv',
    'tables/DICE_seg_pgd_seg.csv', 'tables/Error_reg_pgd_seg.csv', 'tables/Cost_time.csv',
    'tables/groups.csv',
  }  # fmt: skip


def test_tables_hold_the_numbers_of_the_rows(written):
  workdir = written.html.parent.parent
  folder = workdir / 'report' / 'tables'
  rows = statistics.prepare(pd.read_parquet(workdir / 'results' / 'rows.parquet'))
  pivot = pd.read_csv(folder / 'DICE_seg_pgd_seg.csv', index_col='arm')
  assert [*pivot.index] == ['std', 'std (paper)', 'adv']
  assert [*pivot.columns] == ['0', '0.01', '0.07', '0.2']
  for arm in ('std', 'adv'):
    for eps in pivot.columns:
      cell = statistics.select(rows, arm=arm, attack='pgd_seg', eps=float(eps))
      assert pivot.loc[arm, eps] == pytest.approx(cell['DICE_seg'].mean())
  np.testing.assert_array_equal(pivot.loc['std (paper)'], [0.9446, np.nan, 0.0013, np.nan])
  summary = pd.read_csv(folder / 'summary.csv')
  assert [*summary.columns] == [*statistics.SUMMARY] and set(summary['n']) == {16}
  decided = pd.read_csv(folder / 'claims.csv')
  assert decided['verdict'].tolist() == ['holds', 'fails', 'not run']


def test_the_page_is_whole_and_needs_nothing_else(written):
  text = written.html.read_text()
  page = Page(text)
  assert len(page.sources) == 4
  assert all(source.startswith('data:image/png;base64,') for source in page.sources)
  assert page.anchors == page.names and len({*page.names}) == len(page.names) == 10
  assert 'script' not in page.tags and 'link' not in page.tags and 'url(' not in text
  assert 'i' not in page.tags and 'b' not in page.tags  # the title's and the claim's own tags
  assert 'A & B <i>test</i>' in page.text and 'adv is <b>better</b> | always' in page.text
  assert '3.x <dev>' in page.text
  for wanted in ('train.steps', 'Last iterate.', 'standard (paper)', 'not run', '22.25'):
    assert wanted in page.text


def test_the_verdict_comes_first_and_counts(written):
  table = pd.read_csv(written.html.parent / 'tables' / 'DICE_seg_pgd_seg.csv', index_col='arm')
  for arm, label in (('std', 'standard'), ('adv', 'adv')):
    clean, attacked = table.loc[arm, '0'], table.loc[arm, '0.2']
    assert f'{attacked:.3f} for {label} (clean {clean:.3f})' in written.verdict
  assert 'adv withstands the attack best' in written.verdict
  assert '1 holds, 1 fails and 1 was not run' in written.verdict
  text = written.html.read_text()
  assert text.index('In short.') < text.index('<h2')
  assert re.findall('<h2 id="[a-z-]+">(.*?)</h2>', text) == [
    'How to read this page', 'What it cannot show', 'Results', 'Examples', 'Claims', 'Checks',
    'Cost', 'Notes', 'Training', 'How this was made',
  ]  # fmt: skip
  markdown = written.markdown.read_text()
  assert markdown.startswith('# A &amp; B &lt;i>test&lt;/i>\n\n> **In short.**')


def test_markdown_tables_are_rectangular_and_links_lead_somewhere(written):
  text = written.markdown.read_text()
  for table in re.findall(r'(?:^\|.*\n)+', text, flags=re.M):
    widths = {len(re.split(r'(?<!\\)\|', line)) for line in table.splitlines()}
    assert len(widths) == 1
  links = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', text)
  assert len(links) == 4
  assert all((written.markdown.parent / link).is_file() for link in links)


def test_the_same_run_gives_the_same_bytes(workdir, spec, written):
  folder = written.html.parent
  names = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
  again = report.write(workdir, spec=spec).html.parent
  assert len(names) == 13
  for name in names:
    assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_page_says_when_it_was_made_of_what_and_what_it_cannot_show(workdir, spec, written):
  text = written.markdown.read_text()
  assert 'Evaluated on 2031-02-03 (UTC); robustmed 9.8.7 at commit `c0ffeec0ffee`' in text
  assert 'data `phantom_disks`, fingerprint `f00d`' in text and '| data: sizes.test | 16 |' in text
  listed = checksums.digest(workdir / 'checkpoints' / 'std' / 'seed0' / 'variables' / 'SHA256SUMS')
  assert f'| network std/seed0: sha256 | {listed} |' in text
  for words in ('The images are synthetic', '8 groups', 'One training per arm', 'For research'):
    assert f'{words}' in text[text.index('What it cannot show') : text.index('## Results')]
  assert 'groups (patients, volumes or scans), one training run per arm.' in text
  (workdir / 'evaluated.json').unlink()
  (workdir / 'logs' / 'train.csv').unlink()
  of_audit = {'name': 'x', 'fingerprint': {'data': 'c0de', 'networks': {'a': 'f'}}}
  (workdir / 'data.json').write_text(json.dumps(of_audit))
  text = report.write(workdir, spec=spec).markdown.read_text()
  assert 'fingerprint of the data `c0de`' in text and '| data: fingerprint.networks.a | f |' in text
  assert 'volumes or scans). An example' in text and 'One training per arm' not in text
  assert 'The images are synthetic' not in text and re.search(r'Evaluated on 20\d\d-\d\d', text)


def test_the_page_says_what_networks_computed_in_and_which_attacks_were_not_run(written):
  text = written.markdown.read_text()
  assert '- Networks computed in float32.' in text
  assert 'No attack that chooses its own steps (`apgd`)' in text


def test_every_patient_has_a_line_with_the_means_of_its_images(written):
  table = pd.read_csv(written.html.parent / 'tables' / 'groups.csv', index_col='group')
  rows = pd.read_parquet(written.html.parents[1] / 'results' / 'rows.parquet')
  assert sorted(table.index) == [*range(8)] and set(table['images']) == {2}
  for name, (arm, attack, eps) in {
    'standard clean': ('std', 'none', 0),
    'adv at 0.2': ('adv', 'pgd_seg', 0.2),
  }.items():
    here = rows[(rows.arm == arm) & (rows.attack == attack) & np.isclose(rows.eps, eps)]
    expected = here.groupby('group')['DICE_seg'].mean().loc[table.index]
    np.testing.assert_allclose(table[name], expected)
  worst = table[['standard at 0.2', 'adv at 0.2']].mean(axis=1)
  assert worst.is_monotonic_increasing


def test_every_table_states_the_unit_of_its_own_levels_and_groups_their_names(workdir, spec):
  own = {'noise': 'largest logarithm of the field'}
  panels = (*spec.panels, report.Panel('DICE_seg', 'noise'))
  named = dataclasses.replace(
    spec, panels=panels, attack_units=own, group_names={n: f'patient{n}' for n in range(8)}
  )
  text = report.write(workdir, spec=named).markdown.read_text()
  assert 'DICE_seg under noise by level (largest logarithm of the field)' in text
  assert 'segmentation Dice under pgd_seg by level (intensity)' in text
  assert '`noise`: largest logarithm of the field' in text
  table = pd.read_csv(workdir / 'report' / 'tables' / 'groups.csv', index_col='group')
  assert sorted(table.index) == [f'patient{n}' for n in range(8)] and '| patient3 | 2 |' in text
  other = dataclasses.replace(spec, attack_units=own)
  text = report.write(workdir, spec=other).markdown.read_text()
  assert 'under noise by level (largest logarithm of the field)' in text


def test_of_many_arms_the_verdict_names_the_extremes(workdir, spec):
  path = workdir / 'results' / 'rows.parquet'
  rows = pd.read_parquet(path)
  std = rows[rows.arm == 'std']
  more = [std.assign(arm=f'arm{n}', DICE_seg=std.DICE_seg - n / 100) for n in range(5)]
  pd.concat([rows, *more]).to_parquet(path)
  verdict = report.write(workdir, spec=spec).verdict
  assert re.search(r'is between -?[\d.]+ for arm4 .* and [\d.]+ for adv .* of 7 arms\.', verdict)
  assert 'arm3' not in verdict


def test_a_failed_check_is_in_the_verdict_beside_the_tables_and_on_the_arm(workdir, spec):
  found = json.loads((workdir / 'results' / 'checks.json').read_text())
  found[0] |= {'status': 'fail', 'detail': 'all of it is zero', 'arm': 'adv'}
  (workdir / 'results' / 'checks.json').write_text(json.dumps(found))
  written = report.write(workdir, spec=spec)
  assert '1 failed' in written.verdict and 'Do not trust the figures of adv' in written.verdict
  for text in (written.html.read_text(), written.markdown.read_text()):
    body = text[text.index('In short.') :]
    results = body[body.index('Results') : body.index('Claims')]
    assert 'all of it is zero' in results and 'adv (check failed)' in results
    assert text.count('all of it is zero') == 2


def test_only_rows_are_needed(workdir, spec):
  for name in ('results/checks.json', 'results/examples.npz', 'logs/train.csv', 'config.json'):
    (workdir / name).unlink()
  written = report.write(workdir, spec=spec)
  assert 'No believability checks were found' in written.verdict
  text = Page(written.html.read_text()).text
  assert 'No checks were stored' in text and 'Configuration: not stored' in text
  assert 'Examples' not in text and not (workdir / 'report/figures/training.png').exists()


def test_a_panel_that_was_not_run_is_told(workdir, spec):
  missing = report.ReportSpec(title='T', panels=(report.Panel('DICE_seg', 'square'), *spec.panels))
  written = report.write(workdir, spec=missing)
  assert '`DICE_seg` under `square`: not run.' in written.markdown.read_text()
  assert 'square was not run' in written.verdict


def test_every_attack_of_the_run_is_on_the_page(written):
  page = Page(written.html.read_text())
  assert 'The other attacks of this run: fgsm, noise' in page.text
  for attack in ('fgsm', 'noise'):
    assert f'segmentation Dice under {attack} by level' in page.text
  only = pd.read_csv(written.html.parent / 'tables' / 'summary.csv').query("attack == 'fgsm'")
  shown = only[only['metric'] == 'DICE_seg']['mean'].map(lambda mean: f'{mean:.3f}')
  assert all(mean in page.text for mean in shown)


@pytest.mark.parametrize(
  ('kinds', 'budget', 'said'),
  [
    (
      ['pgd', 'fgsm'],
      '',
      'No attack that chooses its own steps (`apgd`) and none without',
    ),
    (['pgd', 'apgd'], '', 'No attack without gradients (`square`) was run'),
    (['pgd', 'apgd', 'square'], '', ''),
    (['pgd'], 'standard', ''),
    (['corruption'], '', ''),
  ],
)
def test_kinds_of_attacks_that_were_not_run_are_named(kinds, budget, said):
  chosen = {f'my_{kind}': {'name': kind} for kind in kinds}
  found = content.unseen_attacks({'evaluate': {'attacks': chosen, 'budget': budget}})
  assert found.startswith(said) and bool(found) == bool(said)
  assert content.unseen_attacks({}) == ''


def test_what_shows_no_robustness_is_said(workdir, spec):
  """A clean metric of a network that is hardly trained; a metric that no attack aims at."""
  path = workdir / 'results' / 'rows.parquet'
  rows = pd.read_parquet(path)
  rows.loc[rows['arm'] == 'adv', 'DICE_seg'] *= 0.2
  rows.to_parquet(path)
  spec = dataclasses.replace(
    spec,
    panels=(
      dataclasses.replace(spec.panels[0], limits=(0.0, 1.0)),
      dataclasses.replace(spec.panels[1], aimed=False),
    ),
  )
  made = report.write(workdir, spec=spec)
  verdict, text = made.verdict, made.markdown.read_text()
  marked = {part for part in text.split('\n\n') if 'does not aim at it' in part}
  assert len(marked) == 2 and all('segmentation' not in part for part in marked)  # figure, table
  assert 'A clean DICE_seg below 0.5 (adv) is that of a network that is hardly trained' in verdict


def test_text_for_the_terminal(written):
  lines = written.table.splitlines()
  assert lines[0] == 'DICE_seg under pgd_seg by level (intensity)'
  assert lines[1].split() == ['arm', '0', '0.01', '0.07', '0.2']
  assert lines[2].split()[0] == 'std' and len(lines) == 4
  assert written.claims['verdict'].tolist() == ['holds', 'fails', 'not run']


def test_no_results_is_a_clear_error(tmp_path, spec):
  with pytest.raises(errors.UserError, match=r'no results at .*rows.parquet.*--stage evaluate'):
    report.write(tmp_path, spec=spec)
  assert not (tmp_path / 'report').exists()


@pytest.mark.parametrize(
  'name', ['results/rows.parquet', 'results/checks.json', 'results/examples.npz', 'config.json']
)
def test_a_broken_file_is_named(workdir, spec, name):
  (workdir / name).write_bytes(b'\x00not what it says')
  with pytest.raises(errors.UserError, match=re.escape(name)):
    report.write(workdir, spec=spec)


def test_pickled_arrays_are_refused(workdir, spec):
  path = workdir / 'results' / 'examples.npz'
  np.savez(path, arm=np.array(['std', None], dtype=object))
  with pytest.raises(errors.UserError, match=r'examples\.npz'):
    report.write(workdir, spec=spec)


def test_a_summary_that_covers_the_rows_is_used_and_another_is_not(workdir, spec):
  rows = pd.read_parquet(workdir / 'results' / 'rows.parquet')
  summary = statistics.summary(rows, metrics=['DICE_seg', 'Error_reg'])
  path = workdir / 'results' / 'summary.csv'
  summary.assign(low=0.123).to_csv(path, index=False)
  report.write(workdir, spec=spec)
  table = pd.read_csv(workdir / 'report/tables/summary.csv')
  assert set(table['low']) == {0.123}
  summary[summary['eps'] != 0.07].assign(low=0.123).to_csv(path, index=False)
  report.write(workdir, spec=spec)
  table = pd.read_csv(workdir / 'report/tables/summary.csv')
  pd.testing.assert_frame_equal(table, summary)


def test_the_paper_frame_needs_its_columns():
  with pytest.raises(errors.UserError, match='mean'):
    report.ReportSpec(title='T', paper=pd.DataFrame({'arm': []}))


def test_neither_the_report_nor_what_it_reads_imports_jax():
  code = (
    'import sys; import robustmed.report, robustmed.evaluation.checks; '
    "print('jax' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'False'


def test_a_report_in_an_object_store_is_that_of_a_disk(written, spec, monkeypatch):
  buckets.use(monkeypatch)
  workdir, root = written.html.parent.parent, files.path_of('gs://bucket/run')
  for path in files.iter_files(workdir):
    if 'report' not in path.parts:
      (root / path.relative_to(workdir).as_posix()).write_bytes(path.read_bytes())
  there = report.write(root, spec=spec)
  assert there.markdown.read_bytes() == written.markdown.read_bytes()
  assert there.html.read_bytes() == written.html.read_bytes()
  assert len(files.iter_files(root / 'report')) == len(files.iter_files(workdir / 'report'))
