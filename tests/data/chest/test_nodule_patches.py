import collections
import pathlib

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data import pipeline, store
from robustmed.data.chest import nodule_patches, nodule_scans
from support import chests

FIELDS = {
  **nodule_patches.FIELDS,
  'side': 8,
  'spacing': 1.0,
  'negatives': 4,
  'backgrounds': 3,
  'workers': 1,
}
NODULES = ((12.0, 12, 12, 6, 'solid'), (28.0, 26, 20, 4, 'ground_glass'))


def balls(shape=(30, 40, 40), rows=NODULES, *, masks=True, candidates=None):
  """Bright balls at the nodules in a dark lung, with their masks."""
  z, y, x = np.indices(shape)
  labels = np.zeros(shape, np.int16)
  for number, (cx, cy, cz, diameter, _) in enumerate(rows):
    away = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)
    labels[away < diameter / 2] = number + 1
  lung = np.zeros(shape, bool)
  lung[4:26, 4:36, 4:36] = True
  return chests.scan(
    np.where(labels > 0, 0.7, 0.2),
    lung=lung,
    nodules=chests.spots('one', *rows),
    masks=labels if masks else None,
    candidates=candidates,
  )


def candidates(*rows):
  return nodule_scans.table('one', [row[:3] for row in rows], **{'class': [row[3] for row in rows]})


def by_role(rows):
  found = collections.defaultdict(list)
  for row in rows:
    found[nodule_patches.ROLES[row['role']]].append(row)
  return found


class TestCut:
  def test_nodules_come_first_with_size_kind_and_mask(self):
    rows = nodule_patches.cut(balls(), FIELDS)
    found = by_role(rows)
    assert [row['role'] for row in rows] == [1, 1, 0, 0, 0, 0, 2, 2, 2]
    for row, (x, y, z, diameter, kind) in zip(found['nodule'], NODULES):
      assert row['target'] == 1 and row['has_mask'] and row['free']
      assert row['diameter'] == diameter
      assert nodule_scans.KINDS[row['kind']] == kind
      assert row['centre'].tolist() == [x, y, z]
      assert row['image'].shape == row['soft'].shape == (8, 8, 8, 1)
      core = row['soft'] == row['soft'].max()
      assert row['soft'].max() >= 0.75 and row['image'][core].min() > 0.6
      volume = row['soft'].sum()
      assert 0.6 < volume / (np.pi / 6 * diameter**3) < 1.4
    names = [row['name'] for row in rows]
    assert names[:3] == ['one_nodule_00', 'one_nodule_01', 'one_negative_00']
    assert len(set(names)) == len(names)

  def test_others_have_no_nodule(self):
    found = by_role(nodule_patches.cut(balls(), FIELDS))
    for row in (*found['negative'], *found['background']):
      assert row['target'] == 0 and not row['has_mask'] and row['kind'] == 0
      assert row['diameter'] == 0 and not row['soft'].any()
    for row in found['background']:
      assert row['free'] and row['image'].max() < 0.21

  def test_random_negatives_keep_away(self):
    rows = nodule_patches.cut(balls(), {**FIELDS, 'negatives': 40})
    for row in by_role(rows)['negative']:
      for x, y, z, diameter, _ in NODULES:
        assert np.abs(row['centre'] - [x, y, z]).max() >= diameter / 2 + 5

  def test_negatives_are_candidates_of_class_0(self):
    listed = [(float(5 + n), 6.0, 7.0, int(n == 3)) for n in range(8)]
    one = balls(candidates=candidates(*listed))
    found = by_role(nodule_patches.cut(one, FIELDS))['negative']
    places = {tuple(row['centre']) for row in found}
    assert len(places) == 4 and places < {row[:3] for row in listed if row[3] == 0}
    few = balls(candidates=candidates(*listed[2:4]))
    places = [tuple(row['centre']) for row in by_role(nodule_patches.cut(few, FIELDS))['negative']]
    assert len(places) == 4 and places[0] == listed[2][:3]
    assert not {row[:3] for row in listed} & set(places[1:])
    lung = by_role(nodule_patches.cut(one, {**FIELDS, 'negatives_from': 'lung'}))['negative']
    assert not {row[:3] for row in listed} & {tuple(row['centre']) for row in lung}

  def test_places_follow_from_the_id_and_the_seed(self):
    centres = lambda scan, **fields: np.stack(
      [row['centre'] for row in nodule_patches.cut(scan, {**FIELDS, **fields})]
    )
    one = balls()
    np.testing.assert_array_equal(centres(one), centres(one, workers=2))
    for other in (centres(one._replace(uid='two')), centres(one, draw_seed=1)):
      np.testing.assert_array_equal(other[:2], centres(one)[:2])
      assert np.abs(other[2:] - centres(one)[2:]).max() > 1
    more = centres(one, negatives=6)
    np.testing.assert_array_equal(more[-3:], centres(one)[-3:])  # backgrounds stay where they are

  def test_without_masks_or_nodules(self):
    found = by_role(nodule_patches.cut(balls(masks=False), FIELDS))
    assert not any(row['has_mask'] or row['soft'].any() for row in found['nodule'])
    empty = balls(rows=())
    assert [row['role'] for row in nodule_patches.cut(empty, FIELDS)] == [0] * 4 + [2] * 3

  def test_a_background_without_room_says_so(self):
    rows = nodule_patches.cut(balls(), {**FIELDS, 'side': 44, 'negatives': 0})
    assert not any(row['free'] for row in by_role(rows)['background'])


