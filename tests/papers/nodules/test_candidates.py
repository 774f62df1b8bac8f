"""Candidates of whole scans: maxima and unions against plain loops, tiles, and the LUNA16 tool."""

import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import errors, types
from robustmed.metrics import froc
from robustmed.metrics.froc import luna16
from robustmed.papers.nodules import candidates

RANDOM = np.random.default_rng(0)


def plain_maxima(heat, distance, threshold):
  """Every cell against every other; of a plateau the first in the order of the scan."""
  cells = [np.array(c) for c in itertools.product(*map(range, heat.shape))]
  value = lambda c: heat[tuple(c)]
  near = lambda a, b: ((a - b) ** 2).sum() < distance**2
  top = [c for c in cells if value(c) >= threshold]
  top = [c for c in top if all(value(c) >= value(o) for o in cells if near(c, o))]
  kept = []
  for c in sorted(top, key=lambda c: -value(c)):
    if not any(near(c, o) for o in kept):
      kept.append(c)
  return np.array(kept)


@pytest.mark.parametrize('distance', [1.0, 1.5, 2.0, 3.3])
def test_maxima_are_those_of_the_plain_search(distance):
  heat = RANDOM.integers(0, 9, (6, 5, 7)) / 8  # with plateaus
  found = candidates.maxima(heat, distance=distance, threshold=0.5, limit=None)
  want = plain_maxima(heat, distance, 0.5)
  np.testing.assert_array_equal(found.centre, want)
  np.testing.assert_array_equal(found.score, heat[tuple(want.T)])
  few = candidates.maxima(heat, distance=distance, threshold=0.5, limit=3)
  np.testing.assert_array_equal(few.centre, want[:3])


def test_the_fused_map_has_the_larger_value():
  first, second = np.array([[0.1, 0.9], [0.3, 0.2]]), np.array([[0.2, 0.4], [0.1, 0.8]])
  np.testing.assert_array_equal(candidates.fused([first, second]), [[0.2, 0.9], [0.3, 0.8]])
  np.testing.assert_array_equal(candidates.fused(iter([first])), first)


def test_a_union_takes_both_kinds_in_turn():
  high = candidates.Candidates(np.array([[0.0, 0], [10, 0], [20, 0]]), np.array([0.9, 0.8, 0.7]))
  low = candidates.Candidates(np.array([[0.0, 1], [0, 50]]), np.array([0.2, 0.1]))
  found = candidates.union([high, low], distance=3.0, limit=3)
  # One of `low` repeats the best of `high`; its other one comes before the third of `high`.
  np.testing.assert_array_equal(found.centre, [[0, 0], [10, 0], [0, 50]])
  np.testing.assert_array_equal(found.score, [0.9, 0.8, 0.1])
  whole = candidates.union([high, low], distance=3.0)
  np.testing.assert_array_equal(whole.score, [0.9, 0.8, 0.7, 0.1])
  same = candidates.union([high], distance=3.0)
  np.testing.assert_array_equal(same.centre, high.centre)


SCAN = np.zeros((14, 11, 6), np.float32)
SCAN[3, 4, 2], SCAN[11, 8, 4], SCAN[6, 1, 5] = 5, 4, 3
PATCH = (8, 8, 8)  # one axis of the scan is smaller
SETTINGS = candidates.Settings(
  patch=PATCH, batch_size=3, distance=2.0, threshold=0.6, sides=(4.0,), iou=0.1
)


def heat_task():
  """Its heat is the image, less an offset that belongs to the weights."""
  predict = lambda variables, image: {'heat': image - variables}
  return types.Task(None, predict, None, None, {}, None, (*PATCH, 1))


