import csv
import json
import time

import numpy as np
import pytest
from PIL import Image

from robustmed import errors
from robustmed.metrics import froc
from robustmed.metrics.froc import luna16, tool


def findings(rows):
  scan, x, diameter, nodule = zip(*rows)
  centre = np.stack([x, np.zeros(len(x)), np.zeros(len(x))], axis=-1).astype(float)
  return froc.Findings(np.array(scan), centre, np.array(diameter, float), np.array(nodule, bool))


def marks(rows):
  scan, x, probability = zip(*rows) if rows else ((), (), ())
  centre = np.zeros((len(x), 3))
  centre[:, 0] = x
  return froc.Marks(np.array(scan, int), centre, np.array(probability, float))


def random_case(seed, *, num_scans=7, num_marks=90):
  rng = np.random.default_rng(seed)
  count = 20
  seen = froc.Findings(
    rng.integers(num_scans, size=count),
    rng.uniform(0, 18, (count, 3)),
    rng.choice([-1.0, 4.0, 12.0, 20.0], count),
    np.append(rng.uniform(size=count - 1) < 0.5, True),
  )
  said = froc.Marks(
    rng.integers(num_scans, size=num_marks),
    rng.uniform(0, 18, (num_marks, 3)),
    rng.integers(0, 40, num_marks) / 40,
  )
  return said, seen, num_scans


def slow_entries(said, seen, num_scans, limit):
  """The rules one by one: (probability, scan, hit) of each entry, as plain loops."""
  entries = []
  for scan in range(num_scans):
    mine = [i for i in range(len(said.scan)) if said.scan[i] == scan]
    if len(mine) > limit:
      border = sorted((said.probability[i] for i in mine), reverse=True)[limit]
      mine = [i for i in mine if said.probability[i] > border]
    free = set(mine)
    for f in range(len(seen.scan)):
      if seen.scan[f] != scan:
        continue
      radius = (10 if seen.diameter[f] < 0 else seen.diameter[f]) / 2
      near = [i for i in mine if np.sum((said.centre[i] - seen.centre[f]) ** 2) < radius**2]
      free -= set(near)
      if near and seen.nodule[f]:
        entries.append((max(said.probability[i] for i in near), scan, True))
    entries += [(said.probability[i], scan, False) for i in free]
  return entries


def slow_sensitivity(entries, nodules, num_scans, rates=froc.RATES):
  rate, sensitivity = [0.0], [0.0]
  for threshold in sorted({p for p, _, _ in entries}, reverse=True):
    taken = [hit for p, _, hit in entries if p >= threshold]
    rate.append((len(taken) - sum(taken)) / num_scans)
    sensitivity.append(sum(taken) / nodules)
  return np.interp(rates, rate, sensitivity)


def test_by_hand():
  seen = findings([(0, 0, 10, True), (0, 50, 4, True), (1, 0, -1, False), (1, 100, 6, True)])
  said = marks(
    [
      (0, 1, 0.9),  # on the first nodule
      (0, 4, 0.95),  # on it too, and better
      (0, 5, 0.8),  # at its edge: not inside
      (1, 4.9, 0.99),  # on the irrelevant finding, whose diameter counts as 10
      (1, 30, 0.7),  # nowhere
    ]
  )
  scored = froc.match(said, seen, num_scans=4)
  np.testing.assert_array_equal(scored.probability, [0.95, 0.8, 0.7])
  np.testing.assert_array_equal(scored.hit, [True, False, False])
  np.testing.assert_array_equal(scored.nodules, [2, 1, 0, 0])
  assert scored.counts == {
    'scans': 4,
    'nodules': 3,
    'marks': 5,
    'marks over the limit': 0,
    'true positives': 1,
    'false positives': 2,
    'missed nodules': 2,
    'marks on irrelevant findings': 1,
    'further marks on a found nodule': 1,
  }
  curve = froc.curve(scored)
  np.testing.assert_array_equal(curve.threshold, [np.inf, 0.95, 0.8, 0.7])
  np.testing.assert_allclose(curve.rate, [0, 0, 0.25, 0.5])
  np.testing.assert_allclose(curve.sensitivity, [0, 1 / 3, 1 / 3, 1 / 3])
  assert froc.cpm(scored) == pytest.approx(1 / 3)


