import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.decathlon import folds, msd
from support import scans


def load(folder, tmp_path, **fields):
  return data.load(
    {'name': 'msd', 'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), **fields}
  )


def change(folder, edit):
  path = folder / 'dataset.json'
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
  return scans.fill(tmp_path / 'raw')


def test_the_phantom_comes_out_of_the_files_as_from_memory(folder, tmp_path):
  real = load(folder, tmp_path)
  twin = data.load({**scans.TWIN, 'cache_dir': str(tmp_path / 'twin')})
  assert real.info['sizes'] == twin.info['sizes'] == data.sizes({'name': 'msd', 'dir': str(folder)})
  assert data.depths({'name': 'msd', 'dir': str(folder)}) == data.depths(scans.TWIN)
  assert real.info['cases'] == twin.info['cases']
  assert real.info['properties']['shape'] == twin.info['properties']['shape']
  for one, two in zip([*real.train, *real.volumes], [*twin.train, *twin.volumes]):
    np.testing.assert_allclose(one['image'], two['image'], atol=1e-5)
    np.testing.assert_array_equal(one['labels'], two['labels'])
    np.testing.assert_allclose(one['spacing'], two['spacing'], rtol=1e-5)
    assert one['name'] == two['name']


def test_one_case_as_nibabel_reads_it(tmp_path):
  rng = np.random.default_rng(0)
  image, labels = rng.normal(size=(4, 5, 6, 2)), rng.integers(0, 3, size=(4, 5, 6))
  paths = [
    scans.save(tmp_path / 'i.nii.gz', image, (3.6, 0.5, 0.25)),
    scans.save(tmp_path / 'l.nii.gz', labels, dtype=np.float32),  # whole numbers all the same
  ]
  got = msd.read(*paths, modalities=2, classes=3)
  np.testing.assert_array_equal(got.image, image.astype(np.float32))
  np.testing.assert_array_equal(got.labels, labels)
  assert got.spacing == pytest.approx((3.6, 0.5, 0.25)) and got.labels.dtype == np.int8
  assert nib.load(paths[0]).shape == (6, 5, 4, 2)


def test_quirks_of_the_distribution(folder, tmp_path):
  first = folder / 'labelsTr' / 'hippocampus_000.nii.gz'
  labels = np.asarray(nib.load(first).dataobj).transpose(2, 1, 0).astype(np.int16)
  plain = load(folder, tmp_path)
  labels[0, 0, 0] = -2
  scans.save(first, labels, dtype=np.int16)
  for kind in ('imagesTr', 'labelsTr'):
    (folder / kind / '._hippocampus_000.nii.gz').write_bytes(b'resource fork')

  def hidden(content):
    names = ('image', './imagesTr/._hippocampus_000.nii.gz'), ('label', './labelsTr/._x.nii.gz')
    content['training'].append(dict(names))

  change(folder, hidden)
  got = load(folder, tmp_path)
  assert got.info['folder'] != plain.info['folder'] and got.info['cases'] == plain.info['cases']
  examples = {e['name']: e for e in [*got.train, *got.volumes]}
  assert examples['hippocampus_000_000']['labels'][0, 0] == 0


def _entry(content, kind, value):
  content['training'][0][kind] = value


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda c: c.pop('training'), "dataset.json: has no field 'training'"),
    (lambda c: c.pop('labels'), "dataset.json: has no field 'labels'"),
    (lambda c: c.update(modality='MRI'), "dataset.json: field 'modality' is not a dict"),
    (lambda c: c.update(modality={'1': 'MRI'}), "numbers of field 'modality' are not 0, 1"),
    (lambda c: c.update(modality={'0': 'T2', '1': 'ADC'}), 'has 2 entries, this task has 1'),
    (lambda c: c.update(labels={'0': 'background'}), 'no class beside the background'),
    (lambda c: c.update(training=[]), 'lists no cases'),
    (lambda c: c.update(training=c['training'][:4]), '4 cases are too few for 5 folds'),
    (lambda c: c['training'].append(c['training'][0]), 'lists hippocampus_000 twice'),
    (lambda c: c['training'][0].pop('label'), "an entry of 'training' has no 'label'"),
    (lambda c: _entry(c, 'image', '../x.nii.gz'), r'\.\./x.nii.gz lies outside the folder'),
    (
      lambda c: _entry(c, 'image', 'imagesTr/x.nii.gz'),
      r'imagesTr/x.nii.gz: is not there; it is listed',
    ),
    (lambda c: c.update(name='Spleen'), 'set the data field task to one of heart, hippocampus'),
  ],
)
def test_mistakes_in_the_description(tmp_path, edit, message):
  folder = tmp_path / 'raw'
  names = [f'hippocampus_{n:03d}' for n in range(5)]
  for name in names:
    for kind in ('imagesTr', 'labelsTr'):
      scans.save(folder / kind / f'{name}.nii.gz', np.ones((2, 2, 2)))
  scans.describe(folder, names)
  change(folder, edit)
  with pytest.raises(errors.UserError, match=message):
    load(folder, tmp_path)


