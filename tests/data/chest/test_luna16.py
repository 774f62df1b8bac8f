import os
import pathlib
import shutil

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.chest import luna16, nodule_patches
from support import chests

SMALL = {'side': 8, 'spacing': 3.0, 'negatives': 2, 'backgrounds': 1}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return chests.fill(tmp_path_factory.mktemp('luna'))


@pytest.fixture(scope='module')
def loaded(folder, tmp_path_factory):
  return data.load(config(folder, cache_dir=str(tmp_path_factory.mktemp('cache'))))


@pytest.fixture(scope='module')
def twin(tmp_path_factory):
  return data.load({**chests.TWIN, 'cache_dir': str(tmp_path_factory.mktemp('cache'))})


def config(folder, **fields):
  return {'name': 'luna16', 'dir': str(folder), **SMALL, **fields}


def uids(folder, **fields):
  return luna16.scans(data.fields_of(config(folder, **fields))).splits


class TestSplits:
  def test_subsets_are_folds(self, folder):
    assert uids(folder) == {
      'train': ('phantom.00000', 'phantom.00001'),
      'validation': ('phantom.00002',),
      'test': ('phantom.00003',),
    }
    other = {'train_subsets': (9, 8), 'validation_subsets': (), 'test_subsets': (0, 3)}
    assert uids(folder, **other) == {
      'train': ('phantom.00002', 'phantom.00003'),
      'test': ('phantom.00000', 'phantom.00001'),
    }

  def test_the_ten_folds_of_the_challenge_can_be_chosen(self, folder):
    assert uids(folder, fold=9) == uids(folder)  # the default
    assert uids(folder, fold=3) == {
      'train': ('phantom.00000', 'phantom.00002', 'phantom.00003'),
      'test': ('phantom.00001',),
    }
    assert uids(folder, fold=0) == {
      'train': ('phantom.00001', 'phantom.00002'),
      'validation': ('phantom.00003',),
      'test': ('phantom.00000',),
    }
    tested = [luna16.subsets({**luna16.DEFAULTS, 'fold': fold})['test'] for fold in range(10)]
    assert sorted(tested) == [(fold,) for fold in range(10)]
    with pytest.raises(errors.UserError, match='fold must be 0 to 9, or -1'):
      data.load(config(folder, fold=10))

  def test_excluded_scans(self, folder):
    assert uids(folder, exclude=('phantom.00001', 'phantom.00002')) == {
      'train': ('phantom.00000',),
      'test': ('phantom.00003',),
    }
    with pytest.raises(errors.UserError, match=r"scan to exclude 'phantom\.0003'; did you mean"):
      uids(folder, exclude=('phantom.0003',))

  def test_no_test_scan(self, folder):
    with pytest.raises(errors.UserError, match=r'no scan in the test subsets \(5, 6\); unpack'):
      uids(folder, train_subsets=(0,), test_subsets=(5, 6))

  @pytest.mark.parametrize(
    'fields', [{'test_subsets': (8,)}, {'test_subsets': (9, 9)}, {'test_subsets': (10,)}]
  )
  def test_a_subset_is_in_one_split(self, folder, fields):
    with pytest.raises(errors.UserError, match='subsets 0 to 9 can be in one split only'):
      data.load(config(folder, **fields))


class TestSizes:
  def test_nominal_without_a_folder(self):
    found = data.sizes({'name': 'luna16'})
    assert sum(found.values()) == pytest.approx(888 * 20 + 1186, abs=3)
    assert found['train'] == pytest.approx(8 * found['test'], abs=8)
    assert set(data.sizes({'name': 'luna16', 'validation_subsets': ()})) == {'train', 'test'}

  def test_of_a_folder_without_reading_a_scan(self, folder, tmp_path):
    copied = pathlib.Path(shutil.copytree(folder, tmp_path / 'luna'))
    for path in copied.glob('subset*/*.raw'):
      path.write_bytes(b'')
    assert data.sizes(config(copied)) == data.sizes(config(folder))


class TestLoad:
  def test_the_phantom_survives_the_way_through_files(self, loaded, twin):
    assert loaded.info['sizes'] == twin.info['sizes']
    assert loaded.info['roles'] == twin.info['roles']
    for name in nodule_patches.SPLITS:
      for real, drawn in zip(getattr(loaded, name), getattr(twin, name)):
        np.testing.assert_allclose(real['image'], drawn['image'], atol=1e-3)
        np.testing.assert_array_equal(real['soft'], drawn['soft'])
        np.testing.assert_allclose(real['centre'], drawn['centre'], atol=1e-4)
        assert real['diameter'] == pytest.approx(drawn['diameter'])
        for key in ('kind', 'role', 'target', 'has_mask', 'name', 'group', 'index'):
          assert real[key] == drawn[key]

  def test_nodules_without_masks_are_counted(self, folder, tmp_path):
    copied = pathlib.Path(shutil.copytree(folder, tmp_path / 'luna'))
    shutil.rmtree(copied / 'nodule_masks')
    loaded = data.load(config(copied, cache_dir=str(tmp_path / 'cache')))
    nodules = sum(roles.count(1) for roles in loaded.info['roles'].values())
    assert loaded.info['counts']['nodules_without_mask'] == nodules > 0
    part = nodule_patches.of_role(loaded, 'test', 'nodule')
    assert all(not example['has_mask'] and example['kind'] == 5 for example in part)

  def test_scans_without_lung_masks(self, folder, tmp_path):
    copied = pathlib.Path(shutil.copytree(folder, tmp_path / 'luna'))
    shutil.rmtree(copied / 'seg-lungs-LUNA16')
    with pytest.raises(errors.UserError, match=r'has no lung mask.*; add the mask or exclude'):
      data.load(config(copied, cache_dir=str(tmp_path / 'cache')))
    enough = config(copied, backgrounds=0, cache_dir=str(tmp_path / 'cache'))
    assert len(data.load(enough).train) > 4


class TestFingerprint:
  def of(self, folder, **fields):
    return luna16.fingerprint(data.fields_of(config(folder, **fields)))

  def test_a_changed_file_is_seen(self, folder, tmp_path):
    copied = pathlib.Path(shutil.copytree(folder, tmp_path / 'luna'))
    before = self.of(copied)
    assert before == self.of(copied, workers=3)
    for path in (
      'candidates_V2.csv',
      'nodule_masks/nodules.csv',
      'nodule_masks/phantom.00002.nii.gz',
      'subset3/phantom.00001.raw',
      'seg-lungs-LUNA16/phantom.00003.mhd',
    ):
      os.utime(copied / path, ns=(1, 1))
      after = self.of(copied)
      assert after != before, path
      before = after

  @pytest.mark.parametrize(
    'fields',
    [{'side': 12}, {'draw_seed': 1}, {'negatives_from': 'lung'}, {'exclude': ('phantom.00001',)}],
  )
  def test_fields_that_change_the_patches(self, folder, fields):
    assert self.of(folder) != self.of(folder, **fields)