def box_task():
  """Every second cell is an anchor whose score is the brightest of the cells that it covers."""

  def predict(variables, image):
    b, h, w, d, _ = image.shape
    cut = image.reshape(b, h // 2, 2, w // 2, 2, d // 2, 2)
    score = jnp.max(cut, axis=(2, 4, 6))[..., None, None] - variables
    return {'boxes': jnp.concatenate([score, jnp.zeros((*score.shape[:-1], 6))], axis=-1)}

  return types.Task(None, predict, None, None, {}, None, (*PATCH, 1))


def logistic(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_a_scan_of_any_size_is_searched_by_tiles():
  find = candidates.Finder(heat_task(), settings=SETTINGS)
  weights = [np.float32(2.0), np.float32(2.5)]
  heat = find.heat(SCAN, weights)
  np.testing.assert_allclose(heat, logistic(SCAN - 2), rtol=1e-5)
  np.testing.assert_allclose(find.heat(SCAN, weights[1:]), logistic(SCAN - 2.5), rtol=1e-5)
  found = find(SCAN, heat=weights)
  np.testing.assert_array_equal(found.centre, [[3, 4, 2], [11, 8, 4], [6, 1, 5]])
  np.testing.assert_allclose(found.score, logistic([3, 2, 1]), rtol=1e-5)


def test_boxes_of_overlapping_tiles_are_one():
  find = candidates.Finder(heat_task(), box_task(), settings=SETTINGS)
  found = find(SCAN, boxes=np.float32(2.0))
  np.testing.assert_allclose(found.score, logistic([3, 2, 1]), rtol=1e-5)
  bright = np.array([[3, 4, 2], [11, 8, 4], [6, 1, 5]])
  assert (np.abs(found.centre - bright) <= 1).all()
  both = find(SCAN, heat=[np.float32(2.0)], boxes=np.float32(1.0))
  np.testing.assert_array_equal(both.centre, bright)  # of two that are the same the map's
  np.testing.assert_allclose(both.score, logistic([3, 2, 1]), rtol=1e-5)
  assert len(find(np.zeros_like(SCAN), heat=[np.float32(2)], boxes=np.float32(2)).score) == 0


def test_networks_that_are_missing_are_named():
  with pytest.raises(errors.UserError, match='need a network for heat maps or one for boxes'):
    candidates.Finder(None, settings=SETTINGS)
  find = candidates.Finder(heat_task(), settings=SETTINGS)
  with pytest.raises(errors.UserError, match='boxes need their network'):
    find(SCAN, boxes=np.float32(0))
  with pytest.raises(errors.UserError, match='need the variables of a network'):
    find(SCAN)


def test_a_submission_is_scored_by_the_luna16_tool(tmp_path):
  world = np.array([[10.0, 20, -30], [50, 60, -70], [1, 2, 3]])
  scans = {
    'one': candidates.Candidates(world, np.array([0.2, 0.9, 0.5])),
    'two': candidates.Candidates(np.zeros((0, 3)), np.zeros(0)),
    'three': candidates.Candidates(RANDOM.uniform(100, 200, (150, 3)), RANDOM.uniform(0, 1, 150)),
  }
  table = candidates.submission(scans)
  assert tuple(table.columns) == candidates.COLUMNS
  assert table['seriesuid'].value_counts().to_dict() == {'three': 100, 'one': 3}
  table.to_csv(tmp_path / 'marks.csv', index=False)
  nodules = [['one', 50, 61, -70, 8.0], ['three', 0, 0, 0, 6.0]]
  columns = [*candidates.COLUMNS[:-1], 'diameter_mm']
  pd.DataFrame(nodules, columns=columns).to_csv(tmp_path / 'annotations.csv', index=False)
  pd.DataFrame([], columns=columns).to_csv(tmp_path / 'annotations_excluded.csv', index=False)
  (tmp_path / 'seriesuids.csv').write_text('one\ntwo\nthree\n')
  known = luna16.read_annotations(tmp_path)
  marks = luna16.read_submission(tmp_path / 'marks.csv', known.scans)
  scored = froc.match(marks, known.findings, num_scans=3)
  assert scored.counts['true positives'] == 1 and scored.counts['false positives'] == 102
  lowest = np.sort(scans['three'].score)[50]
  assert marks.probability[marks.scan == 2].min() == pytest.approx(lowest)


def test_cells_become_world_coordinates():
  found = candidates.Candidates(np.array([[1.0, 2, 3]]), np.array([0.5]))
  scan = SimpleNamespace(origin=[10, 20, 30], spacing=(2.0, 1, 0.5), direction=np.eye(3))
  np.testing.assert_allclose(candidates.in_world(found, scan).centre, [[11.5, 22, 32]])


def test_a_submission_without_marks_has_its_columns_and_nan_is_refused():
  assert tuple(candidates.submission({}).columns) == candidates.COLUMNS
  bad = candidates.Candidates(np.zeros((1, 3)), np.array([np.nan]))
  with pytest.raises(errors.UserError, match='candidates of one: a probability'):
    candidates.submission({'one': bad})
