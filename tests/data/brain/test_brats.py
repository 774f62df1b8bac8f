import json
import shutil

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.brain import brats, brats_files
from robustmed.data.files import cubes, nifti
from support import gliomas

QUICK = {'name': 'brats', 'side': 16, 'n4': 'none'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return gliomas.brats2017(tmp_path_factory.mktemp('brats2017'), high=3, low=2)


def fields_of(folder, tmp_path, **more):
  config = {**QUICK, 'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), **more}
  return data.fields_of(config)


def load(folder, tmp_path, **more):
  fields = fields_of(folder, tmp_path, **more)
  source = data.load(fields)
  assert data.sizes(fields) == source.info['sizes']
  return source


def names(split):
  return [example['name'] for example in split]


def test_cases_grades_and_counts(folder, tmp_path):
  found = brats_files.find(fields_of(folder, tmp_path))
  assert [case.grade for case in found.cases] == ['HGG'] * 3 + ['LGG'] * 2
  source = load(folder, tmp_path, test_share=0.34)
  counts = source.info['counts']
  assert counts['train_hgg'] == 2 and counts['test_hgg'] == 1
  assert counts['train_lgg'] == counts['test_lgg'] == 1
  assert sorted(names(source.train) + names(source.test)) == [case.name for case in found.cases]
  for example in [*source.train, *source.test]:
    assert example['index'] == example['group'] == int(example['name'].split('_')[2])


def test_a_case_step_by_step(folder, tmp_path):
  fields = fields_of(folder, tmp_path, side=32)
  found = brats_files.find(fields)
  one = brats.prepare(found.cases[0], found.layout, fields)
  series, labels = gliomas.draw(0)
  turn = lambda array: array.transpose(2, 1, 0)
  brain = turn(np.any([s != 0 for s in series.values()], axis=0))
  box = cubes.foreground_box(brain)
  np.testing.assert_array_equal(one.geometry.box, box)
  assert (box[:, 0] >= gliomas.MARGIN).all()
  assert one.image.shape == (32, 32, 32, 4) and one.image.dtype == np.float32
  assert one.image.min() == 0 and one.image.max() <= 1
  inside = cubes.resize(cubes.crop(brain, box), (32,) * 3, order=0)
  assert (one.image[~inside] == 0).all() and (one.image[inside] > 0).mean() > 0.98
  for channel, name in enumerate(('t1', 't1ce', 't2', 'flair')):
    expected = cubes.crop(
      cubes.standardise(turn(series[name]), brain & (turn(series[name]) > 0)), box
    )
    expected = cubes.resize(expected, (32,) * 3, order=1)
    np.testing.assert_allclose(one.image[..., channel][inside], expected[inside], atol=1e-6)
  wanted = np.where(labels == 4, 3, labels)
  assert set(np.unique(one.labels)) == {0, 1, 2, 3}
  back = nifti.restore(one.labels, one.geometry)
  assert back.shape == labels.shape and (back == wanted).mean() > 0.99
  picture = nifti.restore(one.image, one.geometry, order=1)
  assert picture.shape == (*labels.shape, 4)


def test_same_case_from_every_layout(folder, tmp_path):
  flat, odd, msd = tmp_path / 'flat', tmp_path / 'odd', gliomas.decathlon(tmp_path / 'msd')
  for number in range(3):
    gliomas.save(f'{flat}/Brats17_CBICA_{number}_1_{{series}}.nii', number)
    gliomas.save(f'{odd}/{number}/mr-{{series}}.nii.gz', number)

  def second(place, **more):
    fields = fields_of(place, tmp_path, **more)
    found = brats_files.find(fields)
    assert all(path.is_file() for case in found.cases for path in case.paths())
    return found.cases[1].name, brats.prepare(found.cases[1], found.layout, fields)

  name, wanted = second(folder)
  assert name == 'Brats17_CBICA_1_1' == second(folder / 'HGG')[0] == second(flat)[0]
  assert second(msd)[0] == 'BRATS_001'
  for place, more in [
    (folder / 'HGG', {}),
    (flat, {}),
    (odd, {'pattern': '{case}/mr-{series}.nii.gz'}),
    (msd, {}),
  ]:
    one = second(place, **more)[1]
    np.testing.assert_array_equal(one.image, wanted.image)
    np.testing.assert_array_equal(one.labels, wanted.labels)
  two = second(flat, series=('t1ce', 'flair'))[1]
  np.testing.assert_array_equal(two.image, wanted.image[..., [1, 3]])


def test_published_sizes_and_the_split_rule(tmp_path, monkeypatch):
  assert data.sizes({'name': 'brats'}) == {'train': 228, 'test': 57}
  assert data.sizes({'name': 'brats', 'planes': 'axial'}) == {'train': 228 * 128, 'test': 57 * 128}
  make = lambda number, grade: brats_files.Case(f'{grade}{number:03d}', grade, (), tmp_path)
  cases = [make(n, 'HGG') for n in range(210)] + [make(n, 'LGG') for n in range(75)]

  def split(cases, **more):
    found = brats_files.Found(brats_files.LAYOUTS['folders'], tuple(cases))
    monkeypatch.setattr(brats_files, 'find', lambda fields: found)
    return brats.split({**brats.DEFAULTS, **more})

  parts = split(cases)
  count = lambda part, grade: sum(case.grade == grade for case in part)
  assert [count(parts['test'], grade) for grade in ('HGG', 'LGG')] == [42, 15]
  assert set(parts['train']) | set(parts['test']) == set(cases) and len(parts['train']) == 228
  assert split(cases) == parts and split(cases[::-1])['test'][0] in parts['test']
  assert set(split(cases, split_seed=1)['test']) != set(parts['test'])
  assert len(split([make(n, '') for n in range(484)])['test']) == 97
  assert [len(split(cases[:2])[name]) for name in ('train', 'test')] == [1, 1]
  assert [len(split(cases[:2], test_share=0.9)[name]) for name in ('train', 'test')] == [1, 1]
  assert [len(split(cases[:3], test_share=1.0)[name]) for name in ('train', 'test')] == [0, 3]
  with pytest.raises(errors.UserError, match=r'1 case cannot be split.*test_share to 1'):
    split(cases[:1])


def test_bias_correction_is_kept_on_disk_and_spares_flair(tmp_path, monkeypatch):
  folder = gliomas.brats2017(tmp_path / 'raw', high=1, low=0)
  fitted = []

  def log_field(volume, settings):
    fitted.append(settings)
    return np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2)

  monkeypatch.setattr(brats.n4, 'log_field', log_field)

  def image(**more):
    fields = fields_of(folder, tmp_path, n4_shrink=3, **more)
    found = brats_files.find(fields)
    return brats.prepare(found.cases[0], found.layout, fields).image

  plain, spared = image(), image(n4='but_flair')
  kept = tmp_path / 'cache' / 'n4'
  assert len(list(kept.iterdir())) == 3 and fitted == [(3, 50)] * 3
  change = np.abs(spared - plain).max(axis=(0, 1, 2))
  assert (change[:3] > 1e-2).all() and change[3] == 0
  every = image(n4='all')
  assert len(list(kept.iterdir())) == 4 and np.abs(every - plain)[..., 3].max() > 1e-2
  np.testing.assert_array_equal(image(n4='all'), every)
  assert image(n4='all', side=32, order=3).shape == (32, 32, 32, 4) and len(fitted) == 4


def test_workers_do_not_matter(folder, tmp_path):
  one = load(folder, tmp_path / 'one', workers=1)
  two = load(folder, tmp_path / 'two', workers=3)
  np.testing.assert_array_equal(one.train.stack('image'), two.train.stack('image'))
  again = load(folder, tmp_path / 'one', workers=2)
  assert again.info['folder'] == one.info['folder']


def test_empty_masks_are_counted_not_refused(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'raw')
  path = sorted((tmp_path / 'raw').rglob('*_seg.nii.gz'))[0]
  nifti.write(path, np.zeros_like(nifti.read(path).array), gliomas.AFFINE)
  source = load(tmp_path / 'raw', tmp_path)
  assert source.info['counts']['cases_without_tumour'] == 1
  empty = [e for e in [*source.train, *source.test] if not e['labels'].any()]
  assert [example['name'] for example in empty] == ['Brats17_CBICA_0_1']


def _rewrite(path, change):
  volume = nifti.read(path)
  nifti.write(path, change(volume.array), volume.affine)


def _label(array):
  array[5, 5, 5] = 3
  return array


def _nan(array):
  array[1, 2, 3] = np.nan
  return array


def _elsewhere(path):
  affine = gliomas.AFFINE.copy()
  affine[0, 3] += 5
  nifti.write(path, nifti.read(path).array, affine)


BAD = {
  't2': (lambda path: path.unlink(), 'has no t2 .*looked for .*_t2.nii.gz.*add the file'),
  'seg': (lambda path: path.unlink(), 'has no seg '),
  't1': (lambda path: _rewrite(path, lambda a: a[1:]), r't1.*shape \[21, 22, 22\]|t1ce.*shape'),
  'flair': (lambda path: path.write_text('no'), 'flair.nii.gz: cannot be read'),
  't1ce': (lambda path: _rewrite(path, _nan), 't1ce.nii.gz: has 1 NaN'),
}
WORSE = {
  'seg': (lambda path: _rewrite(path, _label), 'seg.nii.gz: has label 3, but only 0, 1, 2, 4'),
  't1': (lambda path: _rewrite(path, lambda a: a * 0), 't1.nii.gz: series t1 is 0 everywhere'),
  't2': (_elsewhere, 't2.nii.gz: lies elsewhere in space'),
  'flair': (
    lambda path: path.write_bytes(path.read_bytes()[:3000]),
    'flair.nii.gz: cannot be read',
  ),
  't1ce': (lambda path: _rewrite(path, lambda a: a[..., None] * [1, 2]), 'must be a volume of 3'),
}


@pytest.mark.parametrize(('name', 'spoil', 'message'), [
  (name, *row) for table in (BAD, WORSE) for name, row in table.items()
])  # fmt: skip
def test_bad_files_give_one_line_with_their_name(folder, tmp_path, name, spoil, message):
  shutil.copytree(folder, tmp_path / 'raw')
  spoil(sorted((tmp_path / 'raw').rglob(f'*_{name}.nii.gz'))[2])
  with pytest.raises(errors.UserError, match=message) as caught:
    load(tmp_path / 'raw', tmp_path)
  assert 'Brats17_CBICA_2' in str(caught.value) and '\n' not in str(caught.value)


def test_exclude_and_second_copies(folder, tmp_path):
  source = load(folder, tmp_path, exclude=('Brats17_CBICA_1_1',))
  assert source.info['sizes'] == {'train': 3, 'test': 1}
  with pytest.raises(errors.UserError, match=r"case to exclude 'Brats17_CBICA_9_1'.*did you mean"):
    load(folder, tmp_path, exclude=('Brats17_CBICA_9_1',))
  shutil.copytree(folder, tmp_path / 'raw')
  shutil.copytree(folder / 'HGG', tmp_path / 'raw' / 'LGG', dirs_exist_ok=True)
  with pytest.raises(errors.UserError, match=r'there is a second flair of case Brats17_CBICA_0_1'):
    load(tmp_path / 'raw', tmp_path)


@pytest.mark.parametrize(('change', 'message'), [
  ({'modality': {'0': 'CT'}}, 'dataset.json: is not that of MSD Task01'),
  ({'labels': {'0': 'background', '1': 'liver'}}, "unexpected 'liver'"),
  ({'training': [{'image': '../../x.nii.gz', 'label': 'y'}]}, r'x\.nii\.gz: leaves the folder'),
  ({'training': []}, 'no case of layout msd'),
  ({'modality': {'0': 'FLAIR', '1': 'T1w', '2': 't1gd', '7': 'T2w'}}, 'has 4 series'),
])  # fmt: skip
def test_bad_dataset_json(tmp_path, change, message):
  folder = gliomas.decathlon(tmp_path / 'raw', cases=2)
  content = json.loads((folder / 'dataset.json').read_text())
  (folder / 'dataset.json').write_text(json.dumps({**content, **change}))
  with pytest.raises(errors.UserError, match=message):
    load(folder, tmp_path)


@pytest.mark.parametrize(('fields', 'message'), [
  ({'n4': 'yes'}, "data field n4 'yes'.*but_flair"),
  ({'order': 2}, 'data field order 2'),
  ({'n4_shrink': 0}, 'n4_shrink and n4_iterations must be >= 1'),
  ({'test_share': 0.0}, r'test_share must lie in \(0, 1\]'),
  ({'workers': -1}, 'workers must be at least 0'),
  ({'layout': 'brats2030'}, "layout of brain tumour files 'brats2030'"),
  ({'pattern': '{series}.nii'}, r'pattern must contain \{case\}'),
])  # fmt: skip
def test_fields_out_of_range(folder, tmp_path, fields, message):
  with pytest.raises(errors.UserError, match=message):
    load(folder, tmp_path, **fields)


def test_real_case_of_four_series_comes_back_on_its_grid(shared_data, tmp_path):
  folder = shared_data / 'brats_msd_cropped'
  source = load(folder, tmp_path, side=48, test_share=1.0, n4='all', n4_shrink=16, n4_iterations=1)
  assert source.info['sizes'] == {'train': 0, 'test': 1}
  example = source.test[0]
  assert example['name'] == 'BRATS_009' and example['image'].shape == (48, 48, 48, 4)
  path = folder / 'BRATS_009' / 'BRATS_009_seg.nii.gz'
  truth = nifti.labels(path)
  back = nifti.restore(example['labels'], nifti.geometry_of(example))
  nifti.write(tmp_path / 'out.nii.gz', back, example['affine'])
  written = nifti.read(tmp_path / 'out.nii.gz')
  np.testing.assert_array_equal(written.affine, truth.affine)
  assert written.array.shape == truth.array.shape
  for ours, theirs in (((1, 2, 3), (1, 2, 4)), ((1, 3), (1, 4)), ((3,), (4,))):
    one, two = np.isin(written.array, ours), np.isin(truth.array, theirs)
    assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.85


def test_real_cases_of_two_series(shared_data, tmp_path):
  source = load(
    shared_data / 'brats2015_deepmedic',
    tmp_path,
    side=32,
    n4='all',
    exclude=('brats_2013_pat0001_1', 'brats_2013_pat0006_1'),
  )
  assert source.info['sizes'] == {'train': 1, 'test': 1}
  assert not (tmp_path / 'cache' / 'n4').exists()  # corrected and standardised already
  for example in [*source.train, *source.test]:
    assert example['image'].shape == (32, 32, 32, 2)
    assert set(np.unique(example['labels'])) == {0, 1, 2, 3}
    assert 0.3 < (example['image'][..., 0] > 0).mean() < 0.65
    # enhancing tumour is bright in the first series, T1 with contrast
    brightness = example['image'][..., 0]
    assert brightness[example['labels'] == 3].mean() > 1.2 * brightness[brightness > 0].mean()
