import pathlib
import shutil

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.chest import luna16_files, nodule_patches, nodule_scans, phantom
from robustmed.metrics.froc import luna16
from support import chests

TABLES = pathlib.Path('evaluationScript/annotations')


@pytest.fixture(scope='module')
def twins():
  """The scans of the folder as they were drawn, by id."""
  scans = phantom.scans(data.fields_of(chests.TWIN))
  return {uid: scans.read(uid) for listed in scans.splits.values() for uid in listed}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, twins):
  path = tmp_path_factory.mktemp('luna')
  return chests.write(path, list(twins.values()), subsets=(0, 3, 8, 9))


@pytest.fixture
def copied(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'luna'))


def read_all(folder):
  found = luna16_files.find(str(folder))
  known = luna16_files.annotations(found)
  return {uid: luna16_files.read(found, known, uid) for uid in found.images}


def complaint(folder):
  with pytest.raises(errors.UserError) as caught:
    read_all(folder)
  assert '\n' not in str(caught.value)
  return str(caught.value)


class TestRead:
  def test_scans_come_back_as_they_were_written(self, folder, twins):
    scans = read_all(folder)
    assert set(scans) == set(twins)
    for uid, one in scans.items():
      twin = twins[uid]
      np.testing.assert_allclose(one.image, twin.image, atol=0.51 / 1800)
      assert one.image.dtype == np.float32
      assert one.spacing == twin.spacing
      np.testing.assert_allclose(one.origin, twin.origin)
      np.testing.assert_array_equal(one.lung, twin.lung)
      np.testing.assert_array_equal(one.masks, twin.masks)
      assert one.nodules['kind'].tolist() == twin.nodules['kind'].tolist()
      for mine, his in ((one.nodules, twin.nodules), (one.excluded, twin.excluded)):
        assert list(mine.columns) == list(his.columns)
        np.testing.assert_allclose(nodule_scans.centres(mine), nodule_scans.centres(his))
        np.testing.assert_allclose(mine['diameter_mm'], his['diameter_mm'])
      assert one.candidates['class'].tolist() == twin.candidates['class'].tolist()

  @pytest.mark.parametrize('seed', range(2))
  def test_oblique_scans_put_nodules_where_they_are(self, tmp_path, seed):
    rng = np.random.default_rng(seed)
    empty = chests.scan(
      np.full((14, 15, 16), 0.2),
      uid='turned',
      spacing=(2.0, 1.0, 1.5),
      origin=rng.uniform(-50, 50, 3),
      direction=chests.rotation(seed, oblique=seed == 1),
    )
    voxels = np.array([[4.0, 5, 6], [10, 9, 11]])
    world = nodule_scans.to_world(empty, voxels)
    masks = np.zeros(empty.image.shape, np.int16)
    image = empty.image.copy()
    for number, (z, y, x) in enumerate(voxels.astype(int)):
      masks[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = number + 1
      image[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 0.8
    rows = chests.spots('turned', *([*place, 4, 'part_solid'] for place in world))
    one = empty._replace(
      image=image,
      masks=masks,
      nodules=rows,
      candidates=nodule_scans.table('turned', world, **{'class': [1, 1]}),
    )
    chests.write(tmp_path, [one], subsets=[9])
    back = read_all(tmp_path)['turned']
    np.testing.assert_allclose(back.direction, one.direction, atol=1e-6)
    np.testing.assert_array_equal(back.masks, masks)
    patches = nodule_scans.patches(back, nodule_scans.centres(back.nodules), side=3, spacing=0.5)
    np.testing.assert_allclose(patches, 0.8, atol=1e-3)

  def test_without_the_optional_files(self, copied):
    shutil.rmtree(copied / 'nodule_masks')
    shutil.rmtree(copied / 'seg-lungs-LUNA16')
    (copied / 'candidates_V2.csv').unlink()
    found = luna16_files.find(str(copied), candidates=False)
    known = luna16_files.annotations(found)
    uid = next(iter(found.images))
    one = luna16_files.read(found, known, uid)
    assert one.masks is None and one.lung is None and one.candidates is None
    assert (one.nodules['kind'] == 'unknown').all() and len(one.nodules)
    assert len(found.paths(uid)) == 2
    with pytest.raises(errors.UserError, match=r'has no candidates_V2\.csv'):
      luna16_files.find(str(copied))

  def test_a_part_of_the_subsets_is_a_part_of_the_scans(self, copied):
    shutil.rmtree(copied / 'subset0')
    shutil.rmtree(copied / 'subset8')
    assert sorted(read_all(copied)) == ['phantom.00001', 'phantom.00003']

  def test_tables_may_lie_elsewhere(self, copied):
    for name in ('annotations.csv', 'candidates_V2.csv'):
      shutil.move(copied / name, copied / TABLES / name)
    assert len(read_all(copied)) == 4

  def test_a_label_without_annotation_and_one_without_label(self, copied, twins):
    one = twins['phantom.00000']
    labels = np.zeros(one.masks.shape, np.uint8)
    labels[0, 0, 0] = 5  # far from every annotation
    chests.save(copied / 'nodule_masks' / 'phantom.00000.nii.gz', labels, one)
    back = read_all(copied)['phantom.00000']
    assert not back.masks.any() and (back.nodules['kind'] == 'unknown').all()


class TestComplaints:
  uid = 'phantom.00001'

  def last_row(self, path):
    return len(path.read_text().splitlines())

  def test_mhd_without_its_raw(self, copied):
    (copied / 'subset3' / f'{self.uid}.raw').unlink()
    text = complaint(copied)
    assert text.startswith(f'{copied}/subset3/{self.uid}.mhd: its voxels are not there; copy')
    assert f'{self.uid}.raw' in text

  def test_a_raw_that_is_too_short(self, copied):
    path = copied / 'subset3' / f'{self.uid}.raw'
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    assert complaint(copied).startswith(f'{path.with_suffix(".mhd")}: cannot be read (')
    assert f'{path.name} has {size - 2} bytes of voxels, {size} are declared' in complaint(copied)

  def test_headers_that_are_none(self, copied):
    path = copied / 'subset3' / f'{self.uid}.mhd'
    path.write_text('NDims = 3\n')
    assert 'names no ElementDataFile' in complaint(copied)
    path.write_text(f'NDims = 3\nElementDataFile = {self.uid}.raw\n')
    assert f'{path}: cannot be read (' in complaint(copied)

  def test_a_nodule_outside_its_scan(self, copied):
    path = copied / 'annotations.csv'
    chests.append(path, self.uid, 5000, 0, 0, 6)
    text = complaint(copied)
    assert text.startswith(f'{path}, row {self.last_row(path)}: (5000, 0, 0) lies outside the scan')
    assert self.uid in text

  def test_a_candidate_outside_its_scan(self, copied):
    path = copied / 'candidates_V2.csv'
    chests.append(path, self.uid, 0, -5000, 0, 0)
    assert f'{path}, row {self.last_row(path)}: (0, -5000, 0) lies outside' in complaint(copied)

  @pytest.mark.parametrize(
    ('table', 'row', 'message'),
    [
      ('annotations.csv', ('1.2.3', 0, 0, 0, 6), "unknown series id '1.2.3'; not in"),
      ('annotations.csv', (uid, 0, 'nan', 0, 6), 'coordY is nan, not a finite number'),
      ('annotations.csv', (uid, 0, 0, 0, -6), 'diameter_mm must be above 0, not -6'),
      ('candidates_V2.csv', (uid, 0, 0, 'x', 1), 'coordZ is x, not a finite number'),
      ('candidates_V2.csv', (uid, 0, 0, 0, 2), 'class must be 0 or 1, not 2'),
      ('nodule_masks/nodules.csv', ('1.2.3', 1, 5, 6), "unknown series id '1.2.3'"),
      ('nodule_masks/nodules.csv', (uid, 1, '', 6), 'texture is nan, not a finite number'),
    ],
  )
  def test_rows(self, copied, table, row, message):
    path = copied / table
    chests.append(path, *row)
    assert complaint(copied).startswith(f'{path}, row {self.last_row(path)}: {message}')

  @pytest.mark.parametrize(
    ('table', 'column'), [('annotations.csv', 'diameter_mm'), ('candidates_V2.csv', 'class')]
  )
  def test_a_missing_column(self, copied, table, column):
    path = copied / table
    path.write_text(path.read_text().replace(column, 'other'))
    assert complaint(copied).startswith(f'{path}, row 1: has no column {column}; needs seriesuid')

  def test_a_missing_table(self, copied):
    (copied / TABLES / 'annotations_excluded.csv').unlink()
    assert complaint(copied).startswith(f'{copied}: has no annotations_excluded.csv; unpack')

  def test_a_scan_nobody_knows(self, copied):
    for suffix in ('mhd', 'raw'):
      path = copied / 'subset3' / f'{self.uid}.{suffix}'
      path.rename(path.with_stem('1.2.3'))
    assert complaint(copied).startswith(f'{copied}/subset3/1.2.3.mhd: its series id is not in')

  def test_a_scan_twice(self, copied):
    shutil.copytree(copied / 'subset3', copied / 'subset4')
    assert 'subset3 has that scan too; remove one' in complaint(copied)

  def test_masks_on_other_voxels_or_without_whole_numbers(self, copied, twins):
    path, twin = copied / 'nodule_masks' / f'{self.uid}.nii.gz', twins[self.uid]
    chests.save(path, twin.masks.astype(np.uint8)[:-1], twin)
    assert complaint(copied).startswith(f'{path}: lies on other voxels than')
    chests.save(path, twin.masks.astype(np.uint8), twin._replace(origin=twin.origin + 1))
    assert complaint(copied).startswith(f'{path}: lies on other voxels than')
    chests.save(path, twin.masks.astype(np.float32) / 2, twin)
    assert complaint(copied).startswith(f'{path}: must have the whole numbers 0')

  def test_voxels_that_are_not_numbers(self, copied, twins):
    twin = twins[self.uid]
    image = twin.image.copy()
    image[0, 0, 0] = np.nan
    chests.save(copied / 'subset3' / f'{self.uid}.mhd', image, twin)
    assert complaint(copied).endswith(f'{self.uid}.mhd: has NaN or infinite values')


@pytest.mark.parametrize(
  ('texture', 'calcification', 'kind'),
  [
    (1, 6, 'ground_glass'),
    (2, 3, 'ground_glass'),
    (2.5, 6, 'part_solid'),
    (3.5, 2, 'part_solid'),
    (4, 6, 'solid'),
    (5, 5.5, 'calcified'),
  ],
)
def test_kinds_by_the_scales_of_lidc(texture, calcification, kind):
  assert luna16_files.kind_of(texture, calcification) == kind


@pytest.fixture(scope='module')
def tables(shared_data):
  path = shared_data / 'luna16' / 'evaluationScript' / 'annotations'
  if not path.is_dir():
    pytest.skip(f'no {path}')
  return path


class TestRealTables:
  """The challenge's own files, for which no scans are there."""

  def test_counts(self, tables):
    scans = luna16.read_scans(tables / 'seriesuids.csv')
    rows = luna16.read_rows(tables / 'annotations.csv', 'diameter_mm', scans)
    assert len(scans) == 888
    assert len(rows.scan) == 1186 and len(set(rows.scan)) == 601
    large = rows.value >= 6
    assert large.sum() == 684 and len(set(rows.scan[large])) == 436
    excluded = luna16.read_rows(tables / 'annotations_excluded.csv', 'diameter_mm', scans)
    assert len(excluded.scan) == 35_192 and (excluded.value == -1).sum() == 30_513

  def test_a_folder_with_the_tables_of_all_scans(self, tables, tmp_path):
    scans = luna16.read_scans(tables / 'seriesuids.csv')
    shutil.copytree(tables, tmp_path / TABLES)
    (tmp_path / 'subset0').mkdir()
    (tmp_path / 'subset0' / f'{scans[0]}.mhd').touch()
    found = luna16_files.find(str(tmp_path), candidates=False)
    known = luna16_files.annotations(found)
    some = [luna16_files.tables(known, uid) for uid in scans[:50]]
    findings = nodule_scans.findings(some, min_diameter=6)
    whole = luna16.read_annotations(tables, min_diameter=6).findings
    mine = whole.scan < 50
    assert sorted(findings.diameter) == sorted(whole.diameter[mine])
    assert findings.nodule.sum() == whole.nodule[mine].sum() > 30
    assert whole.nodule.sum() == 684 and (~whole.nodule).sum() == 35_192 + 1186 - 684
    assert some[0].nodules['diameter_mm'].tolist() == [5.651470635, 4.224708481]


def test_real_patches_go_through_as_scans_do(shared_data):
  folder = shared_data / 'luna16' / 'patches'
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  fields = {'side': 24, 'spacing': 1.25, 'negatives': 1, 'backgrounds': 0}
  fields = {**nodule_patches.FIELDS, **fields}
  middle = 31.5 * 0.625
  centre = {}
  for name in ('positive', 'negative'):
    patch = np.load(folder / f'{name}_patch.npy', allow_pickle=False)
    assert patch.shape == (64, 64, 64) and patch.min() >= 0 and patch.max() <= 1
    rows = ((middle, middle, middle, 12, 'unknown'),) if name == 'positive' else ()
    one = chests.scan(patch, spacing=(0.625,) * 3, uid=name, nodules=chests.spots(name, *rows))
    whole = nodule_scans.patches(one, np.full((1, 3), middle), side=64, spacing=0.625)
    np.testing.assert_allclose(whole[0, ..., 0], patch, atol=1e-5)
    found = nodule_patches.cut(one, fields)
    assert [row['target'] for row in found] == [1] * len(rows) + [0]
    assert all(0 <= row['image'].min() <= row['image'].max() <= 1 for row in found)
    small = nodule_scans.patches(one, np.full((1, 3), middle), side=24, spacing=1.25)
    centre[name] = small[0, 10:14, 10:14, 10:14].mean()
  assert centre['positive'] > 0.5 > 0.3 > centre['negative']
