"""Networks from elsewhere: files and functions, what is guessed, outputs as logits of labels."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from robustmed import errors, networks
from robustmed.networks import checkpoint, description, normalise, segmentation
from support import audited

CLASSES = ('background', 'organ', 'lesion')


@pytest.mark.parametrize('axes', [2, 3])
def test_a_file_gives_variables_and_a_function(axes, tmp_path):
  found = networks.load(audited.brightness(tmp_path / 'net.onnx', axes=axes, last='Softmax'))
  assert found.channels == 1 and found.shape == (None,) * axes and found.activation == 'softmax'
  assert len(found.digest) == 64 and found.multiple() == 2
  shown = f'Network({found.name!r}, ONNX, images [b, {"any, " * axes}1], '
  assert repr(found).startswith(shown) and '\n' not in repr(found) and len(repr(found)) < 300
  image = jax.random.normal(jax.random.key(0), (2, *(8, 6, 4)[:axes], 1))
  outputs = jax.jit(found.predict)(found.variables, image)
  assert outputs.shape == (*image.shape[:-1], 3)
  np.testing.assert_allclose(outputs.sum(-1), 1, rtol=1e-5)


def test_a_function_is_a_network_too():
  variables = {'w': np.ones((1, 2), np.float32)}
  found = networks.from_function(lambda v, x: x @ v['w'], variables, channels=1)
  other = networks.from_function(lambda v, x: x @ v['w'], {'w': variables['w'] * 2}, channels=1)
  assert found.multiple() == 1 and found.digest != other.digest
  assert found.output_shape((4, 6)) == (4, 6, 2)


def test_a_network_of_images_that_no_memory_holds_is_refused(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx')
  model = onnx.load(path)
  for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
    axis.dim_value = 10**9
  path.write_bytes(model.SerializeToString())
  with pytest.raises(errors.UserError, match='more than memory holds'):
    networks.load(path)


def test_flag_before_sidecar_before_guess(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx')
  sidecar = {'input': {'normalise': 'scale:255'}, 'output': {'classes': list(CLASSES)}}
  (tmp_path / 'network.json').write_text(json.dumps(sidecar))
  network = networks.load(path)
  made = description.make(network, {'input.overlap': 0.25}, path=path)
  assert made.input.normalise == 'scale:255' and made.output.classes == CLASSES
  assert made.origin['input.overlap'] == 'flag' and made.origin['output.classes'] == 'network.json'
  assert 'input.orientation = yx (guess)' in made.lines
  with pytest.raises(errors.UserError, match=r'configuration: output\.classes must be like'):
    description.make(network, {'output.classes': (True,)})
  flagged = description.make(network, {'input.normalise': 'none'}, path=path)
  assert flagged.input.normalise == 'none' and flagged.origin['input.normalise'] == 'flag'
  (tmp_path / 'network.json').write_text('{"input": {"normalize": "none"}}')
  with pytest.raises(errors.UserError, match=r'network\.json.*input\.normalise'):
    description.make(network, {}, path=path)
  for empty in ('{}', '[]', 'null'):
    (tmp_path / 'network.json').write_text(empty)
    with pytest.raises(errors.UserError, match=r'network\.json says nothing'):
      description.make(network, {}, path=path)


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('input.channels', 3, 'takes 1 channels'),
    ('input.orientation', 'xz', 'letters of yx'),
    ('input.window', (8,), '2 positive sides'),
    ('input.normalise', 'window:1', 'takes 2 numbers, window:LOW:HIGH, such as window:-100:240'),
    ('input.normalise', 'zscore:1', 'zscore takes 0 numbers$'),
    ('output.kind', 'boxes', 'output.kind'),
    ('output.activation', 'tanh', 'output.activation'),
  ],
)
def test_fields_that_do_not_fit(field, value, said, tmp_path):
  network = networks.load(audited.brightness(tmp_path / 'net.onnx'))
  with pytest.raises(errors.UserError, match=said):
    description.make(network, {field: value})


def test_files_that_are_no_network(tmp_path):
  (tmp_path / 'net.pth').write_bytes(b'')
  with pytest.raises(errors.UserError, match=r'torch\.onnx\.export'):
    networks.load(tmp_path / 'net.pth')
  with pytest.raises(errors.UserError, match='no network at'):
    networks.load(tmp_path / 'other.onnx')


def test_normalisations_by_hand():
  image = jnp.array([0.0, 2.0, 4.0]).reshape(1, 3, 1)
  flat = lambda text: np.asarray(normalise.parse(text)(image)).ravel()
  np.testing.assert_allclose(flat('none'), [0, 2, 4])
  np.testing.assert_allclose(flat('scale:4'), [0, 0.5, 1])
  np.testing.assert_allclose(flat('window:1:3'), [0, 0.5, 1])
  np.testing.assert_allclose(flat('standard:2:4'), [-0.5, 0, 0.5])
  np.testing.assert_allclose(flat('ct:1:3:2:0.5'), [-2, 0, 2])
  np.testing.assert_allclose(flat('minmax'), [0, 0.5, 1], atol=1e-6)
  np.testing.assert_allclose(flat('zscore'), np.array([-1, 0, 1]) * 1.5**0.5, rtol=1e-5)


def test_channels_and_labels():
  network = networks.from_function(lambda v, x: x, {}, channels=1, name='net')
  names = lambda given, count: segmentation.channel_names(network, given, count, CLASSES)[0]
  assert names((), 3) == CLASSES and names((), 2) == CLASSES[1:]
  assert names(('lesion', 'background', 'organ'), 3) == ('lesion', 'background', 'organ')
  with pytest.raises(errors.UserError, match='4 output channels, the folder 3 labels'):
    names((), 4)
  with pytest.raises(errors.UserError, match="label 'lesion', which net does not know"):
    names(('background', 'organ', 'liver'), 3)


def test_outputs_become_logits():
  outputs = jnp.array([[0.1, 0.2, 0.3, 0.4]])
  names = ('liver', 'background', 'lesion', 'organ')
  found = segmentation.logits(outputs, names=names, classes=CLASSES, activation='softmax')
  np.testing.assert_allclose(jax.nn.softmax(found), [[0.3, 0.4, 0.3]], rtol=1e-5)
  alone = segmentation.logits(
    outputs[:, :1] * 9, names=('organ',), classes=CLASSES[:2], activation='sigmoid'
  )
  np.testing.assert_allclose(jax.nn.softmax(alone), [[0.1, 0.9]], rtol=1e-5)
  raw = segmentation.logits(outputs, names=names, classes=CLASSES, activation='none')
  np.testing.assert_allclose(raw[0, 1:], [0.4, 0.3])


@pytest.mark.parametrize('orientation', ['zyx', 'xyz', '-x-yz', 'y-zx'])
def test_windows_and_the_order_of_axes(orientation):
  """A network that is no function of the place gives the same in windows and turned."""
  network = networks.from_function(
    lambda v, x: jnp.concatenate([-x, x], -1), {}, channels=1, shape=(None,) * 3
  )
  image = jax.random.normal(jax.random.key(0), (1, 6, 4, 8, 1))
  flags = {'input.orientation': orientation, 'input.window': (4, 4, 4), 'input.normalise': 'none'}
  made = description.make(network, flags)
  made = made._replace(output=made.output._replace(classes=CLASSES[:2]))
  predict = segmentation.predictor(network, made, classes=CLASSES[:2])
  found = jax.nn.softmax(predict({}, image)['head0'])
  np.testing.assert_allclose(found[..., 1:], jax.nn.sigmoid(2 * image), atol=1e-5)


@pytest.mark.parametrize(
  ('orientation', 'turn'),
  [
    ('z-yx', lambda a: a[:, :, ::-1]),
    ('-x-yz', lambda a: a.transpose(0, 3, 2, 1, 4)[:, ::-1, ::-1]),
    ('RAS', lambda a: a.transpose(0, 3, 2, 1, 4)[:, ::-1]),
    ('LIP', lambda a: a.transpose(0, 3, 1, 2, 4)[:, :, ::-1, ::-1]),
  ],
)
def test_a_network_that_knows_directions(orientation, turn):
  """It is shown the turned image, and its outputs are turned back."""
  slope = np.arange(6 * 4 * 8, dtype=np.float32).reshape(1, 6, 4, 8, 1)
  weight = jnp.asarray(turn(slope))
  apply = lambda v, x: jnp.concatenate([-x * weight, x * weight], -1)
  network = networks.from_function(apply, {}, channels=1, shape=(None,) * 3)
  flags = {'input.orientation': orientation, 'input.normalise': 'none'}
  affine = np.diag([-1.0, 2.0, 3.0, 1.0])  # x of the files leads left, y to the front, z up
  made = description.make(network, flags, affines=[affine, affine])
  made = made._replace(output=made.output._replace(classes=CLASSES[:2]))
  image = jax.random.normal(jax.random.key(0), slope.shape)
  found = segmentation.predictor(network, made, classes=CLASSES[:2])({}, image)['head0']
  np.testing.assert_allclose(found[..., 1:], image * slope, rtol=1e-5)


def test_directions_that_cannot_be_told():
  network = networks.from_function(lambda v, x: x, {}, channels=1, shape=(None,) * 3)
  flags = {'input.orientation': 'RAS'}
  affines = [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])]
  with pytest.raises(errors.UserError, match='lead to LAS and RAS; store them alike'):
    description.make(network, flags, affines=affines)
  with pytest.raises(errors.UserError, match='for images with a place in a patient'):
    description.make(network, flags)
  for wrong in ('z--yx', 'zyx-', 'RAX'):
    with pytest.raises(errors.UserError, match='a minus before those that are flipped'):
      description.make(network, {'input.orientation': wrong}, affines=affines[:1])


def test_a_packed_network_is_that_of_its_folder(tmp_path):
  card = {
    'arm': 'std',
    'module': {
      'name': 'nnunet',
      'width': 0.125,
      'dtype': 'float32',
      'num_classes': 3,
      'channels': 1,
      'strides': [2, 2],
    },
    'input': {'normalise': 'case_zscore'},
    'output': {'kind': 'segmentation', 'classes': ['background', 'a', 'b']},
    'slice_axis': 0,
  }
  module = checkpoint.module_of(card['module'])
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
  variables = module.init(jax.random.key(0), image)
  checkpoint.pack(card, variables, tmp_path / 'std')
  found = networks.load(tmp_path / 'std')
  expected = module.apply(variables, image)['head0']
  np.testing.assert_array_equal(found.predict(found.variables, image), expected)
  assert found.slice_axis == 0 and found.stated['input.normalise'][0] == 'case_zscore'
  with pytest.raises(errors.UserError, match='no network at nothing/here'):
    networks.load('nothing/here')


@pytest.mark.parametrize('name', networks.shipped.names())
def test_networks_that_come_with_the_package(name):
  about = networks.shipped.about(name)
  assert {'data', 'licence', 'command', 'scores'} <= set(about)
  found = networks.load(name)
  assert found.output_shape((16, 16)) == (16, 16, len(found.stated['output.classes'][0]))


def test_the_networks_of_the_package_are_small():
  sizes = [path.stat().st_size for path in networks.shipped.FOLDER.rglob('*') if path.is_file()]
  assert sum(sizes) < 6 * 2**20


def test_the_normalisations_of_the_documentation_are_those_that_there_are():
  text = (pathlib.Path(__file__).parents[2] / 'docs' / 'networks.md').read_text()
  table = text.split('| `input.normalise` |')[1].split('\n\n')[0]
  first = [line.split('|')[1] for line in table.splitlines() if line.startswith('| `')]
  listed = [name.strip().strip('`') for cell in first for name in cell.split(',')]
  assert sorted(one.split(':')[0] for one in listed) == sorted(normalise.NUMBERS)
  for one in listed:
    assert one.count(':') == normalise.NUMBERS[one.split(':')[0]]
    normalise.parse(one if ':' not in one else normalise.EXAMPLES[one.split(':')[0]].split()[-1])
