"""Choices, tasks and rows of a training on the user's folder; the whole run is a program test."""

import types

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import optax
import pandas as pd
import pytest

from robustmed import data, errors
from robustmed.attacks.stored import lattice
from robustmed.data import pipeline
from robustmed.data.labelled import sampling, study, writing
from robustmed.own_data import choices, experiment, segmentation
from robustmed.runs import commandline
from support import folders, runs

ORGAN = {'background': 0, 'left kidney': 1, 'left-kidney': 2}


def config_of(folder, tmp_path, **fields):
  config = commandline.load_config(f'{runs.ROOT}/configs/train.py:smoke')
  config.data.update({'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), **fields})
  return config


def first_batch(exp, split='train', size=2):
  source = exp.data.load()
  host = {'batch_size': size, 'shard_index': 0, 'shard_count': 1}
  if split == 'test':
    return source, next(iter(pipeline.eval_batches(source.test, crop=source.crop, **host)))
  return source, next(
    pipeline.train_batches(source.train, seed=0, sampling=source.sampling, **host)
  )


@pytest.mark.slow
@pytest.mark.parametrize(('axes', 'shape'), [(2, (16, 24)), (3, (16, 16, 24))])
def test_slices_and_volumes_of_an_unknown_organ(axes, shape, tmp_path, capsys):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(16, 16, 24), channels=2)
  config = config_of(folder, tmp_path, axes=axes)
  exp = experiment.build(config)
  said = capsys.readouterr().err
  assert 'nnU-Net raw, 6 cases, 3D, 2 channels, 3 classes' in said
  assert f'patches of {" x ".join(map(str, shape))} in training' in said
  assert "levels are in: share of the case's intensity range" in said
  assert exp.task.image_shape == (*shape, 2)
  source, batch = first_batch(exp)
  assert batch['image'].shape == (2, *shape, 2) and 0.3 < batch['image'].max() < 3
  variables = exp.task.init(jax.random.key(0))
  augment = exp.data.augment(source)
  made = augment(jax.random.split(jax.random.key(1), 2), batch)
  outputs = exp.task.predict(variables, made['image'])
  assert outputs['head0'].shape == (2, *shape, 3)
  assert np.isfinite(exp.task.losses(outputs, made)['ce']).all()
  metrics = exp.task.metrics(outputs, made)
  assert {'DICE', 'DICE_left_kidney_1', 'DICE_left_kidney_2', '_case'} <= metrics.keys()


def test_regions_are_the_classes_of_the_results(tmp_path):
  labels = {'background': 0, 'whole': [1, 2], 'core': [2], 'ignore': 3}
  folder = folders.nnunet(tmp_path / 'raw', labels=labels, shape=(8, 16, 16))
  exp = experiment.build(config_of(folder, tmp_path))
  source, batch = first_batch(exp)
  assert batch['target']['counted'].all()
  made = exp.data.augment(source)(jax.random.split(jax.random.key(1), 2), batch)
  metrics = exp.task.metrics(
    exp.task.predict(exp.task.init(jax.random.key(0)), batch['image']), made
  )
  assert {'DICE_whole', 'DICE_core'} <= metrics.keys()


def test_rows_of_slices_become_rows_of_cases():
  """The counts of a class are found by its number, wherever its column is."""
  folder = types.SimpleNamespace(regions={})
  found_study = types.SimpleNamespace(folder=folder, classes=('background', 'b', 'a'))
  rows = pd.DataFrame(
    {
      'arm': 'std',
      'attack': 'none',
      'eps': 0.0,
      'index': [0, 1, 2, 3, 4],
      'seed': 0,
      'group': [5, 5, 6, 7, 8],
      'DICE': 0.0,
      'DICE_a': 0.0,
      'DICE_b': 0.0,
      '_DICE_max': 0.5,
      **{
        f'_{kind}1': values
        for kind, values in zip(
          ('tp', 'fp', 'fn'), ([1, 2, 4, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0])
        )
      },
      '_tp2': 0.0,
      '_fp2': [0.0, 0.0, 3.0, 3.0, 0.0],
      '_fn2': [0.0, 2.0, 0.0, 0.0, 0.0],
      '_distance': [0.1, 0.3, 0.2, 0.2, 0.2],
      '_case': [7.0, 7.0, 8.0, 9.0, 10.0],
    }
  )
  found = segmentation.cases(types.SimpleNamespace(study=found_study), rows)
  assert found['index'].tolist() == [7, 8, 9, 10] and found['group'].tolist() == [5, 6, 7, 8]
  np.testing.assert_allclose(found['DICE_b'], [6 / 7, 1, np.nan, np.nan])
  np.testing.assert_allclose(found['DICE_a'], [0, 0, 0, np.nan])
  # a false lesion where there is none does not change over which classes the mean is
  np.testing.assert_allclose(found['DICE'], [3 / 7, 1, 0, 1])
  np.testing.assert_allclose(found['_distance'], [0.3, 0.2, 0.2, 0.2])


def test_the_data_decide_bounds_batch_and_spacing(tmp_path):
  photos = folders.pairs(tmp_path / 'photos', '.png', shape=(64, 96), dtype=np.uint8)
  config = config_of(photos, tmp_path, most_voxels=1600)
  config.train.batch_size = 0
  chosen = choices.make(config)
  made = choices.read(config, chosen, segmentation.make_task(config, chosen))
  assert made.evaluate.attacks.pgd.bounds == (0.0, 1.0) and made.train.batch_size == 16
  assert np.prod(chosen.patch) <= 1.5 * 1600 and chosen.fields['spacing'][0] > 1.9
  assert any('data.most_voxels' in line for line in chosen.lines)
  assert chosen.units.detail == '1 is 255'
  with pytest.raises(errors.UserError, match=r'patch \(18, 21\): its poolings need 20 x 24'):
    choices.make(config_of(photos, tmp_path, patch=(18, 21)))
  with pytest.raises(errors.UserError, match='too small for a network'):
    choices.make(config_of(folders.pairs(tmp_path / 'tiny', '.npy', shape=(6, 6)), tmp_path))


def test_the_network_sees_ct_within_the_organs_range(tmp_path):
  more = {'channel_names': {'0': 'CT'}}
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, more=more, shape=(8, 16, 16))
  exp = experiment.build(config_of(folder, tmp_path))
  variables = exp.task.init(jax.random.key(0))
  image = np.full((1, *exp.task.image_shape), 3.0, np.float32)
  one, other = (exp.task.predict(variables, value)['head0'] for value in (image, image * 0 + 1))
  np.testing.assert_array_equal(one, other)


