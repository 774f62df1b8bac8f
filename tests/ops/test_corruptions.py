import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robustmed import errors
from robustmed.data.brain import phantom
from robustmed.ops import corruptions


def heads(count=3):
  fields = {**phantom.DEFAULTS, 'side': 16}
  cases = [phantom.draw(np.random.default_rng(n), fields) for n in range(count)]
  return jnp.asarray(np.stack([phantom.standardise(case) for case in cases]))


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize('planar', [False, True])
@pytest.mark.parametrize('name', corruptions.CORRUPTIONS)
def test_conforms(name, planar):
  """Shape, identity at 0, background, sign, determinism, neighbours, growth: one program."""
  image = heads()[:, 8] if planar else heads()
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def run(x, severity, keys):
    return corruptions.corrupt(name, x, severity=severity, keys=keys)

  levels = corruptions.CORRUPTIONS[name].levels
  severity = jnp.asarray([0.0, levels[0], levels[-1]])
  result = run(image, severity, KEYS)
  assert result.shape == image.shape and result.dtype == image.dtype
  np.testing.assert_array_equal(result[0], image[0])
  background = np.asarray((image == 0).all(-1))
  assert background.mean() > 0.2 and (np.asarray(result)[background] == 0).all()
  assert (result >= 0).all() and np.isfinite(result).all()
  np.testing.assert_array_equal(run(image, severity, KEYS), result)
  other = run(image.at[1].set(0.5), severity, KEYS)
  np.testing.assert_array_equal(other[2], result[2])
  size = lambda x: np.sqrt(np.mean((x - image) ** 2, axis=tuple(range(1, image.ndim))))
  changes = [size(run(image, jnp.full(3, level, jnp.float32), KEYS)) for level in levels]
  assert (np.diff(changes, axis=0) > 0).all() and (changes[0] > 1e-3).all()
  assert (size(run(image, jnp.full(3, levels[-1], jnp.float32), KEYS[::-1])) != changes[-1]).any()


def test_unknown_name_and_scalar_severity():
  with pytest.raises(errors.UserError, match=r"corruption 'rice'.*did you mean 'rician'"):
    corruptions.corrupt('rice', heads(), severity=0.1, keys=KEYS)
  one = corruptions.corrupt('bias_field', heads(), severity=0.1, keys=KEYS)
  two = corruptions.corrupt('bias_field', heads(), severity=jnp.full(3, 0.1), keys=KEYS)
  np.testing.assert_allclose(one, two, atol=1e-6)


def test_poisson_noise_counts_photons_at_a_dose():
  values = jnp.tile(jnp.array([-0.2, 0.3, 1.2]), (400, 1))[..., None]
  for dose in (0.5, 20.0):
    found = corruptions.corrupt('poisson', values[None], severity=1 / dose, keys=KEYS[:1])[0]
    counts = np.asarray(found[..., 0], np.float64) * corruptions.PHOTONS * dose
    np.testing.assert_array_equal(found[:, 0], values[:, 0])
    np.testing.assert_allclose(counts[:, 1:], np.round(counts[:, 1:]), atol=2e-3)
    wanted = np.array([0.3, 1.2]) * corruptions.PHOTONS * dose
    np.testing.assert_allclose(counts[:, 1:].mean(0), wanted, atol=4 * np.sqrt(wanted.max() / 400))
    np.testing.assert_allclose(counts[:, 1:].var(0), wanted, rtol=0.3)


def test_poisson_noise_of_more_photons_than_32_bits_count():
  image = jnp.array([30000.0, 1.0])[None, None, :, None] * jnp.ones((1, 400, 1, 1))
  found = np.asarray(
    corruptions.corrupt('poisson', image, severity=1e-3, keys=KEYS[:1]), np.float64
  )
  for place, value in enumerate((30000.0, 1.0)):
    sample, deviation = found[0, :, place, 0], np.sqrt(value * 1e-3 / corruptions.PHOTONS)
    assert abs(sample.mean() - value) < 4 * deviation / 20
    np.testing.assert_allclose(sample.std(), deviation, rtol=0.15)


def test_rician_noise_has_the_distribution_of_rice():
  image = jnp.full((40, 40, 1), 0.3)
  sample = np.asarray(corruptions.rician(jax.random.key(1), image, 0.2)).ravel()
  assert stats.kstest(sample, stats.rice(0.3 / 0.2, scale=0.2).cdf).pvalue > 1e-3
  rayleigh = np.asarray(corruptions.rician(jax.random.key(2), image * 0, 0.2)).ravel()
  assert stats.kstest(rayleigh, stats.rayleigh(scale=0.2).cdf).pvalue > 1e-3


def test_bias_field_is_smooth_shared_and_as_large_as_told():
  image = heads(1)[0]
  field = np.asarray(jnp.log(corruptions.bias_field(jax.random.key(4), image, 0.5) / image))
  inside = np.asarray((image > 0.01).all(-1))
  assert np.abs(field[inside]).max() == pytest.approx(0.5, abs=0.02)
  assert np.abs(field[inside].mean()) < 0.02
  np.testing.assert_allclose(field[inside], field[inside][:, :1].repeat(4, 1), atol=1e-4)
  both = inside[1:] & inside[:-1]
  assert np.abs(np.diff(field[..., 0], axis=0)[both]).max() < 0.2


@pytest.mark.slow
def test_motion_keeps_the_sum_and_shifts_along_lines():
  image = heads(1)[0][8]
  key = jax.random.key(5)
  shifts = np.asarray(corruptions._path(key, 64, jnp.float32))
  frequency = np.abs(np.fft.fftfreq(64))
  assert (shifts[:, frequency <= 0.03] == 0).all() and np.abs(shifts).max() <= 1
  assert (shifts[:, frequency > 0.05] != 0).mean() > 0.9
  # without its last step, the magnitude, the sum is that of the still centre
  bright = image + 1
  moved = corruptions.motion(key, bright, 0.02)
  np.testing.assert_allclose(moved.sum((0, 1)), bright.sum((0, 1)), rtol=2e-3)
  with pytest.raises(errors.UserError, match='two spatial axes'):
    corruptions.motion(key, jnp.zeros((8, 1)), 0.1)


def test_a_constant_path_is_a_plain_shift(monkeypatch):
  """An independent reference: all lines shifted alike roll the image."""
  image = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8, 10, 2)), jnp.float32)
  path = lambda key, count, dtype: jnp.stack([jnp.full(count, 2 / 8), jnp.full(count, -3 / 10)])
  monkeypatch.setattr(corruptions, '_path', path)
  moved = corruptions.motion(jax.random.key(0), image, 1.0)
  # at the highest frequency a shift by whole cells is exact as well
  np.testing.assert_allclose(moved, np.roll(image, (2, -3), axis=(1, 2)), atol=1e-5)
