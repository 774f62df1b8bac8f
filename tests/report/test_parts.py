"""Formatting, pages, figures and tables one by one."""

import io
import pathlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustmed import errors, report
from robustmed.evaluation import checks, statistics
from robustmed.process import checksums, files
from robustmed.report import content, figures, inputs, overlays, pages, tables


@pytest.fixture
def summary(workdir):
  rows = pd.read_parquet(workdir / 'results' / 'rows.parquet')
  return statistics.summary(rows, metrics=['DICE_seg', 'Error_reg'], resamples=200)


def pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def has_colour(image, colour):
  wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
  return bool((np.abs(image - wanted).max(axis=-1) < 12).any())


@pytest.mark.parametrize(
  ('value', 'shown'),
  [(0.12345, '0.123'), (9.9994, '9.999'), (12.6, '12.60'), (-15.42, '-15.42'), (1234.5, '1234.'),
   (float('nan'), '–'), (float('inf'), '–'), (0.0, '0.000')],
)  # fmt: skip
def test_number(value, shown):
  assert tables.number(value).rstrip('.') == shown.rstrip('.')


def test_probability():
  assert [tables.probability(p) for p in (0.0004, 0.04, 1.0, np.nan)] == [
    '< 0.001', '0.040', '1.000', '–',
  ]  # fmt: skip


def test_pivot_shows_intervals_and_missing_cells(summary):
  known = summary[~((summary['arm'] == 'adv') & (summary['eps'] == 0.2))]
  frame = tables.pivot(
    known, metric='DICE_seg', attack='pgd_seg', arms=['adv', 'std'], show=True,
    labels={'adv': 'A'},
  )  # fmt: skip
  assert frame['arm'].tolist() == ['A', 'std']
  assert [*frame.columns] == ['arm', '0 (clean)', '0.01', '0.07', '0.2']
  assert frame.loc[0, '0.2'] == '–'
  line = tables.curve(summary, arm='std', attack='pgd_seg', metric='DICE_seg').iloc[-1]
  assert frame.loc[1, '0.2'] == f'{line["mean"]:.3f} [{line["low"]:.3f}, {line["high"]:.3f}]'


def test_a_failed_check_marks_our_rows_and_not_the_papers(summary, spec):
  cells = {'metric': 'DICE_seg', 'attack': 'pgd_seg', 'paper': spec.paper, 'arms': ['std', 'adv']}
  frame = tables.pivot(summary, labels={'std': 'standard'}, failed={'std'}, **cells)
  assert frame['arm'].tolist() == ['standard (check failed)', 'standard (paper)', 'adv']


@pytest.mark.parametrize(
  ('failed', 'said'),
  [
    ((), 'At this level adv withstands the attack best.'),
    (('std',), 'At this level adv withstands the attack best.'),
    (
      ('adv',),
      'The best figure at this level is that of adv, one of whose checks failed; of the arms '
      'without a failed check half withstands the attack best.',
    ),
    (('adv', 'half'), 'The best figure at this level is that of adv, one of whose checks failed.'),
  ],
)
def test_no_arm_with_a_failed_check_is_called_the_best(workdir, failed, said):
  held = inputs.read(workdir)
  std = held.summary[held.summary['arm'] == 'std']
  half = std.assign(arm='half', mean=std['mean'] * 1.01)
  rows = held.rows[held.rows['arm'] == 'std']
  held = held._replace(
    summary=pd.concat([held.summary, half]),
    rows=pd.concat([held.rows, rows.assign(arm='half', DICE_seg=rows['DICE_seg'] * 1.01)]),
    checks=tuple(checks.Check('x', arm, 'fail', '') for arm in failed),
  )
  words = {
    'spec': report.ReportSpec(title='', panels=(report.Panel('DICE_seg', 'pgd_seg'),)),
    'arms': [report.Arm(name) for name in ('std', 'adv', 'half')],
    'decided': pd.DataFrame(),
  }
  text = content.verdict(held, **words)
  assert said in text and text.count('withstands') + text.count('best figure') == (
    1 + ('of the arms' in said)
  )