def test_a_worst_slice_lies_where_it_lies_in_the_patient(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(9, 14, 12))
  config = config_of(folder, tmp_path)
  chosen, exp = choices.make(config), experiment.build(config)
  _, batch = first_batch(exp, 'test', 1)
  example = jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)
  exp.artifacts.write_example(tmp_path / 'out', example['image'], example)
  case = study.facts_of(chosen.study)[int(example['target']['case'])]
  place = int(example['target']['slice'])
  original = nib.load(case['images'][0])
  written = nib.load(tmp_path / 'out' / f'{case["name"]}_{place:03d}.nii.gz')
  values = np.asarray(original.dataobj)[:, :, place : place + 1]
  np.testing.assert_array_equal(np.asarray(written.dataobj), values)
  corner = [0, 0, place, 1]
  np.testing.assert_allclose(written.affine @ [0, 0, 0, 1], original.affine @ corner)
  labels = nib.load(tmp_path / 'out' / f'{case["name"]}_{place:03d}_label.nii.gz')
  stored = np.asarray(nib.load(case['label']).dataobj)[:, :, place : place + 1]
  np.testing.assert_array_equal(np.asarray(labels.dataobj), stored)
  # the numbers of an attacked slice are those of its file
  made = exp.artifacts.lattice(example)
  attacked = example['image'] + np.random.default_rng(0).uniform(-0.1, 0.1, example['image'].shape)
  found = lattice.search(np.sum, attacked, example['image'], lattice=made, eps=0.1)
  assert found.inside and not np.array_equal(found.image, example['image'])
  exp.artifacts.write_example(tmp_path / 'attacked', found.image, example, whole=found.whole)
  file = nib.load(tmp_path / 'attacked' / f'{case["name"]}_{place:03d}.nii.gz')
  read, whole = np.asarray(file.dataobj), sampling.uncut(found.whole[..., 0], case['shape'][1:])
  np.testing.assert_array_equal(read[..., 0].T, whole)
  assert file.get_data_dtype() == original.get_data_dtype()


