import jax.numpy as jnp
import numpy as np

from robustmed.metrics import deformation


def _linear(matrix, side=8):
  rows, columns = np.mgrid[:side, :side]
  place = np.stack([rows, columns], axis=-1)
  return jnp.asarray(place @ (np.asarray(matrix, float).T - np.eye(2)), jnp.float32)[None]


def test_the_jacobian_of_a_linear_map_is_its_determinant():
  for matrix in ([[1.2, 0.3], [-0.1, 0.9]], [[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[0, 1], [1, 0]]):
    found = deformation.jacobian(_linear(matrix))
    assert found.shape == (1, 8, 8)
    np.testing.assert_allclose(found, np.linalg.det(matrix), atol=1e-4)


def test_a_fold_is_where_the_map_runs_backwards():
  field = np.zeros((2, 8, 8, 2), np.float32)
  field[1, :4, :, 0] = -2 * np.arange(4)[:, None]  # row r goes to -r in the upper half
  share = deformation.fold_share(jnp.asarray(field))
  assert share[0] == 0 and 0.3 < share[1] <= 0.5
