"""nnU-Net v2: preprocessing, sliding windows, folds, and results on the grid of the case."""

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from robustmed import errors
from robustmed.networks import (
  nnunet_files,
  nnunet_network,
  nnunet_plans,
  nnunet_predict,
  nnunet_preprocess,
)
from support import nnunet_folders

SPACING = {2: (5.0, 2.0, 1.0), 3: (3.0, 2.0, 1.0)}


@pytest.fixture(scope='module', params=['2D', '3D residual'])
def network(request, tmp_path_factory):
  rank = int(request.param[0])
  folder = nnunet_folders.write(
    tmp_path_factory.mktemp('nnunet'), rank=rank, folds=2, residual=rank == 3, channels=2
  )
  return nnunet_predict.load(folder)


def _image(shape=(2, 6, 11, 15), seed=0):
  image = np.random.default_rng(seed).normal(50, 20, shape).astype(np.float32)
  image[:, :1], image[:, :, :, -2:] = 0, 0
  return image


def _rank(network):
  return len(network.plan.patch)


@pytest.mark.slow
def test_the_pure_function_agrees_with_prediction_on_the_host(network):
  prepared = network.prepare(_image(), spacing=SPACING[_rank(network)])
  assert prepared.image.shape == (2, 5, 11, 13)
  found = network.predict_logits(prepared)
  image = jnp.moveaxis(jnp.asarray(prepared.image), 0, -1)
  image = image if _rank(network) == 2 else image[None]
  pure = jax.jit(network.logits)(network.variables, image)
  pure = pure if _rank(network) == 2 else pure[0]
  np.testing.assert_allclose(np.moveaxis(pure, -1, 0), found, atol=2e-5)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.logits(network.variables, x) ** 2)))(image)
  assert np.isfinite(gradient).all() and (np.abs(gradient) > 0).all()


def test_one_window_without_mirrors_is_the_mean_of_the_folds(network):
  window = jnp.asarray(_image((1, *network.plan.patch, 2)))
  found = jax.jit(lambda x: network.logits(network.variables, x, mirror=False))(window)
  one = lambda fold: network.network.apply(
    jax.tree.map(lambda leaf: leaf[fold], network.variables), window
  )
  wanted = (one(0)['head0'] + one(1)['head0']) / 2
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  assert np.abs(one(0)['head0'] - one(1)['head0']).max() > 0.1


def test_mirror_images_are_those_of_the_plan(network):
  window = jnp.asarray(_image((1, *network.plan.patch, 2)))
  found = jax.jit(network.mirrored)(network.variables, window)
  turned = jnp.flip(jax.jit(network.mirrored)(network.variables, jnp.flip(window, 2)), 2)
  np.testing.assert_allclose(found, turned, atol=1e-4)
  once = jax.jit(network.apply)(network.variables, window)
  assert np.abs(found - once).max() > 0.01


def test_labels_lie_on_the_grid_of_the_case(network):
  image = _image((2, 7, 16, 24))
  spacing = tuple(value * 0.7 for value in SPACING[_rank(network)])
  labels = network.predict(image, spacing=spacing)
  assert labels.shape == image.shape[1:] and labels.dtype == np.uint8
  assert not labels[:1].any() and not labels[..., -2:].any(), 'outside of the non-zero box'
  assert len(np.unique(labels)) > 1
  shares = network.predict_probabilities(image, spacing=spacing)
  assert shares.shape == (3, *image.shape[1:])
  np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
  # The largest logit has the largest probability.
  np.testing.assert_array_equal(shares.argmax(0), labels)


def test_axes_are_those_of_the_plan(tmp_path):
  """A plan that transposes predicts what the plain one predicts of the transposed image."""
  change = lambda plans, data: plans.update(transpose_forward=[2, 0, 1])
  plain = nnunet_predict.load(nnunet_folders.write(tmp_path / 'a'))
  turned = nnunet_predict.load(nnunet_folders.write(tmp_path / 'b', change=change))
  image = _image((1, 9, 13, 4))
  wanted = plain.predict(image.transpose(0, 3, 1, 2), spacing=(4.0, 2.0, 1.0))
  found = turned.predict(image, spacing=(2.0, 1.0, 4.0))
  np.testing.assert_array_equal(found, wanted.transpose(1, 2, 0))


def test_images_that_do_not_fit(network):
  for image, match in [
    (_image((1, 4, 8, 8)), 'has 1 channels, the network reads 2'),
    (_image((2, 4, 8, 8))[0], 'must be'),
    (np.full((2, 4, 8, 8), np.nan), 'NaN'),
  ]:
    with pytest.raises(errors.UserError, match=match):
      network.predict(image, spacing=(1.0, 1.0, 1.0))


def test_descriptions(network):
  found = network.describe()
  assert found['channels'] == 'scan 0, scan 1' and found['folds'] == 'fold_0, fold_1'
  assert found['output'] == 'labels: 0 background, 1 organ, 2 lesion'