def test_the_border_that_pads_an_image_is_not_stored(tmp_path):
  """The file lacks it, so that an attack on the border alone leaves nothing behind."""
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(9, 14, 11))
  exp = experiment.build(config_of(folder, tmp_path))
  source, batch = first_batch(exp, 'test', 1)
  example = jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)
  border = (example['target']['labels'] == -1)[..., None]
  assert border.any() and not border.all()
  made = exp.artifacts.lattice(example)
  attacked = example['image'] + np.float32(0.1)
  on_border = lambda image: float(image[border].sum())
  found = lattice.search(on_border, attacked, example['image'], lattice=made, eps=0.1)
  assert on_border(attacked) > on_border(example['image']) == found.value
  exp.artifacts.write_example(tmp_path / 'out', found.image, example, whole=found.whole)
  (path,) = (path for path in (tmp_path / 'out').iterdir() if 'label' not in path.name)
  values = np.asarray(nib.load(path).dataobj)[..., 0].T[..., None]
  shift, scale = example['target']['units']
  again = {'image': (values - shift) / scale, 'labels': np.zeros(values.shape[:-1], int)}
  np.testing.assert_allclose(source.crop(again)['image'], found.image, atol=1e-6)


@pytest.mark.parametrize(('dtype', 'rescale'), [('int32', [0.5, -3.0]), ('>i2', [1.0, 0.0])])
def test_whole_numbers_of_any_size_are_written_as_they_are(dtype, rescale, tmp_path):
  ends = np.iinfo(dtype)
  whole = np.array([[ends.max, ends.max - 1, ends.min], [2**14 + 1, 0, -1]])[..., None]
  case = {'dtype': dtype, 'rescale': rescale, 'shape': [2, 3], 'affine': np.eye(4)}
  writing.numbers(tmp_path / 'a.nii.gz', whole, case)
  file = nib.load(tmp_path / 'a.nii.gz')
  read = np.asarray(file.dataobj.get_unscaled())[..., 0].T
  np.testing.assert_array_equal(read, whole[..., 0])
  values = np.asarray(file.dataobj, np.float64)[..., 0].T
  np.testing.assert_array_equal(values, whole[..., 0] * rescale[0] + rescale[1])


def test_a_classifier_learns_class_folders(tmp_path):
  config = config_of(folders.shades(tmp_path / 'raw'), tmp_path)
  made = experiment.build(config)
  assert made.task.image_shape == (64, 64, 1) and made.grid.checks['metric'] == 'ACCURACY'
  source = made.data.load()
  examples = [source.train[n] for n in range(len(source.train))]
  batch = {
    'image': jnp.stack([one['image'] for one in examples]),
    'target': {'label': jnp.array([one['label'] for one in examples])},
  }
  keys = jax.random.split(jax.random.key(0), len(examples))
  changed = made.data.augment(source)(keys, batch)
  assert changed['image'].min() >= 0 and changed['image'].max() <= 1
  assert not np.array_equal(changed['image'], batch['image'])
  rule = optax.adam(3e-3)
  variables = made.task.init(jax.random.key(0))

  @jax.jit
  def step(variables, state):
    def loss(variables):
      outputs, _ = made.task.forward(variables, batch['image'], jax.random.key(0))
      return made.task.losses(outputs, batch)['ce'].mean()

    value, slope = jax.value_and_grad(loss)(variables)
    change, state = rule.update(slope, state)
    return value, optax.apply_updates(variables, change), state

  first, variables, state = step(variables, rule.init(variables))
  for _ in range(25):
    last, variables, state = step(variables, state)
  assert last < 0.3 * first
  outputs = made.task.predict(variables, batch['image'])
  assert made.task.metrics(outputs, batch)['ACCURACY'].mean() == 1


def test_phantom_and_folder_are_told_apart(tmp_path):
  config = commandline.load_config(f'{runs.ROOT}/configs/train.py:smoke')
  assert choices.make(config).fields['name'] == 'phantom_labelled'
  assert data.fields_of(choices.make(config).fields)['cases'] == 5


def test_the_network_follows_from_the_patch_alone(tmp_path):
  """So a folder of images of another size takes a network that was trained with that patch."""
  one = folders.nnunet(tmp_path / 'a', labels=ORGAN, shape=(6, 44, 37))
  other = folders.nnunet(tmp_path / 'b', cases=1, labels=ORGAN, shape=(4, 25, 61))
  chosen = choices.make(config_of(one, tmp_path))
  again = choices.make(config_of(other, tmp_path, split='all', patch=chosen.patch))
  assert again.strides == chosen.strides and again.patch == chosen.patch
  assert all(n % m == 0 for n, m in zip(again.study.window, again.fields['multiple']))
  exp = experiment.build(config_of(other, tmp_path, split='all', patch=chosen.patch))
  assert exp.data.sizes() == {'train': 0, 'test': 3}
