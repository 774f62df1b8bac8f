import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from robustmed import data, errors
from robustmed.data.spine import spider
from support import spines

FLIPS = [(False, False, False), (True, False, True), (False, True, False), (True, True, True)]


def save(folder, patient, *, spacing=(4.0, 1.0, 1.0), direction=(0, 1, 2), flips=FLIPS[0], **draw):
  image, mask, _ = spines.draw(patient, **draw)
  labels = np.where(mask > 0, 200 + mask, 0).astype(np.int16)
  labels[:, -6:] = 100  # the canal
  labels[:4, :20] = 1  # a vertebra
  for kind, plane in (('images', image.astype(np.int16)), ('masks', labels)):
    path = folder / kind / f'{patient}_t2.mha'
    spines.save_volume(path, plane, spacing=spacing, direction=direction, flips=flips)
  return spider.Series(str(patient), *(folder / kind / path.name for kind in ('images', 'masks')))


def load(folder, tmp_path, **fields):
  config = {'name': 'spider', 'dir': str(folder), 'side': 32, 'cache_dir': str(tmp_path / 'cache')}
  source = data.load({**config, **fields})
  assert data.sizes({**config, **fields}) == source.info['sizes']
  return source


@pytest.mark.parametrize('flips', FLIPS)
@pytest.mark.parametrize('direction', list(itertools.permutations(range(3))))
def test_any_orientation_gives_the_same_slice(tmp_path, direction, flips):
  image, mask, _ = spines.draw(1)
  series = save(tmp_path, 1, direction=direction, flips=flips)
  one = spider.mid_slice(series)
  np.testing.assert_array_equal(one.image, image)
  np.testing.assert_array_equal(one.mask, np.where(mask > 0, 200 + mask, 0) * (one.mask > 0))
  assert set(np.unique(one.mask)) == {0, 201, 202}
  assert (one.mask > 0).sum() > 0.9 * (mask > 0).sum()
  np.testing.assert_array_equal(spider.mid_slice(series, masks_only=True).mask, one.mask)


def test_pixels_become_square(tmp_path):
  image = np.add.outer(np.arange(40.0), 3 * np.arange(30.0)).astype(np.int16)
  mask = np.zeros((40, 30), np.int16)
  mask[10:20, 5:25] = 203
  for kind, plane in (('images', image), ('masks', mask)):
    path = tmp_path / kind / '1_t2.mha'
    spines.save_volume(path, plane, spacing=(4, 1.0, 2.0), direction=(1, 2, 0))
  one = spider.mid_slice(
    spider.Series('1', *(tmp_path / k / '1_t2.mha' for k in ('images', 'masks')))
  )
  assert one.image.shape == one.mask.shape == (80, 30)
  assert one.mask.sum() == 2 * mask.sum()
  rows = np.flatnonzero(one.mask.any(axis=1))
  assert (rows[0], rows[-1]) == (20, 39)
  # linear between rows: half a step per new row, about the old rows' centres
  np.testing.assert_allclose(one.image[1:-1, 0], (np.arange(1, 79) + 0.5) / 2 - 0.5)


def test_the_slice_is_the_middle_of_the_disks(tmp_path):
  mask = np.zeros((6, 20, 24), np.int16)  # feet to head, front to back, right to left
  mask[2:4, 5:15, 3:12] = 202
  mask[:, :, 20:] = 300
  image = np.broadcast_to(np.arange(24, dtype=np.int16), mask.shape)
  for kind, array in (('images', image), ('masks', mask)):
    (tmp_path / kind).mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(array.copy()), str(tmp_path / kind / '1_t2.mha'))
  one = spider.mid_slice(
    spider.Series('1', *(tmp_path / k / '1_t2.mha' for k in ('images', 'masks')))
  )
  assert (one.image == 7).all() and (one.mask == 202).sum() == 20


