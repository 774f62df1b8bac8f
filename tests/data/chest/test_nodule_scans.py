import itertools

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk

from robustmed import errors
from robustmed.data.chest import nodule_scans
from robustmed.metrics import froc
from support import chests

GEOMETRIES = [
  pytest.param(np.eye(3), id='plain'),
  pytest.param(np.diag([-1.0, -1.0, 1.0]), id='mirrored'),
  pytest.param(chests.rotation(3, oblique=False), id='turned'),
  pytest.param(chests.rotation(1), id='oblique'),
]


def ramp(shape, spacing, origin, direction, slope):
  """A scan whose brightness is linear in the world: 0.5 + slope . (x, y, z)."""
  empty = chests.scan(np.zeros(shape), spacing=spacing, origin=origin, direction=direction)
  voxels = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=-1)
  world = nodule_scans.to_world(empty, voxels)
  return empty._replace(image=(0.5 + world @ slope).reshape(shape).astype(np.float32))


def test_window_by_hand():
  hu = np.array([-3024, -1200, -300, 600, 3000], np.int16)
  image = nodule_scans.normalise(hu)
  np.testing.assert_allclose(image, [0, 0, 0.5, 1, 1], atol=1e-7)
  assert image.dtype == np.float32 and hu[0] == -3024
  np.testing.assert_allclose(nodule_scans.to_hu(image[1:4]), [-1200, -300, 600], atol=1e-3)


class TestCoordinates:
  def test_by_hand(self):
    one = chests.scan(
      np.zeros((4, 5, 6)),
      spacing=(2.5, 0.5, 0.7),
      origin=(10, -20, 30),
      direction=np.diag([-1.0, -1.0, 1.0]),
    )
    world = nodule_scans.to_world(one, np.array([[0, 0, 0], [1, 2, 3]]))
    np.testing.assert_allclose(world, [[10, -20, 30], [10 - 2.1, -20 - 1.0, 30 + 2.5]])

  @pytest.mark.parametrize('direction', GEOMETRIES)
  def test_there_and_back_and_as_simpleitk(self, direction):
    one = chests.scan(
      np.zeros((7, 6, 5)), spacing=(2.5, 0.8, 0.6), origin=(-3, 40, 7), direction=direction
    )
    image = sitk.GetImageFromArray(one.image)
    image.SetSpacing(one.spacing[::-1])
    image.SetOrigin(one.origin.tolist())
    image.SetDirection(direction.ravel().tolist())
    voxels = np.random.default_rng(0).uniform(0, 4, (20, 3))
    world = nodule_scans.to_world(one, voxels)
    for voxel, point in zip(voxels, world):
      there = image.TransformContinuousIndexToPhysicalPoint(voxel[::-1].tolist())
      np.testing.assert_allclose(point, there, atol=1e-9)
    np.testing.assert_allclose(nodule_scans.to_voxel(one, world), voxels, atol=1e-9)

  def test_inside_counts_a_voxel_of_grace(self):
    one = chests.scan(np.zeros((4, 5, 6)), spacing=(2.0, 1.0, 1.0))
    points = np.array([[0, 0, 0], [5.9, 4.9, 7.9], [-0.9, 0, 0], [-1.1, 0, 0], [0, 0, 8.1]])
    found = nodule_scans.inside(one, points, one.image.shape)
    assert found.tolist() == [True, True, True, False, False]


