"""Pretrained weights: names, shapes, both kinds of files, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, models
from robustmed.models import weights

YOLO = {'width': 1 / 32, 'num_classes': 2}


def drawn(name, **fields):
  module = models.MODELS[name](**fields)
  shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), shape)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def as_torch(variables, *, only=''):
  """Tensors that a PyTorch network of these variables would save, with random content."""
  rng, found = np.random.default_rng(0), {}
  for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
    keys = [key.key for key in where][1:]
    name = weights.name_of(keys)
    if name.startswith(only):
      shape = [leaf.shape[i] for i in (3, 2, 0, 1)] if leaf.ndim == 4 else leaf.shape
      found[name] = rng.normal(size=shape).astype(np.float32)
  return found


def write_safetensors(path, tensors, **changes):
  header, body = {'__metadata__': {'format': 'pt'}}, b''
  for name, value in tensors.items():
    kind = {'f4': 'F32', 'f2': 'F16', 'i8': 'I64'}[value.dtype.str[1:]]
    header[name] = {
      'dtype': kind,
      'shape': list(value.shape),
      'data_offsets': [len(body), len(body) + value.nbytes],
    }
    body += value.tobytes()
  for name, change in changes.items():
    header[name].update(change)
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + body)
  return path


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('model_2/m_0/cv1/conv/kernel', 'model.2.m.0.cv1.conv.weight'),
    ('model_9/cv2/bn/scale', 'model.9.cv2.bn.weight'),
    ('model_23/cv3/bn/var', 'model.23.cv3.bn.running_var'),
    ('model_24_m_1/bias', 'model.24.m.1.bias'),
    ('features_28/kernel', 'features.28.weight'),
  ],
)
def test_paths_become_pytorchs_names(path, name):
  assert weights.name_of(path.split('/')) == name


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
def test_a_whole_detector_is_read(tmp_path, kind):
  variables = drawn('yolov5s', **YOLO)
  tensors = as_torch(variables)
  tensors['model.0.bn.num_batches_tracked'] = np.array(7)
  path = tmp_path / f'yolov5s.{kind}'
  if kind == 'npz':
    np.savez(path, **tensors)
  else:
    write_safetensors(path, tensors)
  found = weights.load(str(path), variables, model='yolov5s')
  kernel = found['params']['model_3']['conv']['kernel']
  np.testing.assert_array_equal(kernel, tensors['model.3.conv.weight'].transpose(2, 3, 1, 0))
  running = found['batch_stats']['model_8']['cv1']['bn']['mean']
  np.testing.assert_array_equal(running, tensors['model.8.cv1.bn.running_mean'])
  same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert jax.tree.all(jax.tree.map(same, found, variables))


def test_a_head_of_other_classes_and_a_decoder_are_drawn(tmp_path):
  variables = drawn('yolov5s', **YOLO)
  np.savez(tmp_path / 'coco.npz', **as_torch(drawn('yolov5s', **{**YOLO, 'num_classes': 5})))
  found = weights.load(str(tmp_path / 'coco.npz'), variables, model='yolov5s')
  assert not found['params']['model_24_m_0']['kernel'].any()
  assert found['params']['model_23']['cv3']['conv']['kernel'].all()
  unet = drawn('landmark_unet', width=1 / 32)
  tensors = as_torch(unet, only='features.')
  assert len(tensors) == 32
  tensors['classifier.0.weight'] = np.ones((2, 2), np.float32)
  np.savez(tmp_path / 'vgg19.npz', **tensors)
  found = weights.load(str(tmp_path / 'vgg19.npz'), unet, model='landmark_unet')
  assert found['params']['features_34']['kernel'].all()
  assert not found['params']['up_0']['conv_0']['kernel'].any()


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda t: t.pop('model.5.bn.bias'), r"no tensor 'model\.5\.bn\.bias'"),
    (lambda t: t.update(odd=np.zeros(2)), r"tensor 'odd' \(1 such\) has no place"),
    (
      lambda t: t.update({'model.5.bn.bias': np.zeros(3)}),
      r"'model\.5\.bn\.bias' of shape \[3\] does not fit \[8\]",
    ),
    (lambda t: t['model.5.bn.bias'].fill(np.nan), r"'model\.5\.bn\.bias' has NaN"),
  ],
)
def test_files_that_do_not_fit_name_the_tensor(tmp_path, change, words):
  variables = drawn('yolov5s', **YOLO)
  tensors = as_torch(variables)
  change(tensors)
  np.savez(tmp_path / 'bad.npz', **tensors)
  with pytest.raises(errors.UserError, match=r'bad\.npz: .*' + words):
    weights.load(str(tmp_path / 'bad.npz'), variables, model='yolov5s')


def test_damaged_and_foreign_files_are_one_line(tmp_path):
  with pytest.raises(errors.UserError, match=r'best\.pt: pretrained weights are a \.safetensors'):
    weights.read(tmp_path / 'best.pt')
  with pytest.raises(errors.UserError, match='there is no such file'):
    weights.read(tmp_path / 'none.npz')
  np.savez(tmp_path / 'pickled.npz', a=np.array([{}], object))
  with pytest.raises(errors.UserError, match=r'pickled\.npz: cannot be read'):
    weights.read(tmp_path / 'pickled.npz')
  short = tmp_path / 'short.safetensors'
  short.write_bytes((10**6).to_bytes(8, 'little') + b'{}')
  with pytest.raises(errors.UserError, match='longer than the file'):
    weights.read(short)
  one = {'a': np.ones(4, np.float32)}
  for change, words in (
    ({'dtype': 'F8_E4M3'}, "tensor 'a' is of type F8_E4M3"),
    ({'shape': [5]}, "tensor 'a' does not match"),
    ({'data_offsets': [0, 99]}, "tensor 'a' does not match"),
  ):
    path = write_safetensors(tmp_path / 'odd.safetensors', one, a=change)
    with pytest.raises(errors.UserError, match=words):
      weights.read(path)


def test_half_precision_is_widened(tmp_path):
  path = write_safetensors(tmp_path / 'half.safetensors', {'a': np.array([1.5], np.float16)})
  assert weights.read(path)['a'] == 1.5
  bits = np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16
  tensors = {'a': bits.astype(np.uint16).view(np.float16)}
  path = write_safetensors(tmp_path / 'brain.safetensors', tensors, a={'dtype': 'BF16'})
  np.testing.assert_array_equal(weights.read(path)['a'], [1.0, -2.5])


def test_a_network_with_more_parts_starts_from_one_with_fewer():
  shapes = lambda **fields: jax.eval_shape(
    models.MODELS['blob_unet'](widths=(2, 3), **fields).init,
    jax.random.key(0),
    jnp.zeros((1, 4, 4, 1)),
  )
  fill = lambda tree, value: jax.tree.map(lambda leaf: np.full(leaf.shape, value), tree)
  small, large = fill(shapes(), 1.0), fill(shapes(anchors=1, box_features=(2, 3)), 0.0)
  found = weights.graft(small, large)
  assert jax.tree.structure(found) == jax.tree.structure(large)
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert (leaf == float('boxes' not in str(path))).all(), path
  assert set(found['params']) == {*small['params'], 'boxes'}
  with pytest.raises(errors.UserError, match='has no place in the new one'):
    weights.graft(large, small)