def test_one_mark_may_find_two_nodules_and_a_nodule_beats_an_irrelevant_finding():
  seen = findings([(0, 0, 10, True), (0, 3, 10, True), (0, 1, 10, False)])
  scored = froc.match(marks([(0, 1, 0.5)]), seen, num_scans=1)
  np.testing.assert_array_equal(scored.hit, [True, True])
  assert scored.counts['marks on irrelevant findings'] == 0
  assert froc.cpm(scored) == 1.0


def test_too_many_marks_keep_those_above_the_first_one_too_many():
  said = marks([(0, 10 * i, p) for i, p in enumerate([0.9, 0.5, 0.8, 0.5, 0.1])])
  seen = findings([(0, -99, 3, True)])
  keep = lambda limit: froc.match(said, seen, num_scans=1, max_marks=limit).probability.tolist()
  assert keep(5) == [0.9, 0.8, 0.5, 0.5, 0.1] and keep(4) == [0.9, 0.8, 0.5, 0.5]
  assert keep(3) == [0.9, 0.8] and keep(1) == [0.9]  # 0.5 ties with the fourth


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('limit', [100, 9])
def test_the_rules_one_by_one(seed, limit):
  said, seen, num_scans = random_case(seed)
  scored = froc.match(said, seen, num_scans=num_scans, max_marks=limit)
  entries = slow_entries(said, seen, num_scans, limit)
  found = list(zip(scored.probability, scored.scan, scored.hit))
  assert sorted(found) == sorted(entries) and len(set(scored.hit)) == 2
  expected = slow_sensitivity(entries, int(seen.nodule.sum()), num_scans)
  np.testing.assert_allclose(froc.sensitivity_at(scored), expected, atol=1e-12)


def test_equal_probabilities_enter_together_whatever_their_order():
  seen = findings([(0, 0, 4, True), (0, 20, 4, True)])
  rows = [(0, 0, 0.5), (0, 9, 0.5), (0, 20, 0.5)]
  for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
    scored = froc.match(marks([rows[i] for i in order]), seen, num_scans=2)
    np.testing.assert_allclose(froc.curve(scored).rate, [0, 0.5])
    # a straight line from (0, 0) to (1/2, 1)
    np.testing.assert_allclose(froc.sensitivity_at(scored), [0.25, 0.5, 1, 1, 1, 1, 1])


def test_the_bootstrap_is_that_of_whole_scans():
  said, seen, num_scans = random_case(3, num_scans=5)
  scored = froc.match(said, seen, num_scans=num_scans)
  drawn = froc.resampled(scored, resamples=20, seed=7)
  rng = np.random.default_rng(7)
  entries = slow_entries(said, seen, num_scans, froc.MAX_MARKS)
  for row in drawn:
    scans = rng.integers(num_scans, size=num_scans)
    copies = [entry for scan in scans for entry in entries if entry[1] == scan]
    nodules = sum(int(scored.nodules[scan]) for scan in scans)
    np.testing.assert_allclose(row, slow_sensitivity(copies, nodules, num_scans), atol=1e-12)


def test_bounds_are_the_sorted_draws():
  said, seen, num_scans = random_case(4)
  scored = froc.match(said, seen, num_scans=num_scans)
  found = froc.summary(scored, resamples=200, seed=1)
  drawn = np.sort(froc.resampled(scored, resamples=200, seed=1).mean(axis=1))
  assert found.cpm == (pytest.approx(froc.cpm(scored)), drawn[5], drawn[195])
  assert (found.sensitivity.low <= found.sensitivity.high).all()
  without = froc.summary(scored, resamples=0)
  assert np.isnan([without.cpm.low, *without.sensitivity.high]).all()
  np.testing.assert_array_equal(without.sensitivity.value, found.sensitivity.value)


