import nibabel as nib
import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.abdomen import abdomen, ct_slices, phantom
from support import torsos

SMALL = {'side': 32, 'spacing': 12.0, 'subjects': (2, 1, 1), 'slices': 'all'}


def fields_of(folder, **more):
  return data.fields_of({'name': 'abdomen', 'dir': str(folder), **SMALL, **more})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return torsos.fill(tmp_path_factory.mktemp('flare'))


def test_files_give_the_volumes_they_were_made_of(folder):
  cases = abdomen.find(fields_of(folder, layout='flare22'))
  drawn = phantom.cases(data.fields_of(torsos.TWIN))
  assert [case.name for case in cases] == [case.name for case in drawn]
  for case, want in zip(cases, drawn, strict=True):
    found, true = case.read(), want.read()
    assert case.depth == len(true.labels) == 3
    np.testing.assert_allclose(found.image, true.image, atol=1e-3)
    np.testing.assert_array_equal(found.labels, true.labels)
    np.testing.assert_allclose(found.spacing, true.spacing)
  config = {'name': 'abdomen', 'dir': str(folder), 'subjects': (1, 1, 2)}
  assert data.depths(config) == (3, 3) and data.depths({**config, 'dir': ''}) == (100, 100)
  assert data.depths({**torsos.TWIN, 'subjects': (1, 1, 2)}) == (3, 3)


def test_orientation_is_read_from_the_file(tmp_path, folder):
  image = next((folder / 'images').iterdir())
  label = next((folder / 'labels').iterdir())
  straight = abdomen.read(image, label, torsos.NUMBERS)
  turned = []
  for path in (image, label):
    file = nib.as_closest_canonical(nib.load(path))  # counts to right, front, head instead
    turned.append(tmp_path / path.name)
    nib.save(file, turned[-1])
  again = abdomen.read(*turned, torsos.NUMBERS)
  np.testing.assert_allclose(again.image, straight.image)
  np.testing.assert_array_equal(again.labels, straight.labels)


def _touch(folder, *names):
  for name in names:
    torsos.save(folder / name, np.zeros((2, 3, 4), np.uint8), (1.0, 1.0, 1.0))


LAYOUTS = {
  'flare21': (('Case_1_0000.nii.gz', 'Case_1.nii.gz'), ('Case_1',)),
  'flare22': (
    ('images/F_1_0000.nii.gz', 'labels/F_1.nii.gz', 'images/F_2_0000.nii.gz', 'labels/F_2.nii.gz'),
    ('F_1', 'F_2'),
  ),
  'amos': (
    (
      'imagesTr/amos_0001.nii.gz', 'labelsTr/amos_0001.nii.gz',
      'imagesVa/amos_0004.nii.gz', 'labelsVa/amos_0004.nii.gz',
      'imagesTr/amos_0507.nii.gz', 'labelsTr/amos_0507.nii.gz',
    ),
    ('amos_0001', 'amos_0004'),
  ),
  'btcv': (
    (
      'img/img0001.nii.gz', 'label/label0001.nii.gz',
      'img/img0002.nii.gz', 'label/label0002.nii.gz',
    ),
    ('0001', '0002'),
  ),
  'msd_spleen': (
    (
      'imagesTr/spleen_10.nii.gz', 'labelsTr/spleen_10.nii.gz', 'imagesTr/spleen_2.nii.gz',
      'labelsTr/spleen_2.nii.gz', 'imagesTs/spleen_7.nii.gz',
    ),
    ('spleen_10', 'spleen_2'),
  ),
  'totalsegmentator': (('example_ct.nii.gz', 'example_seg_fast.nii.gz'), ('example',)),
}  # fmt: skip


@pytest.mark.parametrize('layout', abdomen.LAYOUTS)
def test_layouts_pair_images_with_their_labels(layout, tmp_path):
  names, subjects = LAYOUTS[layout]
  _touch(tmp_path, *names)
  found = abdomen.pairs(fields_of(tmp_path, layout=layout))
  assert tuple(found) == subjects
  for image, label in found.values():
    assert image != label and image.is_file() and label.is_file()


def test_globs_replace_those_of_the_layout(tmp_path):
  _touch(tmp_path, 'scans/a.nii.gz', 'organs/a.nii.gz', 'scans/b.nii.gz', 'organs/b.nii.gz')
  with pytest.raises(errors.UserError, match=r'no images like .*_0000'):
    abdomen.pairs(fields_of(tmp_path))
  found = abdomen.pairs(fields_of(tmp_path, images='scans/*', labels='organs/*'))
  assert tuple(found) == ('a', 'b')


