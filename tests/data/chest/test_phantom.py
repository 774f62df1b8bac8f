import collections

import numpy as np
import pytest
import scipy.ndimage

from robustmed import data, errors
from robustmed.data.chest import nodule_scans, phantom, phantom_chest, phantom_nodules

FIELDS = data.fields_of({'name': 'phantom_nodules'})
COUNT = 6


@pytest.fixture(scope='module')
def scans():
  return [phantom.draw(number, FIELDS) for number in range(COUNT)]


@pytest.fixture(scope='module')
def scene():
  return phantom_chest.draw(np.random.default_rng(1), (48, 64, 80))


def voxels(scan, table):
  return np.round(nodule_scans.to_voxel(scan, nodule_scans.centres(table))).astype(int)


class TestChest:
  def test_grid(self, scans):
    for scan in scans:
      assert scan.image.shape == scan.lung.shape == scan.masks.shape == (48, 64, 80)
      assert scan.image.dtype == np.float32 and scan.spacing == (1.5, 1.5, 1.5)
      assert scan.image.min() >= 0 and scan.image.max() <= 1
    assert phantom.shape_of({**FIELDS, 'voxel': 3.0}) == (24, 32, 40)

  def test_two_dark_lungs_in_a_bright_body_in_air(self, scans):
    for scan in scans:
      labels, count = scipy.ndimage.label(scan.lung)
      sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1]
      assert count >= 2 and sizes[1] > 0.5 * sizes[0]
      assert sizes[:2].sum() > 0.97 * scan.lung.sum()
      assert 0.15 < scan.lung.mean() < 0.35
      middle = labels[:, :, 40]
      assert (middle > 0).mean() < 0.1  # the mediastinum parts them
      hu = nodule_scans.to_hu(scan.image)
      assert -900 < np.median(hu[scan.lung]) < -760
      assert (hu[:, :2, :2] < -900).mean() > 0.9
      shell = scipy.ndimage.binary_dilation(scan.lung, iterations=2) & ~scan.lung
      assert -150 < np.median(hu[shell]) < 120

  def test_bones_vessels_and_airways_are_there(self, scene):
    bone = scene.image > 200
    _, ribs = scipy.ndimage.label(bone[:, 20:40, :20])
    assert ribs >= 3
    assert bone[:, 52:62, 36:44].mean() > 0.25  # the spine
    assert (scene.image[44, :, 40] < -900).any() and not scene.lung[44, :, 40].any()  # windpipe
    bright = scene.image[scene.lung] > -500
    assert 0.02 < bright.mean() < 0.25
    places = np.floor((scene.vessels + 0.5) * scene.image.shape).astype(int)
    at = scene.image[tuple(places.T)]
    assert np.median(at) > -500 and scene.lung[tuple(places.T)].mean() > 0.9
    assert 20 < scene.forks.sum() < len(scene.forks) / 3

  def test_depth_is_a_distance_in_millimetres(self, scene):
    true = scipy.ndimage.distance_transform_edt(scene.depth > 0) * 1.5
    inside = scene.depth > 3
    assert np.corrcoef(true[inside], scene.depth[inside])[0, 1] > 0.8
    assert 0.5 < np.median(true[inside] / scene.depth[inside]) < 2
    assert (scene.depth[scene.lung] > 0).all()

  def test_same_anatomy_at_every_grid(self):
    fine = phantom_chest.draw(np.random.default_rng(3), (48, 64, 80))
    coarse = phantom_chest.draw(np.random.default_rng(3), (24, 32, 40))
    averaged = (fine.depth > 0).reshape(24, 2, 32, 2, 40, 2).mean(axis=(1, 3, 5)) > 0.5
    assert ((coarse.depth > 0) == averaged).mean() > 0.97

  def test_tubes_against_every_distance(self):
    rng = np.random.default_rng(0)
    shape = (12, 16, 20)
    points, radii = rng.uniform(-0.55, 0.55, (40, 3)), rng.uniform(0.02, 0.1, 40)
    found = phantom_chest._tubes(shape, points, radii)
    grid = (np.stack(np.indices(shape), axis=-1) + 0.5) / shape - 0.5
    scale = np.array(phantom_chest.SIDES) / phantom_chest.SIDES[2]
    middle = (points + 0.5) * shape - 0.5
    near = ((middle > -1) & (middle < shape)).all(axis=1)  # half a voxel outside counts
    away = np.linalg.norm((grid[..., None, :] - points[near]) * scale, axis=-1) - radii[near]
    want = away.min(axis=-1)
    close = want < 1.2 / 20
    np.testing.assert_allclose(found[close], want[close], atol=1e-5)
    assert (found >= want - 1e-5).all()

  def test_noise(self, scene):
    rng = np.random.default_rng(0)
    clean = phantom_chest.blur(rng, scene.image, 0.0)
    noisy = phantom_chest.blur(rng, scene.image, 25.0)
    assert (noisy - clean).std() == pytest.approx(25, rel=0.02)
    assert np.abs(clean - scene.image).mean() > 1