def test_normalisations():
  image = np.array([[[0, 2, 4, 200]]], np.float32)
  inside = image != 0
  run = lambda name, masked=False, **known: nnunet_preprocess.normalise(
    image, nnunet_plans.Normalisation(name, masked, known), inside=inside
  )
  np.testing.assert_allclose(run('ZScoreNormalization').mean(), 0, atol=1e-6)
  np.testing.assert_allclose(run('ZScoreNormalization').std(), 1, rtol=1e-6)
  masked = run('ZScoreNormalization', True)
  assert masked[0, 0, 0] == 0
  np.testing.assert_allclose([masked[inside].mean(), masked[inside].std()], [0, 1], atol=1e-6)
  ct = run('CTNormalization', mean=2, std=2, percentile_00_5=1, percentile_99_5=4)
  np.testing.assert_allclose(ct.ravel(), [-0.5, 0, 1, 1])
  np.testing.assert_allclose(run('RescaleTo01Normalization').ravel(), [0, 0.01, 0.02, 1])
  np.testing.assert_allclose(run('RGBTo01Normalization') * 255, image)
  np.testing.assert_array_equal(run('NoNormalization'), image)
  with pytest.raises(errors.UserError, match='0 to 255'):
    image = 2 * image
    run('RGBTo01Normalization')


def test_regions_are_written_in_their_order():
  labels = nnunet_plans.Labels(('whole', 'core'), (1, 2), True, None)
  logits = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]], np.float32)
  np.testing.assert_array_equal(nnunet_preprocess.to_labels(logits, labels), [0, 1, 2, 2])


def test_resampling_by_itself_along_a_coarse_axis():
  """Planes are interpolated, and along the coarse axis the nearest one is taken."""
  how = nnunet_plans.Resampling(
    'resample_data_or_seg_to_shape', {'order': 1, 'order_z': 0, 'force_separate_z': None}
  )
  data = np.arange(3.0, dtype=np.float32)[None, :, None, None] * np.ones((1, 3, 4, 4), np.float32)
  coarse, fine = (8.0, 1.0, 1.0), (4.0, 1.0, 1.0)
  found = nnunet_preprocess.resample(data, (6, 4, 4), how, spacings=(coarse, fine))
  np.testing.assert_array_equal(found[0, :, 0, 0], [0, 0, 1, 1, 2, 2])
  even = (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)
  found = nnunet_preprocess.resample(data, (6, 4, 4), how, spacings=even)
  np.testing.assert_allclose(found[0, :, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
  torch = nnunet_plans.Resampling('resample_torch_fornnunet', {'force_separate_z': None})
  found = nnunet_preprocess.resample(data, (6, 4, 4), torch, spacings=even)
  np.testing.assert_allclose(found[0, :, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)
  found = nnunet_preprocess.resample(data, (6, 4, 4), torch, spacings=(coarse, fine))
  np.testing.assert_array_equal(found[0, :, 0, 0], [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize('reader', ['SimpleITKIO', 'NibabelIOWithReorient'])
def test_files_keep_their_grid(reader, tmp_path):
  """The file's axes point to the left, the head and the back, with different spacings."""
  affine = np.array([[-2, 0, 0, 9], [0, 0, -3, 8], [0, 1, 0, 7], [0, 0, 0, 1]], float)
  array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(np.int16)
  path = tmp_path / 'case_0000.nii.gz'
  nib.save(nib.Nifti1Image(array, affine), path)
  case = nnunet_files.read([path], reader=reader)
  if reader == 'SimpleITKIO':
    np.testing.assert_array_equal(case.image[0], array.transpose(2, 1, 0))
    assert case.spacing == (3, 1, 2)
  else:  # x to the right, y to the front, z to the head
    np.testing.assert_array_equal(case.image[0], array[::-1, :, ::-1].transpose(1, 2, 0))
    assert case.spacing == (1, 3, 2)
  out = tmp_path / 'labels.nii.gz'
  nnunet_files.write(out, case.image[0], case)
  stored = nib.load(out)
  np.testing.assert_array_equal(stored.get_fdata(), array)
  np.testing.assert_allclose(stored.affine, affine)
  assert stored.get_data_dtype() == np.uint8


def test_files_of_different_grids(tmp_path):
  paths = [tmp_path / f'case_000{n}.nii.gz' for n in range(2)]
  for n, path in enumerate(paths):
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5 + n), np.float32), np.eye(4)), path)
  with pytest.raises(errors.UserError, match='another grid'):
    nnunet_files.read(paths)


def test_state_dict_has_the_names_and_order_of_torch(tmp_path):
  folder = nnunet_folders.write(tmp_path)
  network = nnunet_predict.load(folder)
  one = jax.tree.map(lambda leaf: leaf[0], network.variables)
  state = nnunet_network.state(one)
  assert state['encoder.stages.1.0.convs.0.conv.weight'].shape == (6, 4, 3, 3)
  assert state['decoder.transpconvs.0.weight'].shape == (6, 4, 2, 2)
  assert set(state) == set(network.plan.folds[0].weights)