def test_source_splits_by_patient_and_keeps_one_sequence(tmp_path):
  for patient in (1, 2, 3):
    save(tmp_path / 'raw', patient, spacing=(4, 1.0, 1.0), direction=(2, 0, 1))
  for kind in ('images', 'masks'):
    content = (tmp_path / 'raw' / kind / '1_t2.mha').read_bytes()
    (tmp_path / 'raw' / kind / '1_t1.mha').write_bytes(content)
  source = load(tmp_path / 'raw', tmp_path)
  assert source.info['sizes'] == {'train': 4, 'test': 2}
  assert [row['name'] for row in source.train] == [
    f'{p}_t2_{d}' for p in (1, 2) for d in (201, 202)
  ]
  assert source.train.groups == (0, 0, 1, 1) and source.test.groups == (2, 2)
  both = load(tmp_path / 'raw', tmp_path, sequence='')
  assert both.info['sizes'] == {'train': 6, 'test': 2} and both.train.groups == (0,) * 4 + (1,) * 2


def test_the_same_disks_as_from_png(tmp_path):
  for patient in (1, 2):
    save(tmp_path / 'mha', patient, direction=(1, 2, 0), flips=(True, False, True), scale=40.0)
    spines.save_slice(tmp_path / 'png', f'{patient}_0', *spines.draw(patient, scale=40.0)[:2])
  one = load(tmp_path / 'mha', tmp_path)
  config = {'name': 'disk_masks', 'dir': str(tmp_path / 'png'), 'side': 32}
  two = data.load({**config, 'cache_dir': str(tmp_path / 'cache')})
  np.testing.assert_array_equal(one.train.stack('contour'), two.train.stack('contour'))
  np.testing.assert_allclose(one.train.stack('image'), two.train.stack('image'), atol=1e-6)


def test_bad_folders(tmp_path):
  assert data.sizes({'name': 'spider'}) == {'train': 870, 'test': 220}
  find = lambda folder, sequence='t2': spider.find({'dir': str(folder), 'sequence': sequence})
  with pytest.raises(errors.UserError, match=r'dir is empty.*unpack images\.zip'):
    find('')
  with pytest.raises(errors.UserError, match='has no folders images and masks'):
    find(tmp_path)
  save(tmp_path, 1)
  with pytest.raises(errors.UserError, match='at least two patients are needed'):
    find(tmp_path)
  with pytest.raises(errors.UserError, match=r'no images/\*t1\.mha in'):
    find(tmp_path, 't1')
  save(tmp_path, 2)
  (tmp_path / 'masks' / '2_t2.mha').unlink()
  with pytest.raises(errors.UserError, match=r'2_t2\.mha has no file of that name in masks/'):
    find(tmp_path)


def test_bad_volumes(tmp_path):
  series = save(tmp_path, 1)
  save(tmp_path / 'other', 1, spacing=(4.0, 1.0, 1.5))
  with pytest.raises(errors.UserError, match='mm for an image of'):
    spider.mid_slice(series._replace(mask=tmp_path / 'other' / 'masks' / '1_t2.mha'))
  series.mask.write_bytes(series.mask.read_bytes()[:300])
  with pytest.raises(errors.UserError, match=r'masks/1_t2\.mha: cannot be read') as caught:
    spider.mid_slice(series)
  assert '\n' not in str(caught.value)
  flat = sitk.GetImageFromArray(np.zeros((4, 4), np.int16))
  sitk.WriteImage(flat, str(series.mask))
  with pytest.raises(errors.UserError, match='one volume of three axes'):
    spider.mid_slice(series)


def test_masks_without_disks_are_refused(tmp_path):
  for patient in (1, 2):
    series = save(tmp_path, patient)
    spines.save_volume(
      series.mask, np.full(spines.SHAPE, 100, np.int16), spacing=(4, 1, 1), direction=(0, 1, 2)
    )
  with pytest.raises(errors.UserError, match='no mask of the train patients has a disk'):
    load(tmp_path, tmp_path)
