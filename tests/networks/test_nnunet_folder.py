"""Results folders of nnU-Net v2 as networks of stored images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, networks
from robustmed.data.files import torch_archive
from robustmed.models import weights
from robustmed.networks import (
  description,
  nnunet_folder,
  nnunet_plans,
  nnunet_predict,
  nnunet_preprocess,
  normalise,
  segmentation,
)
from support import nnunet_folders

CLASSES = ('background', 'organ', 'lesion')
SPACING = (3.0, 2.0, 1.0)


def _described(network, **flags):
  return description.make(network, {f'input.{name}': value for name, value in flags.items()})


def _turned(plans, data):
  plans['transpose_forward'] = [2, 0, 1]


def _image(shape, channels=1):
  rng = np.random.default_rng(0)
  return rng.normal(100, 20, (*shape, channels)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('mirror', ['none', 'network'])
@pytest.mark.parametrize('change', [None, _turned])
@pytest.mark.parametrize('rank', [2, 3])
def test_logits_are_those_of_nnunet(rank, change, mirror, tmp_path):
  """On images that need no resampling and no crop; of a network of slices, for single slices."""
  folder = nnunet_folders.write(tmp_path, rank=rank, folds=2, channels=2, change=change)
  network, loaded = networks.load(folder), nnunet_predict.load(folder)
  made = _described(network, mirror=mirror)
  assert made.input.mirror == (mirror if mirror == 'none' else made.input.orientation[:2])
  plan = loaded.plan
  target = plan.spacing if rank == 3 else (5.0, *plan.spacing)
  spacing = tuple(target[plan.forward.index(axis)] for axis in range(3))
  if rank == 3:
    assert made.input.spacing == spacing
    shape = (6, 11, 15)
  else:
    kept = [axis for axis in range(3) if axis != network.slice_axis]
    assert network.slice_axis == plan.forward[0]
    assert made.input.spacing == tuple(spacing[axis] for axis in kept)
    shape = tuple(1 if axis == network.slice_axis else (6, 11, 15)[axis] for axis in range(3))
  image = _image(shape, channels=2)
  prepared = loaded.prepare(np.moveaxis(image, -1, 0), spacing=spacing)
  wanted = loaded.predict_logits(prepared, mirror=mirror == 'network')  # axes of the plan
  wanted = wanted.transpose(0, *(1 + n for n in np.argsort(plan.forward)))
  stored = image
  if rank == 2:  # in the units of the case
    assert made.input.normalise == 'case_zscore'
    mean, std = (f(image, axis=(0, 1, 2)) for f in (np.mean, np.std))
    stored = ((image - mean) / std).squeeze(network.slice_axis)
  predict = segmentation.predictor(network, made, classes=made.output.classes)
  found = jax.jit(predict)(network.variables, jnp.asarray(stored)[None])['head0'][0]
  found = np.moveaxis(found, -1, 0)
  wanted = wanted if rank == 3 else wanted.squeeze(1 + network.slice_axis)
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
  np.testing.assert_array_equal(found.argmax(0), nnunet_preprocess.to_labels(wanted, plan.labels))


@pytest.mark.slow
def test_what_pads_images_to_one_size_changes_nothing(tmp_path):
  network = networks.load(nnunet_folders.write(tmp_path, rank=3))
  made = _described(network)
  predict = jax.jit(segmentation.predictor(network, made, classes=made.output.classes))
  image = _image((5, 11, 15))
  wanted = predict(network.variables, image[None])['head0'][0]
  padded = np.pad(image, ((2, 1), (3, 0), (0, 6), (0, 0)))
  found = predict(network.variables, padded[None])['head0'][0]
  np.testing.assert_allclose(found[2:7, 3:, :15], wanted, atol=1e-4)
  assert (np.asarray(found).argmax(-1)[:2] == 0).all()


def test_what_the_files_say(tmp_path):
  def change(plans, data):
    _turned(plans, data)
    found = plans['configurations']['3d_fullres']
    found['normalization_schemes'] = ['CTNormalization', 'ZScoreNormalization']
    found['use_mask_for_norm'] = [False, True]

  folder = nnunet_folders.write(tmp_path, rank=3, channels=2, change=change)
  network = networks.load(folder / 'fold_0')
  made = _described(network)
  assert made.input.orientation == 'xzy' and made.input.spacing == (2.0, 1.0, 3.0)
  assert made.input.normalise == 'nonzero:ct:-10:90:40:20|inside'
  assert made.input.window == (4, 8, 12) and made.input.overlap == 0.5
  assert made.output.classes == CLASSES and network.values == (0, 1, 2)
  assert network.channels == 2 and network.format == 'nnU-Net v2, 3d_fullres, folds: 0'
  assert 'input.mirror = none (none of xz, which input.mirror=network adds: 4 times the work)' in (
    made.lines
  )
  assert 'label maps are not resampled back' in network.notes[0] and len(network.digest) == 64
  other = nnunet_folders.write(tmp_path / 'b', rank=3, channels=2)
  assert networks.load(other).digest != network.digest
  (folder / 'network.json').write_text('{"input": {"overlap": 0.25}}')
  sided = description.make(network, {}, path=folder)
  assert (sided.input.overlap, sided.origin['input.overlap']) == (0.25, 'network.json')


def test_folders_that_hold_several_or_none(tmp_path):
  for rank in (2, 3):
    nnunet_folders.write(tmp_path, rank=rank)
  with pytest.raises(errors.UserError, match=r'give one: .*__2d, .*__3d_fullres'):
    networks.load(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(
    errors.UserError, match='neither an ONNX file nor a results folder of nnU-Net'
  ):
    networks.load(tmp_path / 'empty')


def _shown(image, plan, what):
  """The normalised image on its own grid, 0 outside of the crop."""
  box, inside = nnunet_preprocess.nonzero(image)
  found = np.zeros_like(image)
  for c, how in enumerate(plan.normalisations):
    found[(c, *box)] = nnunet_preprocess.normalise(image[(c, *box)], how, inside=inside, what=what)
  return found


@pytest.mark.parametrize(
  'names',
  [
    ('ZScoreNormalization', 'ZScoreNormalization'),
    ('CTNormalization', 'NoNormalization'),
    ('RescaleTo01Normalization', 'RGBTo01Normalization'),
  ],
)
@pytest.mark.parametrize('masked', [False, True])
def test_normalisation_is_that_of_the_crop(names, masked, tmp_path):
  image = np.zeros((2, 7, 9, 8), np.float32)
  image[:, 1:6, 2:8, 1:7] = np.random.default_rng(0).uniform(1, 200, (2, 5, 6, 6))
  image[:, 1:3, 2:4, 1:3] = 0  # open to the outside
  image[:, 3, 4:6, 3] = 0  # a hole

  def change(plans, data):
    found = plans['configurations']['3d_fullres']
    found.update(normalization_schemes=list(names), use_mask_for_norm=[masked, masked])
    properties = plans['foreground_intensity_properties_per_channel']
    properties['1'] = properties['0']

  plan = nnunet_plans.read(nnunet_folders.write(tmp_path, rank=3, channels=2, change=change))
  text = nnunet_folder.normalisation(plan)
  apply = normalise.parse(text, channels=2)
  stored = jnp.asarray(np.moveaxis(image, 0, -1))[None]
  both = jnp.concatenate([stored, 0 * stored])  # an image of zeros beside it
  found = jax.jit(apply)(both)
  assert np.isfinite(found).all()
  np.testing.assert_allclose(np.moveaxis(found[0], -1, 0), _shown(image, plan, text), atol=1e-4)
  slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x)))))(both)
  assert np.isfinite(slope).all() and np.abs(slope[0]).max() > 0


def test_a_normalisation_for_each_channel_is_counted():
  with pytest.raises(errors.UserError, match='2 names for 3 channels'):
    normalise.parse('zscore|none', channels=3)


def test_regions_are_written_over_each_other():
  outputs = np.random.default_rng(0).normal(0, 1, (1, 400, 3)).astype(np.float32)
  labels = nnunet_plans.Labels(('whole', 'core', 'inner'), (2, 3, 1), True, None)
  wanted = nnunet_preprocess.to_labels(np.moveaxis(outputs[0], -1, 0), labels)
  classes = ('background', 'inner', 'whole', 'core')  # by their values
  names = segmentation.matched_names(
    labels.names, labels.values, classes=classes, values=(0, 1, 2, 3)
  )
  found = segmentation.logits(outputs, names=names, classes=classes, activation='regions')
  np.testing.assert_array_equal(found[0].argmax(-1), wanted)
  assert len(np.unique(wanted)) == 4


def test_names_of_the_folder():
  match = lambda names, classes: segmentation.matched_names(
    names, (0, 1, 2), classes=classes, values=(0, 1, 2)
  )
  assert match(('background', 'lesion', 'Organ'), CLASSES) == ('background', 'lesion', 'organ')
  assert match(('background', 'a', 'b'), CLASSES) == CLASSES
  assert match(('background', 'a', 'b'), CLASSES[:2]) == ('background', 'organ', 'b')


def test_weights_are_handed_back_under_the_names_of_pytorch(tmp_path):
  folder = nnunet_folders.write(tmp_path / 'a')
  network = networks.load(folder)
  assert network.frozen == {}
  network.export.write(network.variables, tmp_path / 'one.safetensors')
  plan = nnunet_plans.read(folder)
  written = weights.read(tmp_path / 'one.safetensors')
  stored = torch_archive.arrays(plan.folds[0].path, plan.folds[0].weights)
  assert set(written) == set(stored) and 'decoder.seg_layers.0.weight' in written
  for name, value in stored.items():
    np.testing.assert_array_equal(written[name], value)
  two = networks.load(nnunet_folders.write(tmp_path / 'b', folds=2))
  two.export.write(two.variables, tmp_path / 'two.safetensors')
  assert set(weights.read(tmp_path / 'two.safetensors')) == {
    f'fold_{n}.{name}' for n in (0, 1) for name in stored
  }