@pytest.mark.parametrize('gap', [0.0005, 0.05])
def test_the_best_is_named_where_a_paired_test_can_tell_it(gap, workdir):
  """Two arms whose noise is 0.005 in each of 16 images."""
  held = inputs.read(workdir)
  std = held.rows[held.rows['arm'] == 'std']
  noise = np.random.default_rng(3).normal(gap, 0.005, len(std))
  rows = pd.concat([std, std.assign(arm='adv', DICE_seg=std['DICE_seg'] + noise)])
  summary = statistics.summary(rows, metrics=['DICE_seg'], resamples=50)
  words = {
    'spec': report.ReportSpec(title='', panels=(report.Panel('DICE_seg', 'pgd_seg'),)),
    'arms': [report.Arm(name) for name in ('std', 'adv')],
    'decided': pd.DataFrame({'p': [0.2] * 5, 'verdict': ['undecided'] * 5}),
  }
  text = content.verdict(held._replace(summary=summary, rows=rows), **words)
  assert ('adv withstands the attack best' in text) == (gap > 0.01)
  told = 'has the best figure, which is not told apart from that of '
  assert (told in text) == (gap < 0.01)


def test_no_arm_is_the_best_where_all_are_alike(workdir):
  held = inputs.read(workdir)
  summary = held.summary.assign(mean=0.0)
  words = {
    'spec': report.ReportSpec(title='', panels=(report.Panel('DICE_seg', 'pgd_seg'),)),
    'arms': [report.Arm(name) for name in ('std', 'adv')],
    'decided': pd.DataFrame(),
  }
  text = content.verdict(held._replace(summary=summary), **words)
  assert 'At this level no arm withstands the attack better than another.' in text


def test_the_verdict_says_what_the_worst_of_all_attacks_leaves(workdir):
  held = inputs.read(workdir)
  eps = content.headline(
    held.summary,
    panel=report.Panel('DICE_seg', 'pgd_seg'),
    arms=[report.Arm('std'), report.Arm('adv')],
    wanted=None,
  )
  lines = [('std', 0.3), ('adv', 0.1)]
  worst = pd.DataFrame(
    [(arm, 'worst', eps, 'DICE_seg', mean, np.nan, np.nan) for arm, mean in lines],
    columns=['arm', 'attack', 'eps', 'metric', 'mean', 'low', 'high'],
  )
  words = {
    'spec': report.ReportSpec(title='', panels=(report.Panel('DICE_seg', 'pgd_seg'),)),
    'arms': [report.Arm(name) for name in ('std', 'adv')],
    'decided': pd.DataFrame(),
  }
  text = content.verdict(held._replace(worst=worst), **words)
  assert (
    'Under the worst of the attacks in the same ball it is **0.300** for std and **0.100** for adv.'
    in text
  )
  best = 'Against all of them the best figure is that of std (not tested).'
  assert best in text
  checked = held._replace(worst=worst, checks=(checks.Check('x', 'std', 'fail', ''),))
  assert 'Against all' not in content.verdict(checked, **words)


def test_sums_of_stored_files_are_no_results(tmp_path):
  folder = tmp_path / 'stored'
  folder.mkdir()
  files.write_json(folder / 'a.json', {'arm': 'std', 'stored': 0.4})
  checksums.announce(folder / 'a.json', checksums.digest(folder / 'a.json'))
  assert len(list(folder.rglob('*.sha256'))) > 0
  assert inputs._stored(folder).to_dict('records') == [{'arm': 'std', 'stored': 0.4}]


def test_stored_images_are_described_as_they_were_made(workdir):
  """By a search in a ball that is known, or by one step towards the clean image."""
  line = {'attack': 'pgd_seg', 'eps': 0.1, 'index': 1, 'attacked': 0.3, 'stored': 0.4}
  searched = {**line, 'arm': 'std', 'metric': 'DICE_seg', 'inside': True, 'distance': 0.1}
  by_loss = {**searched, 'metric': '_value.bce', 'index': 2}
  stepped = {**line, 'arm': 'adv', 'metric': 'DICE_seg', 'inside': None, 'distance': None}
  spec = report.ReportSpec(title='', panels=(report.Panel('DICE_seg', 'pgd_seg'),))

  def text_of(*lines):
    held = inputs.read(workdir)._replace(stored=pd.DataFrame(lines))
    arms = tuple(report.Arm(name) for name in ('std', 'adv'))
    build = report._Build(workdir, spec, held, arms, pd.DataFrame(), units='')
    return pages.to_markdown('', report._stored(build), folder=workdir)

  text = text_of(searched, by_loss)
  assert 'within the ball, chosen by the DICE_seg and the objective bce of the image' in text
  assert 'DICE_seg as attacked and as stored' in text
  assert 'objective bce as attacked and as stored' in text and '_value' not in text
  assert 'nearer to the untouched image' not in text
  text = text_of(stepped)
  assert 'nearer to the untouched image' in text and 'no other numbers were tried' in text
  assert 'within the ball' not in text and 'chosen by' not in text
  assert text_of(searched, stepped).count('as attacked and as stored') == 2
  assert text_of({**searched, 'arm': 'gone'}) == pages.to_markdown('', [], folder=workdir)


