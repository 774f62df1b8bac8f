import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.labelled import formats, study, units, writing
from support import folders

ORGAN = {'background': 0, 'organ': 1, 'lesion': 2}


def fields_of(folder, tmp_path, **more):
  return data.fields_of(
    {'name': 'labelled', 'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), **more}
  )


def load(folder, tmp_path, **more):
  return data.load(fields_of(folder, tmp_path, **more))


def refused(folder, tmp_path, match, **more):
  with pytest.raises(errors.UserError, match=match) as caught:
    load(folder, tmp_path, **more)
  assert '\n' not in str(caught.value)
  cache = tmp_path / 'cache' / 'labelled'
  assert not cache.exists() or list(cache.iterdir()) == []


# Layouts and formats --------------------------------------------------------------------------


def test_nnunet_raw_is_recognised_and_said(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', channels=2, labels=ORGAN)
  source = load(folder, tmp_path)
  said = source.info['lines']
  assert said[0] == ('nnU-Net raw, 6 cases, 3D, 2 channels, 3 classes: background, organ, lesion')
  assert 'split by patient: 5 train, 1 test (data.test_share=0.2, data.seed=0)' in said
  assert 'every case is a patient of its own (data.patients)' in said
  example = source.train[0]
  case = source.info['cases'][int(example['case'])]
  image, labels = folders.blob(int(case['name'][-2:]), (6, 8, 10))
  np.testing.assert_array_equal(example['image'], np.stack([image, image + 1], -1))
  np.testing.assert_array_equal(example['labels'], labels)
  assert case['dtype'] == 'int16' and case['spacing'] == [4, 3, 2]
  np.testing.assert_array_equal(case['affine'], folders.AFFINE)
  assert [path.rpartition('/')[2] for path in case['images']] == [
    f'{case["name"]}_{n:04d}.nii.gz' for n in range(2)
  ]


def test_the_test_part_of_nnunet_is_the_test_split(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', cases=3, labels=ORGAN, parts=('Tr', 'Ts'))
  source = load(folder, tmp_path)
  assert source.info['sizes'] == {'train': 3, 'test': 3}
  assert {example['name'][:2] for example in source.test} == {'ts'}
  assert 'split by the folders: 3 train, 3 test cases' in source.info['lines']


def test_a_test_set_needs_no_training_part(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', cases=1, labels=ORGAN)
  source = load(folder, tmp_path, split='all')
  assert source.info['sizes'] == {'train': 0, 'test': 1}
  assert data.sizes(fields_of(folder, tmp_path, split='all')) == {'train': 0, 'test': 1}
  refused(folder, tmp_path / 'b', r'1 patient\(s\) are too few to split.*split=all')


def test_the_decathlon_of_any_task(tmp_path):
  folder = tmp_path / 'Task77_Spleen'
  listed = []
  for number in range(5):
    image, labels = folders.blob(number, (6, 8, 10, 2))
    name = f'spleen_{number}.nii.gz'
    folders.save(folder / 'imagesTr' / name, image)
    folders.save(folder / 'labelsTr' / name, labels.max(-1))
    listed.append({'image': f'./imagesTr/{name}', 'label': f'./labelsTr/{name}'})
  content = {
    'modality': {'0': 'T2', '1': 'ADC'},
    'labels': {'0': 'background', '1': 'spleen', '2': 'cyst'},
    'training': listed[:4],
  }
  (folder / 'dataset.json').write_text(json.dumps(content))
  source = load(folder, tmp_path)
  assert source.info['lines'][0] == (
    'Medical Segmentation Decathlon, 4 cases, 3D, 2 channels, 3 classes: background, spleen, cyst'
  )
  content['training'].append({'image': '../x.nii.gz', 'label': './labelsTr/x.nii.gz'})
  (folder / 'dataset.json').write_text(json.dumps(content))
  refused(folder, tmp_path / 'b', r'dataset.json: \.\./x.nii.gz lies outside the folder')


@pytest.mark.parametrize(
  ('ending', 'label_ending', 'shape'),
  [
    ('.nii.gz', '.nii.gz', (5, 7, 9)),
    ('.mha', '.nii.gz', (5, 7, 9)),
    ('.mhd', '.mha', (5, 7, 9)),
    ('.nrrd', '.nrrd', (5, 7, 9)),
    ('.npy', '.npz', (5, 7, 9)),
    ('.png', '.png', (16, 20)),
    ('.tif', '.png', (16, 20)),
    ('.npy', '.png', (16, 20)),
    ('.npz', '.npy', (16, 20)),
    ('.mha', '.tif', (16, 20)),
  ],
)
def test_every_format_gives_the_same_arrays(ending, label_ending, shape, tmp_path):
  kind = np.uint8 if ending in ('.png', '.tif') else np.int16
  folder = folders.pairs(
    tmp_path / 'raw', ending, shape=shape, label_ending=label_ending, dtype=kind
  )
  source = load(folder, tmp_path, split='all')
  assert source.info['lines'][0] == (
    f'images and masks, 5 cases, {len(shape)}D, 1 channel, 3 classes: background, label 1, label 2'
  )
  for number, example in enumerate(source.test):
    image, labels = folders.blob(number, shape, dtype=kind)
    np.testing.assert_array_equal(example['image'][..., 0], image)
    np.testing.assert_array_equal(example['labels'], labels)
  stored = source.info['cases'][0]
  assert stored['dtype'] == np.dtype(kind).name
  spaced = ending in ('.nii.gz', '.mha', '.mhd', '.nrrd')
  assert (stored['spacing'] is not None) == spaced
  if spaced:
    assert stored['spacing'] == [4, 3, 2][3 - len(shape) :]


def test_numbers_are_in_the_order_of_the_machine(tmp_path):
  array = np.arange(24, dtype='>i2').reshape(2, 3, 4)
  header = nib.Nifti1Header(endianness='>')
  header.set_data_dtype(np.int16)
  nib.save(nib.Nifti1Image(array.T, np.eye(4), header), tmp_path / 'a.nii')
  np.save(tmp_path / 'a.npy', array)
  for name in ('a.nii', 'a.npy'):
    found = formats.read(tmp_path / name)
    assert found.array.dtype.str == np.dtype('int16').str and found.dtype == 'int16'
    np.testing.assert_array_equal(found.array, array)


def test_channels_of_arrays_are_told_by_the_labels(tmp_path):
  for number in range(3):
    image, labels = folders.blob(number, (5, 6, 4))
    folders.save(tmp_path / 'raw' / 'images' / f'v{number}.npy', image)
    folders.save(tmp_path / 'raw' / 'masks' / f'v{number}.npy', labels)
    folders.save(tmp_path / 'flat' / 'images' / f'v{number}.npy', image)
    folders.save(tmp_path / 'flat' / 'masks' / f'v{number}.npy', labels[..., 0])
  assert load(tmp_path / 'raw', tmp_path, split='all').test[0]['image'].shape == (5, 6, 4, 1)
  assert load(tmp_path / 'flat', tmp_path, split='all').test[0]['image'].shape == (5, 6, 4)


def test_regions_and_the_ignored_label(tmp_path):
  labels = {'background': 0, 'whole': [1, 2], 'core': [2], 'ignore': 3}
  folder = folders.nnunet(tmp_path / 'raw', labels=labels)
  path = folder / 'labelsTr' / 'tr_00.nii.gz'
  numbers = np.asarray(nib.load(path).dataobj)
  numbers[0] = 3
  folders.save(path, numbers.transpose(2, 1, 0))
  source = load(folder, tmp_path, split='all')
  assert source.info['classes'] == ['background', 'label 1', 'core']
  assert source.info['regions'] == {'whole': [1, 2], 'core': [2]}
  assert 'regions: whole (1+2), core (2)' in source.info['lines']
  example = source.test[0]
  np.testing.assert_array_equal(example['counted'][..., 0], False)
  assert example['counted'][..., 1:].all() and example['labels'].max() <= 2


# Masks ----------------------------------------------------------------------------------------


def test_smoothed_masks_are_thresholded_and_colours_are_classes(tmp_path):
  for number in range(4):
    image, labels = folders.blob(number, (40, 40), dtype=np.uint8)
    folders.save(tmp_path / 'soft' / 'images' / f's{number}.png', image)
    mask = np.where(labels[..., None] > 0, np.uint8([250, 0, 250]), 0).astype(np.uint8)
    mask[0] = np.arange(40, dtype=np.uint8)[:, None]
    folders.save(tmp_path / 'soft' / 'masks' / f's{number}.png', mask.repeat(1, axis=0))
    folders.save(tmp_path / 'lossy' / 'images' / f's{number}.png', image)
    folders.save(
      tmp_path / 'lossy' / 'masks' / f's{number}.jpg', np.uint8(255) * (labels > 0).astype(np.uint8)
    )
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    folders.save(tmp_path / 'colour' / 'images' / f's{number}.png', image)
    folders.save(tmp_path / 'colour' / 'masks' / f's{number}.png', table[labels])
  lossy = load(tmp_path / 'lossy', tmp_path, split='all')
  assert lossy.info['classes'] == ['background', 'foreground']
  assert any('lossy pictures' in line for line in lossy.info['lines'])
  for number, example in enumerate(lossy.test):
    labels = folders.blob(number, (40, 40), dtype=np.uint8)[1]
    assert np.mean(example['labels'] == (labels > 0)) > 0.99
  colour = load(tmp_path / 'colour', tmp_path, split='all')
  assert colour.info['classes'] == ['background', '#0000ff', '#ff0000']
  np.testing.assert_array_equal(
    colour.test[0]['labels'], np.array([0, 2, 1])[folders.blob(0, (40, 40), dtype=np.uint8)[1]]
  )


def test_a_photo_is_no_mask(tmp_path):
  folder = folders.pairs(tmp_path / 'raw', '.png', shape=(40, 40), dtype=np.uint8)
  noise = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
  folders.save(folder / 'labels' / 'p0_00.png', noise)
  refused(folder, tmp_path, r'p0_00.png: has .* values, .*its classes cannot be told.*PNG')


# Patients and splits --------------------------------------------------------------------------


def slices(folder, patients=4, each=3):
  for patient in range(patients):
    for piece in range(each):
      image, labels = folders.blob(10 * patient + piece, (16, 16), dtype=np.uint8)
      for kind, array in (('images', image), ('masks', labels)):
        folders.save(folder / kind / f'pat{patient}_s{piece:02d}.png', array)
  return folder


def test_slices_of_one_volume_stay_together(tmp_path):
  folder = slices(tmp_path / 'raw')
  source = load(folder, tmp_path)
  assert source.info['groups'] == {'train': 3, 'test': 1}
  assert any('4 patients by the names' in line for line in source.info['lines'])
  by_rule = load(folder, tmp_path, patients=r'_s(\d+)')
  assert by_rule.info['groups'] == {'train': 2, 'test': 1}
  refused(folder, tmp_path / 'b', r"'zz' does not match the case 'pat0_s00'", patients='zz')


def test_patients_and_splits_by_tables(tmp_path):
  folder = slices(tmp_path / 'raw')
  names = [f'pat{p}_s{s:02d}' for p in range(4) for s in range(3)]
  (folder / 'patients.csv').write_text(''.join(f'{n},{n[:4]}\n' for n in ['case', *names]))
  part = {'pat0': 'test', 'pat1': 'val'}
  (folder / 'splits.csv').write_text(
    'case,split\n' + ''.join(f'{n}.png,{part.get(n[:4], "train")}\n' for n in names)
  )
  source = load(folder, tmp_path, patients='patients.csv')
  assert source.info['sizes'] == {'train': 6, 'test': 3, 'validation': 3}
  assert {example['name'][:4] for example in source.test} == {'pat0'}
  text = (folder / 'splits.csv').read_text().replace('pat0_s01.png,test', 'pat0_s01.png,train')
  (folder / 'splits.csv').write_text(text)
  refused(folder, tmp_path / 'b', "patient 'pat0' is in two splits", patients='patients.csv')
  (folder / 'splits.csv').write_text(text + 'other,train\n')
  refused(folder, tmp_path / 'b', "lists 'other', which is not in the folder")
  refused(folder, tmp_path / 'c', 'no file .*none.csv', split_file='none.csv')


# Slices, units, geometry ----------------------------------------------------------------------


def test_volumes_as_slices(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(9, 12, 10))
  source = load(folder, tmp_path, axes=2)
  assert source.info['sizes'] == {'train': 45, 'test': 9} and source.info['axis'] == 0
  first = source.test[0]
  name = source.info['cases'][int(first['case'])]['name']
  image, labels = folders.blob(int(name[-2:]), (9, 12, 10))
  for example in source.test:
    np.testing.assert_array_equal(example['image'][..., 0], image[int(example['slice'])])
    np.testing.assert_array_equal(example['labels'], labels[int(example['slice'])])
  few = load(folder, tmp_path, axes=2, slices_per_case=2)
  assert few.info['sizes'] == {'train': 45, 'test': 2} and len(few.volumes) == 9
  assert all(example['labels'].any() for example in few.test)
  across = load(folder, tmp_path, axes=2, slice_axis=2)
  assert across.test[0]['image'].shape == (9, 12, 1)
  assert data.sizes(fields_of(folder, tmp_path, axes=2, slice_axis=2))['test'] == 10


def test_units_turn_back_into_stored_values(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN)
  stored = load(folder, tmp_path)
  for name in ('zscore', 'ct', 'case', 'range'):
    source = load(folder, tmp_path, intensity=name)
    for ours, theirs in zip(source.train, stored.train, strict=True):
      back = ours['image'] * ours['units'][1] + ours['units'][0]
      np.testing.assert_allclose(back, theirs['image'], atol=1e-3)
  scores = load(folder, tmp_path, intensity='zscore').train[0]['image']
  assert abs(scores.mean()) < 1e-4 and abs(scores.std() - 1) < 1e-3


def test_automatic_units(tmp_path):
  name = lambda folder: study.intensity_of(
    study.make(fields_of(folder, tmp_path, intensity='auto'))
  )
  assert name(folders.nnunet(tmp_path / 'mr', labels=ORGAN)) == 'case'
  more = {'channel_names': {'0': 'CT'}}
  assert name(folders.nnunet(tmp_path / 'ct', labels=ORGAN, more=more)) == 'ct'
  assert name(folders.pairs(tmp_path / 'photo', '.png', dtype=np.uint8)) == 'range'
  found = study.make(fields_of(tmp_path / 'ct', tmp_path, intensity='ct', ct_range=(-50.0, 150)))
  made = units.of(found)
  assert made.scale[0, 0] == 200 and made.clip == (0, 1)
  assert made.detail == '1 is 200 HU; data.ct_range=(-50,150)'
  made = units.of(study.make(fields_of(tmp_path / 'photo', tmp_path, intensity='range')))
  assert made.bounds == (0, 1) and made.scale[0, 0] == 255


def test_resampling_and_the_window(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(6, 8, 10))
  source = load(folder, tmp_path, spacing=(4.0, 6.0, 4.0), multiple=(4, 4, 4))
  assert source.train[0]['image'].shape == (6, 4, 5, 1)
  assert source.info['window'] == [8, 4, 8]
  cropped = source.crop(source.test[0])
  assert cropped['image'].shape == (8, 4, 8, 1) and (cropped['labels'][0] == -1).all()
  np.testing.assert_array_equal(cropped['image'][1:7, :, 2:7], source.test[0]['image'])


def test_a_result_is_written_in_patient_space(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels={'background': 0, 'organ': 1, 'lesion': 2})
  source = load(folder, tmp_path, split='all')
  example = source.test[3]
  case = source.info['cases'][int(example['case'])]
  writing.labels(tmp_path / 'out.nii.gz', example['labels'], case, values=source.info['values'])
  writing.image(tmp_path / 'image.nii.gz', example['image'], case)
  for path, original in (('out', case['label']), ('image', case['images'][0])):
    ours, theirs = nib.load(tmp_path / f'{path}.nii.gz'), nib.load(original)
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_rounding_knows_the_header(tmp_path):
  case = {'dtype': 'int16', 'rescale': [0.5, -1000.0]}
  found = writing.rounded(np.float32([-1000.2, 0.3, 1e9]), case)
  np.testing.assert_array_equal(found, np.float32([-1000, 0.5, 0.5 * 32767 - 1000]))
  values = np.float32([1.25])
  assert writing.rounded(values, {'dtype': 'float32', 'rescale': [1, 0]}) is values


# Mistakes -------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path):
  make = lambda name: folders.nnunet(tmp_path / name, labels=ORGAN)
  missing = make('missing')
  (missing / 'labelsTr' / 'tr_02.nii.gz').unlink()
  refused(missing, tmp_path / '1', r'tr_02_0000.nii.gz: has no file of that name in .*labelsTr')
  sizes = make('sizes')
  folders.save(sizes / 'labelsTr' / 'tr_01.nii.gz', np.zeros((6, 8, 9), np.uint8))
  refused(sizes, tmp_path / '2', r'labels of \[6, 8, 9\] for an image of \[6, 8, 10\]')
  value = make('value')
  folders.save(value / 'labelsTr' / 'tr_01.nii.gz', np.full((6, 8, 10), 7, np.uint8))
  refused(value, tmp_path / '3', r'tr_01.nii.gz: label 7 is not in dataset.json, which has 0 back')
  double = make('double')
  shutil.copy(double / 'labelsTr' / 'tr_01.nii.gz', double / 'labelsTr' / 'tr_01.nii')
  refused(double, tmp_path / '4', r'has the same name as tr_01.nii')
  link = make('link')
  (link / 'labelsTr' / 'tr_01.nii.gz').unlink()
  (tmp_path / 'outside.nii.gz').write_bytes(b'x')
  (link / 'labelsTr' / 'tr_01.nii.gz').symlink_to(tmp_path / 'outside.nii.gz')
  refused(link, tmp_path / '5', r'tr_01.nii.gz: is reached by a link that leaves the folder')
  infinite = make('infinite')
  folders.save(infinite / 'imagesTr' / 'tr_01_0000.nii.gz', np.full((6, 8, 10), np.nan, np.float32))
  refused(infinite, tmp_path / '6', r'tr_01_0000.nii.gz: has NaN')
  large = make('large')
  folders.save(large / 'imagesTr' / 'tr_01_0000.nii.gz', np.full((6, 8, 10), 1e39))
  refused(large, tmp_path / '9', r'tr_01_0000.nii.gz: has values beyond 3.4e\+38')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'readme.txt').write_text('nothing')
  refused(tmp_path / 'other', tmp_path / '7', 'is of no known layout; put one of these there')
  gap = make('gap')
  (gap / 'imagesTr' / 'tr_01_0000.nii.gz').rename(gap / 'imagesTr' / 'tr_01_0001.nii.gz')
  refused(gap, tmp_path / '8', 'not numbered 0000, 0001')


def test_one_image_in_two_splits_is_refused(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', cases=3, labels=ORGAN, parts=('Tr', 'Ts'))
  shutil.copy(folder / 'imagesTr/tr_01_0000.nii.gz', folder / 'imagesTs/ts_02_0000.nii.gz')
  refused(folder, tmp_path / '1', 'tr_01 and ts_02 are the same image, one in train, one in test')
  source = load(folder, tmp_path / '2', split='all')
  assert 'same image twice: tr_01 and ts_02' in source.info['lines']


def test_a_header_may_not_name_voxels_elsewhere(tmp_path):
  folder = folders.pairs(tmp_path / 'raw', '.mhd', shape=(5, 7, 9), label_ending='.mha')
  path = folder / 'images' / 'p1_01.mhd'
  path.write_text(path.read_text().replace('p1_01.raw', '../labels/p1_01.mha'))
  refused(folder, tmp_path, 'its voxels are in ../labels/p1_01.mha, outside of its folder')


# Real data ------------------------------------------------------------------------------------


def test_hippocampus_as_an_unknown_organ(shared_data, tmp_path):
  raw = shared_data / 'Task04_Hippocampus'
  names = sorted(path.name for path in (raw / 'imagesTr').glob('*.nii.gz'))[:6]
  for number, name in enumerate(names):
    for part, ending in (('imagesTr', '_0000'), ('labelsTr', '')):
      (tmp_path / 'raw' / part).mkdir(parents=True, exist_ok=True)
      place = tmp_path / 'raw' / part / f'organ_{number}{ending}.nii.gz'
      shutil.copy(raw / part / name, place)
  content = {'channel_names': {'0': 'MRI'}, 'labels': ORGAN, 'numTraining': 6}
  (tmp_path / 'raw' / 'dataset.json').write_text(json.dumps(content))
  source = load(tmp_path / 'raw', tmp_path, intensity='auto')
  assert source.info['lines'][0] == (
    'nnU-Net raw, 6 cases, 3D, 1 channel, 3 classes: background, organ, lesion'
  )
  example = source.train[0]
  assert set(np.unique(example['labels'])) == {0, 1, 2} and example['image'].std() < 2


@pytest.mark.parametrize(('name', 'patients'), [('left_atrium_2d', 9), ('pancreas_ct_2d', 46)])
def test_real_pictures_with_smoothed_masks(name, patients, shared_data, tmp_path):
  found = study.make(fields_of(shared_data / name, tmp_path))
  assert found.classes == ('background', 'foreground') and found.picture
  assert len(set(found.partition.patients)) == patients
  test = {found.partition.patients[n] for n in found.partition.parts['test']}
  assert not test & {found.partition.patients[n] for n in found.partition.parts['train']}