class TestPatches:
  @pytest.mark.parametrize('direction', GEOMETRIES)
  def test_a_ramp_in_the_world_is_the_same_ramp_in_every_patch(self, direction):
    slope = np.array([0.002, -0.003, 0.001])
    shape, spacing = (24, 30, 28), (1.5, 0.8, 1.1)
    one = ramp(shape, spacing, np.array([-5.0, 8, 3]), direction, slope)
    middle = nodule_scans.to_world(one, np.array([[11.3, 14.2, 13.6], [12, 15, 14]]))
    found = nodule_scans.patches(one, middle, side=6, spacing=1.25)
    assert found.shape == (2, 6, 6, 6, 1) and found.dtype == np.float32
    steps = (np.arange(6) - 2.5) * 1.25
    z, y, x = np.meshgrid(steps, steps, steps, indexing='ij')
    for patch, centre in zip(found[..., 0], middle):
      world = centre + np.stack([x, y, z], axis=-1)
      np.testing.assert_allclose(patch, 0.5 + world @ slope, atol=2e-6)

  def test_as_a_general_resampler_does(self):
    rng = np.random.default_rng(5)
    one = chests.scan(
      rng.uniform(size=(14, 12, 13)), spacing=(2.0, 0.9, 1.2), direction=chests.rotation(2)
    )
    centre = nodule_scans.to_world(one, np.array([[7.0, 6, 6]]))
    image = sitk.GetImageFromArray(one.image)
    image.SetSpacing(one.spacing[::-1])
    image.SetDirection(one.direction.ravel().tolist())
    grid = sitk.Image([5, 5, 5], sitk.sitkFloat32)
    grid.SetSpacing([0.7] * 3)
    grid.SetOrigin((centre[0] - 2 * 0.7).tolist())
    there = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear))
    found = nodule_scans.patches(one, centre, side=5, spacing=0.7)[0, ..., 0]
    np.testing.assert_allclose(found, there, atol=1e-5)

  def test_only_near_voxels_are_looked_at_and_the_border_goes_on(self):
    image = np.full((20, 20, 20), np.nan, np.float32)
    image[:6, :6, :6] = np.arange(6)
    one = chests.scan(image)
    corner, beyond = nodule_scans.patches(
      one, np.array([[1.0, 1, 1], [-50, 2, 2]]), side=3, spacing=1.0
    )[..., 0]
    np.testing.assert_array_equal(corner, np.broadcast_to([0, 1, 2], (3, 3, 3)))
    np.testing.assert_array_equal(beyond, np.zeros((3, 3, 3)))
    assert nodule_scans.patches(one, np.zeros((0, 3)), side=3, spacing=1.0).shape == (0, 3, 3, 3, 1)

  def test_every_scan_of_one_body_gives_the_same_patches(self):
    """A mirrored and turned file of the same voxels is the same body."""
    rng = np.random.default_rng(0)
    plain = chests.scan(rng.uniform(size=(9, 10, 11)), spacing=(1.5, 1.0, 0.5), origin=(1, 2, 3))
    points = nodule_scans.to_world(plain, rng.uniform(2, 7, (4, 3)))
    want = nodule_scans.patches(plain, points, side=4, spacing=0.8)
    corner = nodule_scans.to_world(plain, np.array([[0, 9, 10]]))[0]
    flipped = plain._replace(
      image=plain.image[:, ::-1, ::-1], origin=corner, direction=np.diag([-1.0, -1.0, 1.0])
    )
    turned = plain._replace(  # file axes x, y, z = world's z, x, y
      image=np.ascontiguousarray(plain.image.transpose(1, 2, 0)),
      spacing=(1.0, 0.5, 1.5),
      direction=np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    )
    for other in (flipped, turned):
      found = nodule_scans.patches(other, points, side=4, spacing=0.8)
      np.testing.assert_allclose(found, want, atol=1e-6)