def test_arms_follow_the_spec_then_the_rows():
  rows = pd.DataFrame({'arm': ['b', 'a', 'c']})
  found = tables.arms(rows, [report.Arm('c', 'C'), report.Arm('x')])
  assert [(arm.name, arm.shown) for arm in found] == [('c', 'C'), ('b', 'b'), ('a', 'a')]


def test_flatten():
  tree = {'a': 1, 'b': {'c': [1, 2], 'd': {'e': None}}, 'f': {}}
  assert tables.flatten(tree) == [('a', '1'), ('b.c', '[1, 2]'), ('b.d.e', 'None'), ('f', '{}')]


def test_checks_are_ordered_by_gravity_and_complete():
  found = [checks.Check(s, 'std', s, '') for s in ('pass', 'skipped', 'warn', 'fail', 'pass')]
  frame = tables.check_frame(found)
  assert frame['status'].tolist() == ['fail', 'warn', 'skipped', 'pass', 'pass']


def test_data_cannot_become_markup():
  evil = '<script>|`x`| *y* [z](u) _w_'
  frame = pd.DataFrame({'a|b': [evil], 'verdict': ['holds']})
  page = pages.to_html(evil, [pages.Table(evil, frame), pages.Text(evil), pages.Heading(2, evil)])
  assert '<script' not in page and page.count('&lt;script&gt;') == 6
  assert '<span class="badge good">holds</span>' in page
  text = pages.to_markdown('T', [pages.Table('c', frame)], folder='.')
  assert '<script' not in text
  assert r'| a\|b | verdict |' in text and r'\[z\](u) \_w\_' in text


def test_prose():
  page = pages.to_html('T', [pages.Text('### H\n\none\ntwo `a<b` **c**\n\n- x\n- y\n\nend')])
  assert '<h3>H</h3><p>one two <code>a&lt;b</code> <strong>c</strong></p>' in page
  assert '<ul><li>x</li><li>y</li></ul><p>end</p>' in page


def test_cells_of_tables():
  frame = pd.DataFrame({'x': ['0.5 [0.4, 0.6]', '< 0.001', 'word', '0.123', 'y' * 50]})
  page = pages.to_html('T', [pages.Table('', frame)])
  assert '<td class="num">0.5<br><small>[0.4, 0.6]</small></td>' in page
  assert '<td class="num">&lt; 0.001</td>' in page and '<td>word</td>' in page
  assert '<td class="num">0.123</td>' in page and f'<td class="long">{"y" * 50}</td>' in page


def test_an_unknown_block_is_a_bug():
  with pytest.raises(TypeError, match='not a block'):
    pages.to_html('T', ['text'])
  with pytest.raises(TypeError, match='not a block'):
    pages.to_markdown('T', ['text'], folder='.')


def test_curves_draw_every_arm(summary):
  arms = [report.Arm('std'), report.Arm('adv', colour='#123456')]
  panel = report.Panel('DICE_seg', 'pgd_seg', limits=(0, 1))
  image = pixels(figures.curves(summary, panel=panel, arms=arms))
  assert has_colour(image, overlays.COLOURS[0]) and has_colour(image, '#123456')
  alone = pixels(figures.curves(summary, panel=panel, arms=arms[:1]))
  assert not has_colour(alone, '#123456')
  assert not np.array_equal(alone[:, -40:], 255) and image.shape[1] > 800


def test_nothing_is_cut_at_the_edges(summary, workdir):
  """The outermost pixels of every picture are white, however long the labels are."""
  long = 'a rather long name of an arm'
  arms = [report.Arm('std', long), report.Arm('adv', long + ' too')]
  panel = report.Panel('Error_reg', 'pgd_seg', label='a long label of the vertical axis (px)')
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    stored = dict(stored)
  log = pd.read_csv(workdir / 'logs' / 'train.csv')
  captions = {('std', True): 'DICE_seg 0.1\nError_reg 12'}
  drawn = [
    figures.curves(summary, panel=panel, arms=arms, units='(a fraction of the intensity range)'),
    figures.examples(stored, attack='pgd_seg', eps=0.07, arms=arms[:1], captions=captions),
    figures.training(log, arms=arms),
  ]
  for png in drawn:
    image = pixels(png)
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
      assert edge.min() == 255


