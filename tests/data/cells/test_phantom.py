import numpy as np
import pytest

from robustmed import errors
from robustmed.data.cells import phantom
from robustmed.metrics.boxes import average_precision

SHAPE = (96, 128)


def draw(seed, *, most=24):
  rng = np.random.default_rng(seed)
  cells = phantom.scatter(rng, SHAPE, most=most)
  return phantom.draw(rng, cells, SHAPE, noise=0.02), cells


def test_cells_have_the_three_kinds_and_red_ones_overlap():
  kinds, overlaps = [], []
  for seed in range(20):
    _, cells = draw(seed)
    assert 1 <= len(cells) <= 24
    kinds += [cell.kind for cell in cells]
    red = np.array([phantom.box_of(cell, SHAPE) for cell in cells if cell.kind == 1])
    overlaps.append(average_precision.iou(red, red)[np.triu_indices(len(red), 1)])
  counts = np.bincount(kinds)
  assert counts[1] > 5 * counts[0] > 0 and counts[2] >= 10
  overlaps = np.concatenate(overlaps)
  assert (overlaps > 0.1).sum() > 10 and overlaps.max() < 0.6


def test_boxes_lie_in_the_image_and_have_the_sizes_of_their_kinds():
  medians = {}
  for kind in range(3):
    sides = []
    for seed in range(15):
      cells = phantom.scatter(np.random.default_rng(seed), (240, 320), most=24)
      boxes = np.array([phantom.box_of(cell, (240, 320)) for cell in cells if cell.kind == kind])
      boxes = boxes.reshape(-1, 4)
      assert (boxes >= 0).all() and (boxes <= [320, 240, 320, 240]).all()
      assert (boxes[:, 2:] - boxes[:, :2] > 3).all()
      sides += (boxes[:, 2:] - boxes[:, :2]).ravel().tolist()
    medians[kind] = np.median(sides)
  assert medians[0] == pytest.approx(20, abs=4)
  assert medians[1] == pytest.approx(52, abs=6)
  assert medians[2] == pytest.approx(92, abs=14)


def test_a_rotated_cell_fills_its_box():
  cell = phantom.Cell(1, 60.0, 50.0, (20.0, 10.0), 0.7)
  y, x = np.mgrid[:96, :128] + 0.5
  inside = phantom._distance(cell, x, y) <= 1
  rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
  box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
  np.testing.assert_allclose(phantom.box_of(cell, (96, 128)), box, atol=1)


def test_platelets_and_nuclei_are_violet_and_red_cells_are_not():
  found = {0: [], 1: [], 2: []}
  grid = np.meshgrid(np.arange(128) + 0.5, np.arange(96) + 0.5)
  for seed in range(8):
    picture, cells = draw(seed)
    violet = picture[..., 2] - picture[..., 0]
    for cell in cells:
      if 4 < cell.x < 124 and 4 < cell.y < 92:
        found[cell.kind].append(np.quantile(violet[phantom._distance(cell, *grid) < 0.6], 0.75))
  assert np.quantile(found[1], 0.8) < 0 < 0.1 < np.min(found[2])
  assert np.median(found[0]) > 0.1


def test_an_image_depends_on_its_number_alone(tmp_path):
  make = lambda **fields: phantom.Builder(
    fields={**phantom.DEFAULTS, **fields}, data_dir=str(tmp_path / str(len(fields)))
  )
  few, more = make(train_images=2), make(train_images=3, test_images=2)
  for one, two in zip(few.splits()['train'], more.splits()['train']):
    np.testing.assert_array_equal(one['image'], two['image'])
    np.testing.assert_array_equal(one['boxes'], two['boxes'])
  first, second = list(more.splits()['train'])[:2]
  other = next(iter(more.splits()['test']))
  assert (first['image'] != second['image']).any() and (first['image'] != other['image']).any()
  assert first['index'] == 0 and other['index'] == 3 + 8


def test_no_more_cells_than_boxes():
  assert max(len(draw(seed, most=4)[1]) for seed in range(5)) <= 4


@pytest.mark.parametrize('change', [{'train_images': 0}, {'noise': 2.0}, {'long_side': 999}])
def test_bad_fields(change):
  with pytest.raises(errors.UserError, match=f'data field {next(iter(change))}'):
    phantom.fingerprint({**phantom.DEFAULTS, **change})