@pytest.mark.parametrize(
  ('task', 'name', 'labels', 'message'),
  [
    ('hippocampus', 'Task77_Spleen', ('background', 'spleen', 'cyst'), 'are spleen, cyst, but'),
    (
      'heart',
      'Heart',
      ('background', 'left', 'right'),
      'task heart has left atrium; configs/train',
    ),
    (
      'hippocampus',
      'Liver',
      ('background', 'liver'),
      'are liver, but the task hippocampus has ant',
    ),
    ('hippocampus', 'Own', ('background', 'Anterior', 'Posterior'), ''),
    ('hippocampus', 'Hippocampus', ('background', 'head', 'tail'), ''),
  ],
)
def test_another_organ_is_not_shown_under_the_name_of_the_task(
  tmp_path, task, name, labels, message
):
  names = [f'case_{n}' for n in range(5)]
  for kind in ('imagesTr', 'labelsTr'):
    for case in names:
      scans.save(tmp_path / 'raw' / kind / f'{case}.nii.gz', np.ones((2, 2, 2)))
  scans.describe(tmp_path / 'raw', names, labels=labels)
  change(tmp_path / 'raw', lambda content: content.update(name=name))
  fields = data.fields_of({'name': 'msd', 'dir': str(tmp_path / 'raw'), 'task': task})
  if not message:
    assert len(msd.find(fields).cases) == 5
    return
  with pytest.raises(errors.UserError, match=message):
    msd.find(fields)


def test_a_description_that_is_not_json(folder, tmp_path):
  (folder / 'dataset.json').write_text('{')
  with pytest.raises(errors.UserError, match=r'dataset.json: cannot be read'):
    load(folder, tmp_path)
  (folder / 'dataset.json').unlink()
  with pytest.raises(errors.UserError, match=r'has no dataset.json; download .*medicaldecathlon'):
    load(folder, tmp_path)


IMAGE, LABEL = 'imagesTr/hippocampus_003.nii.gz', 'labelsTr/hippocampus_003.nii.gz'


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-200])


def _array(change_it):
  def edit(path):
    file = nib.load(path)
    values = np.asarray(file.dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(change_it(values), file.affine), path)

  return edit


def _first(value):
  def change_it(values):
    values[0, 0, 0] = value
    return values

  return change_it