def test_draws_without_nodules_are_left_out():
  seen = findings([(0, 0, 4, True)])
  scored = froc.match(marks([(0, 0, 0.5), (1, 0, 0.9)]), seen, num_scans=2)
  drawn = froc.resampled(scored, resamples=100)
  assert 10 < np.isnan(drawn[:, 0]).sum() < 40
  found = froc.summary(scored, resamples=100)
  assert 0 < found.cpm.low < found.cpm.high <= 1


def test_a_paired_difference():
  said, seen, num_scans = random_case(5, num_scans=40)
  better = said._replace(centre=said.centre.copy())
  nodules = np.flatnonzero(seen.nodule)
  better.centre[: len(nodules)] = seen.centre[nodules]
  better.scan[: len(nodules)] = seen.scan[nodules]
  better.probability[: len(nodules)] = 2.0
  one, two = (froc.match(m, seen, num_scans=num_scans) for m in (better, said))
  same = froc.compare(one, one, resamples=50)
  assert same == (0.0, 0.0, 0.0, 1.0)
  found = froc.compare(one, two, resamples=200)
  back = froc.compare(two, one, resamples=200)
  assert found.value == pytest.approx(froc.cpm(one) - froc.cpm(two)) and found.value > 0
  assert 0 < found.low < found.value < found.high and found.p_value == pytest.approx(2 / 201)
  assert back.value == -found.value and back.p_value == found.p_value
  alone = froc.summary(one, resamples=200).cpm, froc.summary(two, resamples=200).cpm
  assert found.high - found.low <= sum(a.high - a.low for a in alone)
  with pytest.raises(ValueError, match='same scans'):
    froc.compare(one, one._replace(nodules=one.nodules + 1))


# -- tables ---------------------------------------------------------------------------------------

HEADER = ['seriesuid', 'coordX', 'coordY', 'coordZ']


def write(path, *rows):
  with path.open('w', newline='') as file:
    csv.writer(file).writerows(rows)
  return path


@pytest.fixture
def folder(tmp_path):
  write(tmp_path / 'seriesuids.csv', ['1.2'], ['1.10'], ['1.3'])
  write(
    tmp_path / 'annotations.csv',
    [*HEADER, 'diameter_mm'],
    ['1.2', 0, 0, 0, 8],
    ['1.10', 5, 5, 5, 4],
  )
  write(tmp_path / 'annotations_excluded.csv', [*HEADER, 'diameter_mm'], ['1.10', -20, 0, 0, -1])
  write(
    tmp_path / 'sub.csv',
    [*HEADER, 'probability'],
    ['1.2', 1, 0, 0, 0.9],
    ['1.10', 5, 5, 6, 0.8],
    ['1.3', 0, 0, 0, 0.7],
  )
  return tmp_path


def test_tables_are_read(folder):
  annotations = luna16.read_annotations(folder)
  assert annotations.scans == ('1.2', '1.10', '1.3')
  np.testing.assert_array_equal(annotations.findings.scan, [0, 1, 1])
  np.testing.assert_array_equal(annotations.findings.nodule, [True, True, False])
  said = luna16.read_submission(folder / 'sub.csv', annotations.scans)
  np.testing.assert_array_equal(said.scan, [0, 1, 2])
  np.testing.assert_array_equal(said.centre[1], [5, 5, 6])
  large = luna16.read_annotations(folder, min_diameter=6)
  np.testing.assert_array_equal(large.findings.nodule, [True, False, False])
  scored = froc.match(said, large.findings, num_scans=3)
  assert scored.counts['marks on irrelevant findings'] == 1