def test_examples_pick_a_shared_example_and_draw_both_outlines(workdir):
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    stored = dict(stored)
  arms = [report.Arm('std'), report.Arm('adv')]
  assert figures.example_cells(stored) == [('pgd_seg', pytest.approx(0.07))]
  at = {'attack': 'pgd_seg', 'eps': 0.07, 'arms': arms}
  assert figures.example_index(stored, **at) == {'std': 4, 'adv': 4}
  image = pixels(figures.examples(stored, **at))
  assert has_colour(image, overlays.TRUE) and has_colour(image, overlays.PREDICTED)
  less = {name: value for name, value in stored.items() if not name.startswith('contour')}
  bare = pixels(figures.examples(less, **at))
  assert has_colour(bare, overlays.TRUE) and not has_colour(bare, overlays.PREDICTED)
  stored['index'] = np.array([4, 2, 2, 7])
  assert figures.example_index(stored, **at) == {'std': 2, 'adv': 2}
  assert figures.examples(stored, attack='fgsm', eps=0.07, arms=arms) is None
  volumes = stored | {
    'image': stored['image'][..., None],
    'adversarial': stored['image'][..., None],
  }
  assert figures.examples(volumes, **at) is None


def test_examples_show_each_class_in_its_colour(workdir):
  """Class 1 is found where it is; class 2 is true and never found, class 3 found and not true."""
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    stored = dict(stored)
  count = len(stored['index'])
  true, found = np.zeros((2, count, 16, 16), int)
  true[:, 2:8, 2:8], true[:, 10:14, 2:8] = 1, 2
  found[:, 2:8, 2:8], found[:, 2:6, 10:14] = 1, 3
  maps = {'labels_true': true, 'labels_clean': found, 'labels_adv': found}
  at = {'attack': 'pgd_seg', 'eps': 0.07, 'arms': [report.Arm('std')]}
  image = pixels(figures.examples({**stored, **maps}, **at))
  assert all(has_colour(image, overlays.of_class(kind)) for kind in (1, 2, 3))
  assert not has_colour(image, overlays.of_class(4)) and not has_colour(image, overlays.TRUE)
  names = [one.get_label() for one in overlays.handles(maps, ('background', 'liver', 'spleen'))]
  assert names == ['liver', 'spleen', 'class 3', 'line: true', 'filled: found']


def test_examples_show_landmarks_and_boxes(workdir, monkeypatch):
  monkeypatch.setattr(figures, 'legend', lambda *args: None)  # which has all the colours
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    names = ('attack', 'eps', 'arm', 'index', 'image', 'adversarial')
    stored = {name: stored[name] for name in names}
  count = len(stored['index'])
  stored['image'] = stored['adversarial'] = np.zeros((count, 16, 16, 1))
  at = {'attack': 'pgd_seg', 'eps': 0.07, 'arms': [report.Arm('std')]}
  plain = pixels(figures.examples(stored, **at))
  assert not has_colour(plain, overlays.TRUE) and not has_colour(plain, overlays.PREDICTED)
  places = np.full((count, 2, 2), 8.0)
  shown = {'points_true': places, 'points_clean': places, 'points_adv': places + 4}
  image = pixels(figures.examples({**stored, **shown}, **at))
  assert has_colour(image, overlays.TRUE) and has_colour(image, overlays.PREDICTED)
  boxes = np.broadcast_to([2.0, 3.0, 9.0, 12.0], (count, 1, 4))
  kinds = {'classes_clean': np.full((count, 1), -1), 'classes_adv': np.ones((count, 1), int)}
  shown = {'boxes_true': boxes, 'boxes_clean': boxes, 'boxes_adv': boxes, **kinds}
  image = pixels(figures.examples({**stored, **shown}, **at))
  assert has_colour(image, overlays.COLOURS[1])
  shown['boxes_true'] = np.full(boxes.shape, np.nan)
  without = pixels(figures.examples({**stored, **shown}, **at))
  assert not np.array_equal(image, without)  # true boxes are white