class TestMasks:
  def test_mask_patch_keeps_to_its_nodule(self):
    masks = np.zeros((12, 12, 12), np.int16)
    masks[3:7, 3:7, 3:7] = 1
    masks[3:7, 3:7, 7:9] = 2
    table = chests.spots('one', (4.5, 4.5, 4.5, 4, 'solid'), (7.5, 4.5, 4.5, 3, 'ground_glass'))
    one = chests.scan(np.zeros((12, 12, 12)), nodules=table, masks=masks)
    first = nodule_scans.mask_patch(one, 0, side=6, spacing=1.0)
    assert first.dtype == bool and first.sum() == 64 and first[1:5, 1:5, 1:5].all()
    second = nodule_scans.mask_patch(one, 1, side=6, spacing=1.0)
    assert second.sum() == 32 and second[1:5, 1:5, 2:4].all()
    finer = nodule_scans.mask_patch(one, 0, side=12, spacing=0.5)
    assert 0.8 < finer.sum() / 8 / 64 < 1.2
    elsewhere = nodule_scans.mask_patch(
      one, 0, side=4, spacing=1.0, centre=np.array([10.0, 10, 10])
    )
    assert not elsewhere.any()
    assert not nodule_scans.mask_patch(one._replace(masks=None), 0, side=4, spacing=1.0).any()

  def test_soft_edge_by_hand(self):
    mask = np.zeros((3, 3, 12), bool)
    mask[:, :, 4:8] = True
    want = [0, 0, 0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0, 0]
    np.testing.assert_allclose(nodule_scans.soft_edge(mask), np.broadcast_to(want, mask.shape))

  def test_soft_edge_against_distances(self):
    rng = np.random.default_rng(2)
    mask = scipy.ndimage.gaussian_filter(rng.normal(size=(11, 12, 13)), 2) > 0.05
    soft = nodule_scans.soft_edge(mask)
    assert soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1
    np.testing.assert_array_equal(soft > 0.5, mask)
    places = [tuple(p) for p in rng.integers(0, 11, (40, 3))]
    points = {True: np.argwhere(mask), False: np.argwhere(~mask)}
    for place in places:
      own = bool(mask[place])
      away = np.linalg.norm(points[not own] - np.array(place), axis=1).min() - 0.5
      want = np.clip(0.5 + (away if own else -away) / 2, 0, 1)
      assert soft[place] == pytest.approx(want, abs=1e-6)
    np.testing.assert_array_equal(nodule_scans.soft_edge(np.zeros((2, 2, 2), bool)), 0)
    np.testing.assert_array_equal(nodule_scans.soft_edge(np.ones((2, 2, 2), bool)), 1)


class TestResample:
  @pytest.mark.parametrize('direction', GEOMETRIES[:3])
  def test_the_world_stays_where_it_was(self, direction):
    slope = np.array([0.01, -0.004, 0.007])
    one = ramp((8, 10, 9), (2.0, 1.0, 1.5), np.array([4.0, -2, 9]), direction, slope)
    masks = np.zeros(one.image.shape, np.int16)
    masks[2:5, 3:7, 4:6] = 2
    found = nodule_scans.resample(one._replace(masks=masks), 1.0)
    again = ramp(found.image.shape, found.spacing, found.origin, found.direction, slope)
    np.testing.assert_allclose(found.image, again.image, atol=1e-5)
    assert found.spacing == (1.0, 1.0, 1.0) and found.lung.all() and found.lung.dtype == bool
    assert found.masks.dtype == np.int16 and set(np.unique(found.masks)) == {0, 2}
    middle = lambda s: nodule_scans.to_world(s, np.argwhere(s.masks == 2)).mean(axis=0)
    np.testing.assert_allclose(middle(found), middle(one._replace(masks=masks)), atol=0.8)
    ends = [nodule_scans.to_world(s, np.array([np.array(s.image.shape) - 1])) for s in (one, found)]
    extent = lambda s, end: np.abs(end[0] - s.origin).max()
    assert extent(found, ends[1]) == pytest.approx(extent(one, ends[0]), abs=1.01)

  def test_without_masks(self):
    one = chests.scan(np.zeros((4, 4, 4)), lung=None)
    found = nodule_scans.resample(one, 0.5)
    assert found.image.shape == (7, 7, 7) and found.lung is None and found.masks is None