@pytest.mark.parametrize(
  'name, rows, message',
  [
    ('sub.csv', [[*HEADER, 'score'], ['1.2', 0, 0, 0, 1]], r'sub\.csv, row 1: has no column prob'),
    ('sub.csv', [[*HEADER, 'probability']], r'sub\.csv: has no rows below its header'),
    ('sub.csv', [], r'sub\.csv: cannot be read as a table'),
    (
      'sub.csv',
      [[*HEADER, 'probability'], ['1.2', 0, 0, 0, 1], [], ['1.2', 0, 0, 0, 'nan']],
      r'sub\.csv, row 4: probability is nan, not a finite number',
    ),
    (
      'sub.csv',
      [[*HEADER, 'probability'], ['1.2', 0, 'left', 0, 1]],
      r'sub\.csv, row 2: coordY is left',
    ),
    (
      'sub.csv',
      [[*HEADER, 'probability'], ['1.2', 0, 0, 0, 1], ['1.4', 0, 0, 0, 1]],
      r"sub\.csv, row 3: unknown series id '1\.4'",
    ),
    ('annotations.csv', [[*HEADER, 'diameter'], ['1.2', 0, 0, 0, 8]], r'no column diameter_mm'),
    (
      'annotations_excluded.csv',
      [[*HEADER, 'diameter_mm'], ['1.2', 0, 0, 0, '']],
      r'annotations_excluded\.csv, row 2: diameter_mm is nan',
    ),
    ('seriesuids.csv', [['1.2'], ['1.2']], r'seriesuids\.csv: must list every scan once'),
    (
      'annotations.csv',
      [[*HEADER, 'diameter_mm'], ['1.2', 0, 0, 0, 8], ['1.2', '0.0', 0, 0, 8]],
      r'annotations\.csv, row 3: lists a nodule again',
    ),
    (
      'sub.csv',
      [[*HEADER, 'probability'], ['1.2', 0, 0, 0, 'TRUE'], ['1.3', 0, 0, 0, 'TRUE']],
      r'sub\.csv, row 2: probability is True, not a finite number',
    ),
  ],
)
def test_bad_tables(folder, capsys, name, rows, message):
  write(folder / name, *rows)
  words = [str(folder / 'sub.csv'), '--annotations', str(folder), '--out', str(folder)]
  assert tool.main(words) == 2
  out, error = capsys.readouterr()
  assert out == '' and error.count('\n') == 1 and error.startswith('robustmed: error: ')
  with pytest.raises(errors.UserError, match=message):
    raise errors.UserError(error)


def test_scans_may_have_any_name(folder):
  names = ['NA', 'null', 'nan', '1.2', '1.10']
  write(folder / 'seriesuids.csv', *([name] for name in names))
  assert luna16.read_scans(folder / 'seriesuids.csv') == tuple(names)
  write(folder / 'sub.csv', [*HEADER, 'probability'], ['nan', 0, 0, 0, 0.5], ['NA', 0, 0, 0, 0.5])
  assert list(luna16.read_submission(folder / 'sub.csv', names).scan) == [2, 0]


def test_an_empty_list_of_irrelevant_findings_is_fine(folder):
  write(folder / 'annotations_excluded.csv', [*HEADER, 'diameter_mm'])
  assert len(luna16.read_annotations(folder).findings.scan) == 2


@pytest.mark.parametrize(
  'change, message',
  [
    (['--annotations', 'nowhere'], 'nowhere: has no annotations.csv'),
    (['--bootstrap', '-1'], 'must be 0 or more'),
    (['--bootstrap', 'many'], 'invalid int value'),
    (['--min-diameter', '99'], 'has no nodule of 99 mm or more'),
    (['--bogus'], 'unrecognized arguments: --bogus'),
  ],
)
def test_bad_commands(folder, capsys, change, message):
  words = [str(folder / 'sub.csv'), '--annotations', str(folder), '--out', str(folder), *change]
  assert tool.main(words) == 2
  assert message in capsys.readouterr().err


