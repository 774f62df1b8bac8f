import numpy as np
import pytest

from robustmed import data

SMALL = {
  'name': 'phantom_lumbar_disks',
  'side': 32,
  'train_patients': 5,
  'test_patients': 2,
  'disks_per_patient': 3,
}


@pytest.fixture(scope='session')
def small(tmp_path_factory):
  """A prepared phantom source of 15 and 6 examples at 32 x 32."""
  return data.load({**SMALL, 'cache_dir': str(tmp_path_factory.mktemp('cache'))})


@pytest.fixture
def disk_file():
  """Writes one valid file of the lumbar_disks source; keyword arguments replace arrays."""
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  contour = np.stack([20 + 10 * np.cos(angle), 16 - 4 * np.sin(angle)], axis=-1)

  def write(path, **arrays):
    rng = np.random.default_rng(abs(hash(path.name)) % 2**32)
    arrays = {'img': rng.uniform(5, 900, size=(40, 40)), 'shape': contour, **arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path

  return write
