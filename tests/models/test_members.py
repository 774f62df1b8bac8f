import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.models import members


@pytest.fixture(scope='module')
def network():
  module = members.Classifier(3, (5, 4))
  image = jax.random.normal(jax.random.key(0), (7, 3)).at[:, 2].set(jnp.arange(7) % 3)
  return module, module.init(jax.random.key(1), image), image


def test_every_example_is_answered_by_its_own_member(network):
  module, variables, image = network
  logit = np.asarray(module.apply(variables, image)['logit'])
  weights = jax.tree.map(np.asarray, variables['params']['mlp'])
  for number, (x, y, member) in enumerate(np.asarray(image)):
    hidden, own = np.array([x, y]), int(member)
    for place in range(3):
      hidden = np.maximum(hidden, 0) if place else hidden
      hidden = hidden @ weights[f'kernel{place}'][own] + weights[f'bias{place}'][own, 0]
    np.testing.assert_allclose(logit[number], hidden, rtol=1e-5, atol=1e-6)


def test_members_learn_from_their_own_examples_alone(network):
  module, variables, image = network
  only = lambda variables: module.apply(variables, image)['logit'][image[:, 2] == 1].sum()
  gradient = jax.grad(only)(variables)['params']['mlp']
  for leaf in jax.tree.leaves(gradient):
    assert (leaf[0] == 0).all() and (leaf[2] == 0).all()
  assert any((leaf[1] != 0).any() for leaf in jax.tree.leaves(gradient))
  moved = jax.grad(lambda image: module.apply(variables, image)['logit'].sum())(image)
  assert (moved[:, 2] == 0).all() and (moved[:, :2] != 0).any()


def test_members_begin_apart(network):
  for leaf in jax.tree.leaves(network[1]):
    assert (leaf[0] != leaf[1]).all()


def test_apart_and_together_are_inverse_and_check_the_shape():
  image = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(members.join(*members.split(image)), image)
  with pytest.raises(errors.UserError, match=r'reads images \[b, 3\], got \(2, 2\)'):
    members.split(image[:, :2])