class TestLungPlaces:
  def one(self, *rows):
    lung = np.zeros((30, 40, 40), bool)
    lung[5:25, 5:35, 5:35] = True
    return chests.scan(np.zeros(lung.shape), lung=lung, nodules=chests.spots('one', *rows))

  def test_in_the_lungs_and_clear_of_nodules(self):
    one = self.one((12, 12, 12, 6, 'solid'), (28, 28, 20, 4, 'solid'))
    found = nodule_scans.lung_places(one, np.random.default_rng(0), 50, clearance=4.0)
    assert found.points.shape == (50, 3) and found.free.all()
    voxels = np.round(found.points[:, ::-1]).astype(int)
    assert one.lung[tuple(voxels.T)].all()
    assert len(np.unique(voxels, axis=0)) > 45
    for centre, radius in (((12, 12, 12), 3), ((28, 28, 20), 2)):
      assert (np.abs(found.points - centre).max(axis=1) >= radius + 4).all()

  def test_same_stream_same_places(self):
    draw = lambda seed: (
      nodule_scans.lung_places(self.one(), np.random.default_rng(seed), 5, clearance=3.0).points
    )
    np.testing.assert_array_equal(draw(1), draw(1))
    assert np.abs(draw(1) - draw(2)).max() > 1

  def test_no_room_gives_the_farthest_and_says_so(self):
    one = self.one((20, 20, 15, 8, 'solid'))
    found = nodule_scans.lung_places(one, np.random.default_rng(0), 3, clearance=100.0)
    assert not found.free.any()
    assert (np.abs(found.points - [20, 20, 15]).max(axis=1) > 12).all()

  def test_none_wanted_needs_no_lungs(self):
    one = self.one()._replace(lung=None)
    found = nodule_scans.lung_places(one, np.random.default_rng(0), 0, clearance=3.0)
    assert found.points.shape == (0, 3)
    for lung in (None, np.zeros((30, 40, 40), bool)):
      with pytest.raises(errors.UserError, match='scan one: has no lung mask'):
        nodule_scans.lung_places(
          one._replace(lung=lung), np.random.default_rng(0), 1, clearance=3.0
        )


class TestFindings:
  def test_two_scans_by_hand(self):
    first = chests.scan(
      np.zeros((2, 2, 2)),
      nodules=chests.spots('a', (1, 2, 3, 8, 'solid'), (4, 5, 6, 5.9, 'solid')),
      excluded=chests.spots('a', (7, 8, 9, -1, 'unknown')),
    )
    second = nodule_scans.Tables(
      'b', chests.spots('b', (0, 0, 0, 6, 'calcified')), first.excluded.iloc[:0]
    )
    found = nodule_scans.findings([first, second], min_diameter=6)
    assert found.scan.tolist() == [0, 0, 0, 1]
    assert found.centre.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert found.diameter.tolist() == [8, 5.9, -1, 6]
    assert found.nodule.tolist() == [True, False, False, True]
    assert nodule_scans.findings([first]).nodule.tolist() == [True, True, False]

  def test_a_detector_that_marks_every_nodule_is_perfect(self):
    rng = np.random.default_rng(0)
    scans = [
      nodule_scans.Tables(
        str(n),
        chests.spots(str(n), *([*rng.uniform(0, 200, 3), 7, 'solid'] for _ in range(2))),
        chests.spots(str(n)),
      )
      for n in range(3)
    ]
    found = nodule_scans.findings(scans)
    marks = froc.Marks(found.scan, found.centre + 1.0, np.ones(6))
    scored = froc.match(marks, found, num_scans=3)
    assert scored.hit.all() and len(scored.hit) == 6

  def test_no_scans(self):
    with pytest.raises(ValueError, match='no scans'):
      nodule_scans.findings([])


def test_table_and_centres():
  places = list(itertools.product((1.0, 2.0), repeat=3))
  table = nodule_scans.table('u', places, diameter_mm=np.arange(8.0), kind='solid')
  assert list(table.columns) == ['uid', 'coordX', 'coordY', 'coordZ', 'diameter_mm', 'kind']
  np.testing.assert_array_equal(nodule_scans.centres(table), places)
  assert (table['kind'] == 'solid').all() and len(nodule_scans.table('u', [])) == 0
