import itertools

import numpy as np
import pytest
import scipy.spatial.distance

from robustmed.metrics import surface


def _border(mask):
  """Indices of the voxels of a mask with an axis neighbour outside it, one by one."""
  found = []
  for place in np.argwhere(mask):
    for axis, way in itertools.product(range(mask.ndim), (-1, 1)):
      other = place.copy()
      other[axis] += way
      if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
        found.append(place)
        break
  return np.array(found)


@pytest.mark.parametrize('shape, spacing', [((9, 7), (1.0, 2.5)), ((6, 5, 7), (3.6, 0.62, 0.8))])
def test_against_all_pairs_of_surface_voxels(shape, spacing):
  rng = np.random.default_rng(len(shape))
  for density in (0.15, 0.5, 0.9):
    ours, theirs = rng.uniform(size=(2, *shape)) < density
    pairs = scipy.spatial.distance.cdist(
      _border(ours) * np.array(spacing), _border(theirs) * np.array(spacing)
    )
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    want = max(np.percentile(there, 95), np.percentile(back, 95))
    assert surface.hd95(ours, theirs, spacing=spacing) == pytest.approx(want, rel=1e-12)
    for tolerance in (0.0, spacing[0], 2.0):
      near = np.sum(there <= tolerance + 1e-9) + np.sum(back <= tolerance + 1e-9)
      share = near / (len(there) + len(back))
      found = surface.nsd(ours, theirs, spacing=spacing, tolerance=tolerance)
      assert found == pytest.approx(share, rel=1e-12)


def test_shifted_squares_by_hand():
  mask = np.zeros((20, 20), bool)
  mask[4:10, 4:10] = True
  moved = np.roll(mask, 3, axis=0)
  # The far side is 3 rows of 2 mm away; of the 20 border voxels of each, 8 stay on the other's.
  assert surface.hd95(mask, moved, spacing=(2.0, 1.0)) == 6.0
  assert surface.nsd(mask, moved, spacing=(2.0, 1.0), tolerance=0.0) == 2 * 6 / 40
  assert surface.nsd(mask, moved, spacing=(2.0, 1.0), tolerance=6.0) == 1.0
  assert surface.hd95(mask, mask, spacing=(2.0, 1.0)) == 0.0
  # the edge of the volume is a surface as well, wherever the box around the masks ends
  full = np.ones((4, 4), bool)
  assert surface.directed_distances(full, full, spacing=(1, 1))[0].size == 12


def test_empty_masks():
  empty, mask = np.zeros((3, 4, 2), bool), np.zeros((3, 4, 2), bool)
  mask[1, 1, 1] = True
  spacing = (1.0, 1.0, 6.0)
  how = {'spacing': spacing, 'tolerance': 99.0}
  assert surface.hd95(empty, empty, spacing=spacing) == 0 and surface.nsd(empty, empty, **how) == 1
  for pair in ((empty, mask), (mask, empty)):
    assert surface.hd95(*pair, spacing=spacing) == pytest.approx(13.0)  # 3, 4, 12 mm
    assert surface.nsd(*pair, **how) == 0


def test_per_class():
  target = np.zeros((8, 8), int)
  target[1:4, 1:4], target[5:7, 5:7] = 1, 2
  prediction = np.where(target == 1, 1, 0)
  found = surface.per_class(
    prediction, target, classes=(1, 2, 3), spacing=(3.0, 4.0), tolerance=(1.0, 2.0, 3.0)
  )
  np.testing.assert_allclose(found['HD95'], [0, 40, 0])
  np.testing.assert_array_equal(found['NSD'], [1, 0, 1])
  with pytest.raises(ValueError, match='spacing'):
    surface.hd95(target > 0, target > 0, spacing=(1.0,))