class TestDisk:
  def test_the_estimate_is_said_before_it_starts(self, capsys, tmp_path):
    nodule_patches.announce(18_946, 64, tmp_path / 'not' / 'yet')
    said = capsys.readouterr().err
    assert 'cutting 18946 patches of 64^3 points, at most 20.9 GB (' in said and ' free)' in said

  def test_a_full_disk_is_an_error_with_both_sizes(self, monkeypatch, tmp_path):
    usage = collections.namedtuple('usage', 'total used free')(10, 9, 1_000_000)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda folder: usage)
    nodule_patches.announce(1, 32, tmp_path)
    with pytest.raises(errors.UserError, match=r'take up to 1\.1 MB, .* has 1\.0 MB free; set'):
      nodule_patches.announce(8, 32, tmp_path)

  def test_nothing_is_left_of_a_source_that_does_not_fit(self, monkeypatch, tmp_path):
    usage = collections.namedtuple('usage', 'total used free')(10, 9, 100)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(errors.UserError, match='free; set the data field cache_dir'):
      data.load({**chests.TWIN, 'cache_dir': str(tmp_path)})
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]

  def test_the_estimate_is_no_less_than_what_lies_there(self, tmp_path):
    source = data.load({**chests.TWIN, 'side': 32, 'cache_dir': str(tmp_path)})
    files = pathlib.Path(source.info['folder']).glob('*.array_record*')
    size = sum(path.stat().st_size for path in files)
    count = sum(source.info['sizes'].values())
    estimate = count * 32**3 * 4
    assert 0.3 * estimate < size < 1.05 * estimate


class TestSampling:
  ROLES = (1, 0, 0, 2, 1, 0, 2, 1)

  def draws(self, count, seed=0):
    sampling = nodule_patches.balanced(self.ROLES)
    return [sampling.choose(n, seed=seed, batch_size=4, size=8)[0] for n in range(count)]

  def test_every_other_draw_is_a_nodule_and_passes_have_no_repeats(self):
    draws = self.draws(60)
    assert {self.ROLES[place] for place in draws[::2]} == {1}
    assert {self.ROLES[place] for place in draws[1::2]} == {0, 2}
    for first in range(0, 30, 3):
      assert sorted(draws[::2][first : first + 3]) == [0, 4, 7]
    for first in range(0, 30, 5):
      assert sorted(draws[1::2][first : first + 5]) == [1, 2, 3, 5, 6]
    assert draws == self.draws(60) != self.draws(60, seed=1)

  def test_one_role_alone_is_drawn_as_usual(self):
    for roles in ((), (0, 2, 0), (1, 1, 1)):
      assert nodule_patches.balanced(roles) == pipeline.Sampling()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return data.load({**chests.TWIN, 'cache_dir': str(tmp_path_factory.mktemp('patches'))})


class TestSource:
  def test_roles_are_known_without_reading(self, source):
    for name in nodule_patches.SPLITS:
      split = getattr(source, name)
      assert source.info['roles'][name] == split.stack('role').tolist()
      for role in nodule_patches.ROLES:
        part = nodule_patches.of_role(source, name, role)
        assert all(nodule_patches.ROLES[one['role']] == role for one in part)
      assert len(nodule_patches.of_role(source, name, 'nodule', 'negative')) + len(
        nodule_patches.of_role(source, name, 'background')
      ) == len(split)
    counts = source.info['counts']
    assert counts['train_scans'] == 2 and counts['nodules_without_mask'] == 0
    assert counts['train_nodules'] == source.info['roles']['train'].count(1)

  def test_a_scan_is_a_group(self, source):
    names = [example['name'].split('_')[0] for example in source.train]
    assert len(set(zip(names, source.train.groups))) == len(set(names)) == 2
    assert source.validation.groups[0] == 2 and source.test.groups[0] == 3

  def test_examples_are_those_of_their_scans(self, source):
    fields = data.fields_of(chests.TWIN)
    scans = data.SOURCES['phantom_nodules'].scans(fields)
    rows = nodule_patches.cut(scans.read(scans.splits['test'][0]), fields)
    for row, example in zip(rows, source.test):
      for key in ('image', 'soft', 'centre', 'kind', 'name'):
        np.testing.assert_array_equal(row[key], example[key])

  def test_batches_are_half_nodules(self, source):
    batch = next(
      pipeline.train_batches(
        source.train, batch_size=6, seed=0, shard_index=0, shard_count=1, sampling=source.sampling
      )
    )
    assert batch['target']['target'].tolist() == [1, 0] * 3
    assert batch['image'].shape == (6, 8, 8, 8, 1)


BAD = [
  ({'side': 2}, 'side must be at least 4'),
  ({'spacing': 0.0}, 'spacing must be a few millimetres'),
  ({'negatives': -1}, 'negatives must be at least 0'),
  ({'negatives_from': 'lungs'}, "negatives_from 'lungs'; did you mean 'lung'"),
]


@pytest.mark.parametrize(('fields', 'message'), BAD)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    nodule_patches.check_fields({**FIELDS, **fields})


def test_workers_do_not_change_the_key():
  assert nodule_patches.key(FIELDS) == nodule_patches.key({**FIELDS, 'workers': 7})
  assert nodule_patches.key(FIELDS) != nodule_patches.key({**FIELDS, 'backgrounds': 7})