@pytest.mark.parametrize(
  ('name', 'edit', 'message'),
  [
    (IMAGE, _truncate, 'cannot be read .*damaged or not a NIfTI file'),
    (LABEL, _truncate, 'cannot be read'),
    (IMAGE, lambda path: path.write_text('text'), 'cannot be read'),
    (LABEL, _array(lambda a: a[:-1]), r'labels of \[15, 22, 16\] voxels for an image of \[16, 22'),
    (LABEL, _array(_first(7)), 'label 7 is not one of the 3 in dataset.json'),
    (LABEL, _array(_first(-1)), 'label -1 is not one'),
    (LABEL, _array(_first(0.5)), 'label 0.5 is not one'),
    (IMAGE, _array(_first(np.nan)), 'has NaN or infinite values'),
    (IMAGE, _array(lambda a: a * 0), 'the image is zero everywhere'),
    (IMAGE, _array(lambda a: np.stack([a, a], -1)), r'needs three axes and 1 modalities'),
    (IMAGE, _array(lambda a: a[0]), r'voxel spacing .* is not three'),
  ],
)
def test_a_bad_file_is_named(folder, tmp_path, name, edit, message):
  edit(folder / name)
  with pytest.raises(errors.UserError, match=message) as caught:
    load(folder, tmp_path)
  assert str(folder / name) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(('name', 'task'), [('LeftAtrium', 'heart'), ('PROSTATE', 'prostate')])
def test_the_task_by_its_names(tmp_path, name, task):
  fields = {'task': '', 'dir': str(tmp_path)}
  assert msd.task_of(fields, {'name': name}) == task
  assert msd.task_of({**fields, 'dir': f'/x/Task02_{task}'}, {}) == task
  assert msd.task_of({**fields, 'task': 'heart'}, {'name': 'PROSTATE'}) == 'heart'
  with pytest.raises(errors.UserError, match="unknown task 'liver'"):
    msd.task_of({**fields, 'task': 'liver'}, {})


def test_sizes_without_the_folder_follow_the_task():
  assert data.sizes({'name': 'msd', 'task': 'prostate'}) == msd.TASKS['prostate'].sizes
  for task in msd.TASKS:
    sizes, depths = (of({'name': 'msd', 'task': task}) for of in (data.sizes, data.depths))
    assert set(depths) == {round(sizes['validation'] / max(1, len(depths) // 2))}


def test_real_hippocampi(shared_data, tmp_path):
  real = shared_data / 'Task04_Hippocampus'
  names = [
    entry['image'].split('/')[-1].removesuffix('.nii.gz')
    for entry in json.loads((real / 'dataset.json').read_text())['training'][:8]
  ]
  folder = scans.describe(tmp_path / 'raw', names)
  for kind in ('imagesTr', 'labelsTr'):  # copies: a link that leaves the folder is refused
    (folder / kind).mkdir(exist_ok=True)
    for name in names:
      shutil.copy(real / kind / f'{name}.nii.gz', folder / kind)
  source = load(folder, tmp_path)
  assert source.info['groups'] == {'train': 6, 'test': 2}
  assert source.info['sizes'] == data.sizes({'name': 'msd', 'dir': str(folder)})
  fingerprint = source.info['properties']
  assert fingerprint['spacing'] == [1, 1, 1] and fingerprint['crop_ratio'] > 0.95
  assert all(abs(n - m) < 6 for n, m in zip(fingerprint['shape'], (36, 50, 35)))
  held = folds.held_out(8)
  assert source.info['cases']['test'] == [names[i] for i in held]
  # the volume, put together again, is the z-scored file
  file = nib.load(real / 'imagesTr' / f'{names[held[0]]}.nii.gz')
  want = np.asarray(file.dataobj, np.float64).transpose(2, 1, 0)
  rows = [example for example in source.volumes if example['group'] == held[0]]
  got = np.stack([example['image'][..., 0] for example in rows])
  np.testing.assert_allclose(got, (want - want.mean()) / want.std(), atol=1e-4)
  truth = np.asarray(nib.load(real / 'labelsTr' / f'{names[held[0]]}.nii.gz').dataobj)
  labels = np.stack([example['labels'] for example in rows])
  np.testing.assert_array_equal(np.maximum(labels, 0), truth.transpose(2, 1, 0))
  assert all(example['present'].all() for example in source.test)
  assert source.crop(source.test[0])['image'].shape == (56, 40, 1)


def test_labels_without_images(shared_data, tmp_path):
  with pytest.raises(
    errors.UserError, match=r'imagesTr/prostate_\d\d.nii.gz: is not there; it is listed'
  ):
    load(shared_data / 'Task05_Prostate_labels_only', tmp_path)