class TestNodules:
  def test_tables_and_masks_agree(self, scans):
    for number, scan in enumerate(scans):
      assert len(scan.nodules) == phantom.num_nodules(number, FIELDS) >= 2
      assert set(np.unique(scan.masks)) == set(range(len(scan.nodules) + 1))
      assert not scan.masks[~scan.lung].any()
      for row, finding in enumerate(scan.nodules.itertuples()):
        mask = scan.masks == row + 1
        assert finding.kind in phantom_nodules.MIX and finding.uid == scan.uid
        assert 4 <= finding.diameter_mm <= 16
        diameter = np.cbrt(6 / np.pi * mask.sum() * 1.5**3)
        assert 0.6 * finding.diameter_mm < diameter < 1.25 * finding.diameter_mm
        middle = nodule_scans.to_world(scan, np.argwhere(mask).mean(axis=0)[None])[0]
        centre = nodule_scans.centres(scan.nodules)[row]
        assert np.linalg.norm(middle - centre) < 0.35 * finding.diameter_mm

  def test_no_two_findings_touch(self, scans):
    for scan in scans:
      centres = np.concatenate(
        [nodule_scans.centres(scan.nodules), nodule_scans.centres(scan.excluded)]
      )
      radii = np.concatenate([scan.nodules['diameter_mm'] / 2, np.full(len(scan.excluded), 1.0)])
      away = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
      away += 1000 * np.eye(len(centres))
      assert (away > radii[:, None] + radii[None]).all()

  def test_kinds_differ_as_their_names_say(self, scene):
    means, cores = {}, {}
    for kind in phantom_nodules.MIX:
      found = []
      for seed in range(3):
        rng = np.random.default_rng(seed)
        image = scene.image.copy()
        spot = phantom_nodules.Spot(np.array([42.0, 45, 25]), 11.0, kind)
        grown = phantom_nodules._blob(rng, image.shape, spot, 1.5, stretch=np.ones(3))
        phantom_nodules._fill(rng, image, scene, grown, spot, 1.5)
        inside, core = grown.distance < -1, grown.away < 0.3
        part = image[grown.box]
        found.append((part[inside].mean(), part[core].mean(), part[grown.away > 0.7].max()))
      means[kind], cores[kind] = np.mean(found, axis=0)[:2]
    assert -750 < means['ground_glass'] < means['part_solid'] - 40 < means['solid'] - 200
    assert -50 < means['solid'] < 80 < means['calcified']
    assert cores['calcified'] > 250 and -60 < cores['part_solid'] < 80
    assert cores['ground_glass'] < -350

  def test_long_tails(self):
    rng = np.random.default_rng(0)
    sizes = np.array([phantom_nodules.diameter(rng, (3.25, 32.3)) for _ in range(4000)])
    assert sizes.min() >= 3.25 and sizes.max() <= 32.3
    # 684 and 281 of the 1,186 nodules of LUNA16
    assert (sizes >= 6).mean() == pytest.approx(684 / 1186, abs=0.08)
    assert (sizes >= 10).mean() == pytest.approx(281 / 1186, abs=0.05)
    counted = collections.Counter(phantom_nodules.kind(rng) for _ in range(4000))
    for kind, count in phantom_nodules.MIX.items():
      assert counted[kind] / 4000 == pytest.approx(count / 281, abs=0.03)

  def test_irrelevant_findings_lie_in_the_lungs_and_mostly_lack_a_size(self, scans):
    known = total = 0
    for scan in scans:
      assert 2 <= len(scan.excluded) <= 5 and (scan.excluded['kind'] == 'unknown').all()
      at = voxels(scan, scan.excluded)
      assert (scan.masks[tuple(at.T)] == 0).all()
      near = scipy.ndimage.binary_dilation(scan.lung, iterations=2)
      assert near[tuple(at.T)].all()
      sizes = scan.excluded['diameter_mm']
      assert ((sizes == -1) | ((sizes >= 2) & (sizes <= 12))).all()
      known, total = known + (sizes > 0).sum(), total + len(sizes)
    assert known < total / 2

  def test_candidates_hit_nodules_or_miss_them(self, scans):
    for scan in scans:
      centres = nodule_scans.centres(scan.nodules)
      radii = scan.nodules['diameter_mm'].to_numpy() / 2
      points = nodule_scans.centres(scan.candidates)
      away = np.linalg.norm(points[:, None] - centres[None], axis=-1) / radii
      true = scan.candidates['class'].to_numpy() == 1
      assert true.sum() == len(centres) and (~true).sum() >= 20
      assert (away[true].min(axis=1) < 1).all() and (away[~true].min(axis=1) > 1).all()
      assert nodule_scans.inside(scan, points, scan.image.shape).all()


