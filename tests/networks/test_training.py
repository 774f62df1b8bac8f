"""The variables of a network for a training, and the files that hold them afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, networks
from robustmed.models import weights
from robustmed.networks import training
from support import audited


def _function():
  variables = {
    'b': {'kernel': np.ones((1, 2), np.float32)},
    'a': {'count': np.array(3), 'shift': np.arange(2, dtype=np.float32)},
  }
  apply = lambda v, x: x @ v['b']['kernel'] + v['a']['shift']
  return networks.from_function(apply, variables, channels=1)


def test_what_is_trained_comes_back_in_its_place():
  network = _function()
  made = training.split(network, freeze='shift$')
  assert made.frozen == {'a/count': 'stored as int64', 'a/shift': 'named by freeze'}
  assert jax.tree.map(np.shape, made.variables) == {
    'params': {'00002': (1, 2)},
    'fixed': {'00000': (), '00001': (2,)},
  }
  assert jax.tree.all(jax.tree.map(np.array_equal, made.join(made.variables), network.variables))
  assert training.lines(network, made) == [
    'network: 2 weights are trained, 3 numbers stay as they are (stored as int64: a/count; named '
    'by freeze: a/shift)'
  ]
  assert set(training.split(_function()).variables['params']) == {'00001', '00002'}


@pytest.mark.parametrize(
  ('freeze', 'said'), [('.', 'has no weights to train'), ('(', 'is no regular expression')]
)
def test_nothing_left_to_train(freeze, said):
  with pytest.raises(errors.UserError, match=said):
    training.split(_function(), freeze=freeze)


def test_a_file_is_written_with_the_weights_that_were_trained(tmp_path):
  network = networks.load(audited.brightness(tmp_path / 'net.onnx', last='Softmax'))
  made = training.split(network)
  trained = jax.tree.map(lambda leaf: leaf * 1.5, made.variables)
  export = training.export_of(network)
  assert export.suffix == '.onnx' and 'FILE' in export.loading
  export.write(made.join(trained), tmp_path / 'new.onnx')
  again = networks.load(tmp_path / 'new.onnx')
  image = jax.random.normal(jax.random.key(0), (2, 8, 6, 1))
  predict = jax.jit(network.predict)
  np.testing.assert_array_equal(predict(again.variables, image), predict(made.join(trained), image))
  np.testing.assert_array_equal(
    jax.jit(again.predict)(again.variables, image), predict(made.join(trained), image)
  )
  assert again.digest != network.digest


def test_a_function_is_written_as_tensors(tmp_path):
  network = _function()
  export = training.export_of(network)
  export.write(network.variables, tmp_path / f'net{export.suffix}')
  found = weights.read(tmp_path / 'net.safetensors')
  assert set(found) == {'a/count', 'a/shift', 'b/kernel'} and found['a/count'].dtype == np.int64
  np.testing.assert_array_equal(found['a/shift'], [0, 1])
  with pytest.raises(errors.UserError, match="tensor 'x' is complex64"):
    weights.write(tmp_path / 'bad.safetensors', {'x': np.zeros(1, np.complex64)})
  assert not (tmp_path / 'bad.safetensors').exists()
  weights.write(tmp_path / 'own.safetensors', {'w': jnp.ones((2, 3)), 'empty': np.zeros((0, 2))})
  assert weights.read(tmp_path / 'own.safetensors')['empty'].shape == (0, 2)