def test_label_maps():
  own = lambda **more: abdomen.organ_map({'organs': '', 'layout': 'btcv', **more})
  assert own()['pancreas'] == (11,) and own(layout='amos')['pancreas'] == (10,)
  assert own(organs='kidneys=2,13 liver=1') == {'kidneys': (2, 13), 'liver': (1,)}
  with pytest.raises(errors.UserError, match='must be like'):
    own(organs='liver:1')
  with pytest.raises(errors.UserError, match="unknown organ 'heart'"):
    own(organs='heart=1')
  with pytest.raises(errors.UserError, match="unknown layout 'kits'"):
    own(layout='kits')


def _pair(tmp_path, image, label, **affine):
  spacing = (1.0, 1.0, 1.0)
  return (
    torsos.save(tmp_path / 'a_0000.nii.gz', image, spacing),
    torsos.save(tmp_path / 'a.nii.gz', label, spacing, **affine),
  )


def test_grids_that_differ_are_refused_in_one_line(tmp_path):
  image, label = np.zeros((3, 4, 5)), np.zeros((3, 4, 6), np.uint8)
  with pytest.raises(errors.UserError, match=r'a\.nii\.gz: \[6, 4, 3\] voxels .* \[5, 4, 3\]'):
    abdomen.read(*_pair(tmp_path, image, label), torsos.NUMBERS)
  mirrored = _pair(tmp_path, image, label[..., :5], signs=(1, -1, 1))
  with pytest.raises(errors.UserError, match='its affine is not that of') as caught:
    abdomen.read(*mirrored, torsos.NUMBERS)
  assert '\n' not in str(caught.value)


def test_a_volume_of_one_slice_is_read(tmp_path):
  rng = np.random.default_rng(0)
  image, label = rng.normal(size=(1, 6, 7)), np.full((1, 6, 7), 3, np.uint8)
  volume = abdomen.read(*_pair(tmp_path, image, label), torsos.NUMBERS)
  assert volume.image.shape == (1, 6, 7, 1) and (volume.labels == 4).all()


def test_an_organ_that_nobody_has_is_one_line_and_may_be_left_out(tmp_path, folder):
  config = {'name': 'abdomen', 'dir': str(folder), **SMALL, 'cache_dir': str(tmp_path)}
  wrong = 'pancreas=44 kidneys=2,13 liver=1 spleen=3'
  with pytest.raises(
    errors.UserError, match=r'no subject has label 44 \(pancreas\); set .* organs'
  ):
    data.load({**config, 'organs': wrong})
  source = data.load({**config, 'organs': 'kidneys=2,13 liver=1 spleen=3'})
  assert source.info['counts']['subjects_without_pancreas'] == 4
  assert source.info['counts']['subjects_without_liver'] == 0
  assert not source.train.stack('present')[:, 0].any()


def test_too_few_subjects_for_three_splits(tmp_path, folder):
  fields = fields_of(folder, images='images/abdomen_000*', labels='labels/abdomen_000*')
  with pytest.raises(errors.UserError, match=r'1 subject\(s\) are too few for 3 splits'):
    abdomen.sizes(fields)
  alone = {**fields, 'subjects': (0, 0, 1), 'cache_dir': str(tmp_path)}
  source = data.load(alone)
  assert len(source.train) == 0 and len(source.test) == 3


def test_a_real_torso(shared_data):
  root = shared_data / 'totalsegmentator_example'
  fields = fields_of(
    root,
    layout='totalsegmentator',
    images='example_ct.nii.gz',
    labels='example_seg_fast_force_split.nii.gz',
    side=128,
    spacing=3.0,
    subjects=(0, 0, 1),
  )
  (case,) = abdomen.find(fields)
  volume = ct_slices.prepare(case, fields)
  assert volume.image.shape == (case.depth, 128, 128, 1) and abs(volume.spacing[0] - 3) < 0.01
  share = {o: (volume.labels == k).sum() for k, o in enumerate(ct_slices.ORGANS, start=1)}
  assert share['liver'] == max(share.values()) and min(share.values()) > 500  # 27 mm3 each
  place = {k: np.argwhere(volume.labels == k).mean(axis=0) for k in range(1, 5)}
  assert place[3][2] < place[4][2]  # liver on the right, spleen on the left of the patient
  assert place[2][1] > place[1][1]  # kidneys behind the pancreas
  body = volume.image[volume.labels == 3]
  assert body.mean() > 1 and body.std() < 0.5  # soft tissue, above the mean with its air