class TestSource:
  def test_a_scan_is_its_seed_and_number(self, scans):
    again = phantom.draw(1, {**FIELDS, 'scans': (2, 0, 1), 'side': 64})
    for one, two in zip(scans[1], again):
      if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, two)
    assert again.nodules.equals(scans[1].nodules)
    other = phantom.draw(1, {**FIELDS, 'seed': 1})
    assert np.abs(other.image - scans[1].image).mean() > 0.01

  def test_splits_and_tables(self, scans):
    found = phantom.scans({**FIELDS, 'scans': (2, 0, 1)})
    assert found.splits == {
      'train': ('phantom.00000', 'phantom.00001'),
      'test': ('phantom.00002',),
    }
    np.testing.assert_array_equal(found.read('phantom.00002').image, scans[2].image)
    tables = found.tables('phantom.00001')
    assert tables.nodules.equals(scans[1].nodules) and tables.excluded.equals(scans[1].excluded)
    assert {uid: len(found.tables(uid).nodules) for uid in found.counts} == found.counts

  def test_sizes_are_known_without_drawing(self):
    found = data.sizes({'name': 'phantom_nodules', 'scans': (300, 0, 100), 'nodules': (1, 1)})
    assert found == {'train': 300 * 11, 'test': 100 * 11}

  def test_patches_hold_what_their_role_says(self, scans):
    bright = []
    for scan in scans:
      solid = np.isin(scan.nodules['kind'], ('solid', 'calcified'))
      patches = nodule_scans.patches(
        scan, nodule_scans.centres(scan.nodules)[solid], side=24, spacing=1.25
      )
      for row in range(len(scan.nodules)):
        assert nodule_scans.mask_patch(scan, row, side=24, spacing=1.25).sum() >= 10
      bright += patches[:, 11:13, 11:13, 11:13].mean(axis=(1, 2, 3, 4)).tolist()
    assert np.median(bright) > 0.6 and min(bright) > 0.35


BAD = [
  ({'scans': (3, 1)}, 'scans must be three numbers'),
  ({'scans': (0, 1, 3)}, 'scans must be three numbers'),
  ({'nodules': (4, 2)}, r'nodules must be \(least, most\)'),
  ({'diameters': (1.0, 9.0)}, 'diameters must be'),
  ({'diameters': (4.0, 5.0)}, 'diameters must be'),
  ({'voxel': 0.5}, 'voxel must lie in'),
  ({'noise': -1.0}, 'noise must lie in'),
  ({'side': 1}, 'side must be at least 4'),
]


@pytest.mark.parametrize(('fields', 'message'), BAD)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    data.load({'name': 'phantom_nodules', **fields})