def test_files_that_are_no_tables(folder, capsys):
  annotations = luna16.read_annotations(folder)
  with pytest.raises(errors.UserError, match=r'gone\.csv: cannot be read as a table'):
    luna16.read_submission(folder / 'gone.csv', annotations.scans)
  (folder / 'sub.csv').write_bytes(b'\xff\xfe\x00\x81' * 9)
  with pytest.raises(errors.UserError, match=r'sub\.csv'):
    luna16.read_submission(folder / 'sub.csv', annotations.scans)


def test_the_tool(folder, capsys):
  out = folder / 'out'
  words = [str(folder / 'sub.csv'), '--annotations', str(folder), '--out', str(out)]
  assert tool.main([*words, '--bootstrap', '30', '--against', str(folder / 'sub.csv')]) == 0
  text = capsys.readouterr().out
  assert 'nodules                               2\n' in text
  assert '\n0.125                     1.0000       1.0000 to 1.0000\n' in text
  assert 'CPM minus that of sub.csv: +0.0000 (+0.0000 to +0.0000, p = 1)' in text
  rows = list(csv.DictReader((out / 'sub_froc.csv').read_text().splitlines()))
  assert [row['threshold'] for row in rows] == ['inf', '0.9', '0.8', '0.7']
  assert [float(row['sensitivity']) for row in rows] == [0, 0.5, 1, 1]
  with Image.open(out / 'sub_froc.png') as picture:
    assert picture.size == (960, 660) and len(picture.convert('RGB').getcolors(99999)) > 20
  assert tool.main([*words, '--bootstrap', '0']) == 0
  assert '\n0.125                     1.0000     \n' in capsys.readouterr().out


def test_agreement_with_the_challenge_on_a_published_submission(shared_data):
  where = shared_data / 'luna16'
  expected = json.loads((where / 'submissions/deeplung_dpn26.expected.json').read_text())
  annotations = luna16.read_annotations(where / 'evaluationScript/annotations')
  said = luna16.read_submission(where / 'submissions/deeplung_dpn26.csv', annotations.scans)
  scored = froc.match(said, annotations.findings, num_scans=len(annotations.scans))
  at = froc.sensitivity_at(scored, tuple(expected['fps_per_scan']))
  np.testing.assert_allclose(at, expected['sensitivity'], atol=1e-6)
  assert froc.cpm(scored) == pytest.approx(expected['cpm'], abs=1e-6)
  counts = expected['counts']
  for ours, theirs in (
    ('true positives', 'True positives'),
    ('false positives', 'False positives'),
    ('missed nodules', 'False negatives'),
    ('marks', 'Total number of candidates'),
    ('marks on irrelevant findings', 'Ignored candidates on excluded nodules'),
    (
      'further marks on a found nodule',
      'Ignored candidates which were double detections on a nodule',
    ),
  ):
    assert scored.counts[ours] == counts[theirs], ours
  large = luna16.read_annotations(where / 'evaluationScript/annotations', min_diameter=6)
  assert large.findings.nodule.sum() == 684


def test_a_hundred_thousand_candidates_are_read_and_scored_in_seconds(tmp_path, shared_data):
  where = shared_data / 'luna16' / 'evaluationScript' / 'annotations'
  annotations = luna16.read_annotations(where)
  rng = np.random.default_rng(0)
  count = 100_000
  scan = rng.integers(len(annotations.scans), size=count)
  values = np.concatenate([rng.uniform(-200, 200, (count, 3)), rng.uniform(size=(count, 1))], 1)
  rows = (
    f'{annotations.scans[s]},{x:.6f},{y:.6f},{z:.6f},{p:.6f}'
    for s, (x, y, z, p) in zip(scan, values)
  )
  path = tmp_path / 'many.csv'
  path.write_text('\n'.join(['seriesuid,coordX,coordY,coordZ,probability', *rows]))
  started = time.process_time()
  said = luna16.read_submission(path, annotations.scans)
  scored = froc.match(said, annotations.findings, num_scans=len(annotations.scans))
  drawn = froc.resampled(scored, resamples=100)
  seconds = time.process_time() - started
  assert len(said.scan) == count and drawn.shape == (100, 7)
  assert seconds < 10, seconds
