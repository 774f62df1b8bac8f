import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.chest import nodule_patches, nodule_scans, nodule_tiles
from support import chests

FIELDS = {**nodule_patches.FIELDS, 'cut': 'tiles', 'side': 16, 'spacing': 1.0, 'backgrounds': 3}
NODULES = (
  (12.0, 12, 12, 6, 'solid'),
  (18.0, 14, 12, 8, 'ground_glass'),
  (34.0, 30, 20, 5, 'solid'),
)


def one(rows=NODULES, **geometry):
  """A dark scan with a bright voxel at every nodule's centre."""
  scan = chests.scan(np.full((30, 40, 44), 0.2), nodules=chests.spots('one', *rows), **geometry)
  for x, y, z in nodule_scans.centres(scan.nodules).astype(int):
    scan.image[z, y, x] = 1.0
  return scan


def cut(scan, seed=0, **fields):
  return nodule_tiles.cut(scan, np.random.default_rng(seed), {**FIELDS, **fields})


def listed(row):
  """(centre, diameter, kind) of the nodules of a tile."""
  there = row['diameter'] > 0
  assert not row['centre'][~there].any() and not row['kind'][~there].any()
  kinds = [nodule_scans.KINDS[kind] for kind in row['kind'][there]]
  return list(zip(row['centre'][there], row['diameter'][there].tolist(), kinds))


def test_every_nodule_has_a_tile_and_is_where_it_says():
  for seed in range(4):
    rows = cut(one(), seed)
    assert [row['role'] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row['about'] for row in rows] == [r[4] for r in NODULES] + ['none'] * 3
    for number, row in enumerate(rows):
      assert row['image'].shape == (16, 16, 16, 1) and row['image'].dtype == np.float32
      found = listed(row)
      assert [size for _, size, _ in found] == sorted((s for _, s, _ in found), reverse=True)
      for centre, size, kind in found:
        world = row['start'] + centre[::-1]
        match = [r for r in NODULES if np.allclose(r[:3], world, atol=1e-4)]
        assert match[0][3:] == (size, kind)
        cell = np.round(centre).astype(int)
        part = row['image'][tuple(slice(max(0, c - 1), c + 2) for c in cell)]
        assert part.max() > 0.29  # the bright voxel, spread over its neighbours
      if number < 3:
        assert any(np.allclose(row['start'] + c[::-1], NODULES[number][:3]) for c, _, _ in found)
    inside = lambda row: [r for r in NODULES if _within(r[:3], row['start'])]
    assert all(len(listed(row)) == len(inside(row)) for row in rows)


def _within(point, start):
  return (point - start > -0.5).all() and (point - start < 15.5).all()


def test_tiles_stay_in_the_scan_or_about_its_middle():
  for row in cut(one(), backgrounds=20):
    assert (row['start'] >= 0).all() and (row['start'] + 15 <= [43, 39, 29]).all()
  large = cut(one(), side=40)
  for row in large:
    assert row['start'][2] == pytest.approx((29 - 39) / 2)
    assert len(listed(row)) == 3 or row['start'][0] > 0
  assert large[0]['image'].shape == (40, 40, 40, 1)


def test_mirrored_scans_give_the_same_tiles():
  plain = one()
  corner = nodule_scans.to_world(plain, np.array([[0, 39, 43]]))[0]
  mirrored = plain._replace(
    image=plain.image[:, ::-1, ::-1], origin=corner, direction=np.diag([-1.0, -1.0, 1.0])
  )
  for row, other in zip(cut(plain, backgrounds=0), cut(mirrored, backgrounds=0)):
    np.testing.assert_allclose(other['image'], row['image'], atol=1e-5)
    np.testing.assert_allclose(other['centre'], row['centre'], atol=1e-5)


def test_too_many_nodules_say_which_field():
  with pytest.raises(errors.UserError, match=r'scan one: has 2 nodules .* max_nodules \(now 1\)'):
    cut(one(NODULES[:2]), side=28, max_nodules=1)


def test_no_nodules():
  rows = cut(one(()))
  assert [row['role'] for row in rows] == [2, 2, 2] and not any(listed(row) for row in rows)


def test_as_a_source(tmp_path):
  config = {**chests.TWIN, 'cut': 'tiles', 'backgrounds': 2, 'max_nodules': 3}
  source = data.load({**config, 'cache_dir': str(tmp_path)})
  assert source.info['sizes'] == data.sizes(config)
  counts = source.info['counts']
  for name in nodule_patches.SPLITS:
    split = getattr(source, name)
    assert len(split) == counts[f'{name}_nodules'] + 2 * counts[f'{name}_scans']
  example = source.train[0]
  assert example['centre'].shape == (3, 3) and 'soft' not in example
  kinds = set(source.info['about']['train']) - {'none'}
  part = nodule_patches.of_kind(source, 'train', *kinds)
  assert len(part) == counts['train_nodules'] and all(row['role'] == 1 for row in part)
  assert len(nodule_patches.of_kind(source, 'train', 'none')) == 4
  with pytest.raises(errors.UserError, match='kind of nodule'):
    nodule_patches.of_kind(source, 'train', 'glass')


@pytest.mark.parametrize(
  ('fields', 'message'), [({'cut': 'slabs'}, 'data field cut'), ({'max_nodules': 0}, 'at least 1')]
)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    nodule_patches.check_fields({**FIELDS, **fields})