def test_a_long_name_stays_beside_its_picture(workdir):
  """Nothing is drawn above the titles, whatever an arm is called."""
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    stored = dict(stored)
  draw = lambda label: pixels(
    figures.examples(
      stored, attack='pgd_seg', eps=0.07, arms=[report.Arm('std', label), report.Arm('adv')]
    )
  )
  top = lambda image: int(np.flatnonzero((image < 255).any(axis=(1, 2)))[0])
  left = lambda image: image[: len(image) // 20, :60]
  short, long = draw('std'), draw('networkOfAVeryLongNameThatNobodyWouldWriteByHand__2d')
  assert long.shape == short.shape
  assert top(left(long)) == top(left(short)) and (left(long) == left(short)).all()


def test_contours_are_x_then_y(workdir):
  """A contour in the right half of the picture is drawn in its right half."""
  with np.load(workdir / 'results' / 'examples.npz') as stored:
    stored = {name: value[:1] for name, value in stored.items() if 'seg' not in name}
  stored['image'] = stored['adversarial'] = np.zeros((1, 16, 16, 1))
  angle = np.linspace(0, 2 * np.pi, 40)
  for name in ('contour_true', 'contour_clean', 'contour_adv'):
    stored[name] = np.stack([12 + 2 * np.cos(angle), 4 + 2 * np.sin(angle)], -1)[None]
  png = figures.examples(stored, attack='pgd_seg', eps=0.07, arms=[report.Arm('std')])
  image = pixels(png)
  black = (image.max(axis=-1) < 5).nonzero()
  first = black[1] < image.shape[1] / 3
  top, bottom = black[0][first].min(), black[0][first].max()
  left, right = black[1][first].min(), black[1][first].max()
  picture = image[top:bottom, left:right]
  wanted = [int(overlays.PREDICTED[at : at + 2], 16) for at in (1, 3, 5)]
  y, x = (np.abs(picture - wanted).max(axis=-1) < 30).nonzero()
  assert x.mean() > 0.6 * (right - left) and y.mean() < 0.4 * (bottom - top)


def test_training_without_losses_is_left_out():
  assert figures.training(pd.DataFrame({'step': [1]}), arms=[]) is None
  nothing = pd.DataFrame({'arm': ['a'], 'step': [1], 'loss': [np.nan]})
  assert figures.training(nothing, arms=[]) is None


def test_the_headline_level_is_the_wanted_one_or_where_the_arms_differ_most(summary):
  arms = [report.Arm('std'), report.Arm('adv')]
  panel = report.Panel('DICE_seg', 'pgd_seg')
  kept = summary[(summary['metric'] == 'DICE_seg') & (summary['attack'] == 'pgd_seg')]
  means = kept.pivot(index='eps', columns='arm', values='mean')
  widest = (means['adv'] - means['std']).idxmax()
  for wanted, level in ((0.01, 0.01), (None, widest), (0.5, widest)):
    assert content.headline(summary, panel=panel, arms=arms, wanted=wanted) == level
  square = report.Panel('DICE_seg', 'square')
  assert content.headline(summary, panel=square, arms=arms, wanted=0.01) is None


def test_a_saved_picture_is_found_by_its_path_in_the_workdir(tmp_path):
  assert figures.save(tmp_path, 'shown', None) == []
  assert not (tmp_path / 'report').exists()
  (path,) = figures.save(tmp_path, 'shown', b'bytes')
  assert path == pathlib.Path('report/figures/shown.png')
  assert (tmp_path / path).read_bytes() == b'bytes'


def test_stored_arrays_come_back_and_none_where_there_is_no_file(tmp_path):
  assert inputs.arrays(tmp_path / 'absent.npz') is None
  np.savez(tmp_path / 'held.npz', a=np.arange(3), b=np.ones((2, 2)))
  held = inputs.arrays(tmp_path / 'held.npz')
  assert sorted(held) == ['a', 'b']
  np.testing.assert_array_equal(held['a'], [0, 1, 2])


def test_stored_arrays_never_unpickle(tmp_path):
  np.savez(tmp_path / 'objects.npz', a=np.array([{}], dtype=object))
  with pytest.raises(errors.UserError, match=r'objects\.npz'):
    inputs.arrays(tmp_path / 'objects.npz')


def test_rows_that_may_not_be_read_are_not_to_be_deleted(workdir, monkeypatch):
  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(pathlib.Path, 'read_bytes', refuse)
  with pytest.raises(errors.UserError, match=r'rows\.parquet: Permission denied; check') as caught:
    inputs.read(workdir)
  assert 'delete' not in str(caught.value)
