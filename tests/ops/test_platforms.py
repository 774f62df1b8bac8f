"""A program for another platform than that of this process has the forms of that platform."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import platforms
from robustmed.ops import conv
from robustmed.process import parallel
from robustmed.tasks import networks

SHAPE = (8, 8, 2)


class Net(nn.Module):
  @nn.compact
  def __call__(self, image, train=False):
    del train
    down = conv.conv(
      image, self.param('a', nn.initializers.ones, (3, 3, 2, 4)), padding=1, strides=2
    )
    return conv.conv_transpose(down, self.param('b', nn.initializers.ones, (2, 2, 1, 4)), strides=2)


def _dilated(text):
  """How many convolutions of a program have zeros between the entries of their input."""
  return len(re.findall(r'lhs_dilate = \[2, 2\]', text))


def _gradient(predict):
  return jax.jit(jax.grad(lambda image, variables: jnp.sum(predict(variables, image) ** 2)))


def _lowered(function, *args):
  return function.trace(*args).lower(lowering_platforms=(platforms.current(),)).as_text()


def test_what_was_traced_here_gets_the_native_form_elsewhere():
  network = networks.bind(Net(), image_shape=SHAPE)
  variables = jax.eval_shape(network.init, jax.random.key(0))
  args = jax.ShapeDtypeStruct((2, *SHAPE), np.float32), variables
  program = _gradient(network.predict)
  assert platforms.current() == 'cpu' and not _dilated(_lowered(program, *args))
  with platforms.tracing_for('tpu'):
    # forward through the transposed convolution, and back through the strided one
    assert _dilated(_lowered(program, *args)) == 2
  assert not _dilated(_lowered(program, *args))


@pytest.mark.parametrize(('platform', 'sums'), [('cpu', 1), ('tpu', 3)])
def test_sums_of_many_arrays_are_one_collective_where_devices_share_threads(platform, sums):
  tree = {name: np.ones((2, 3), np.float32) for name in 'abc'}
  with platforms.tracing_for(platform):
    function = lambda tree: parallel.psum(tree)
    traced = jax.make_jaxpr(function, axis_env=[(parallel.AXIS, 2)])(tree)
  assert str(traced).count('psum') == sums


def test_the_contexts_are_those_of_the_thread_and_end_with_an_error():
  with pytest.raises(ValueError, match='oops'), platforms.tracing_for('tpu'), conv.using('fast'):
    assert platforms.current() == 'tpu' and conv._is_fast(None)
    raise ValueError('oops')
  assert platforms.current() == jax.default_backend()
