import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.papers.spine import mismatch

SIDE = 32


def _circle(radius, centre=(16.0, 16.0)):
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  points = np.stack([np.cos(angle), np.sin(angle)], -1) * radius + np.array(centre)
  return jnp.asarray(points, jnp.float32)[None]


def _outputs(*, logit, contour=None, reconstruction=None):
  out = {
    'contour': _circle(8) if contour is None else contour,
    'segmentation': jnp.asarray(logit, jnp.float32).reshape(1, SIDE, SIDE, 1),
  }
  if reconstruction is not None:
    out['reconstruction'] = reconstruction
  return out


def _disk(radius):
  y, x = np.mgrid[:SIDE, :SIDE]
  return (np.hypot(x - 16, y - 16) <= radius).astype(np.float32)[None, ..., None]


def test_the_mask_to_compare_with_is_thresholded_at_logit_zero():
  logit = np.linspace(-1, 1, SIDE * SIDE)
  wanted = mismatch.own(_outputs(logit=logit))
  assert float(wanted['mask'].mean()) == pytest.approx(0.5)
  gradient = jax.grad(lambda z: mismatch.own(_outputs(logit=z))['mask'].sum())(
    jnp.asarray(logit, jnp.float32)
  )
  assert not gradient.any()


def test_the_wanted_segmentation_is_the_networks_probability():
  logit = np.linspace(-3, 3, SIDE * SIDE)
  other = _outputs(logit=logit[::-1])
  wanted = mismatch.own(_outputs(logit=logit))
  p, q = (1 / (1 + np.exp(-values)) for values in (logit, logit[::-1]))
  np.testing.assert_allclose(np.ravel(wanted['probability']), p, rtol=1e-5)
  found = mismatch.mask_distance(other, wanted, None)
  np.testing.assert_allclose(found, 1 - 2 * (p * q).sum() / (p + q).sum(), rtol=1e-5)


def test_mismatches_vanish_where_the_outputs_agree():
  logit = 200 * (_disk(8) - 0.5)
  outputs = _outputs(logit=logit, reconstruction=jnp.zeros((1, SIDE, SIDE, 1)))
  wanted = mismatch.own(outputs)
  image = jnp.zeros((1, SIDE, SIDE, 1))
  for name, loss in mismatch.MISMATCHES.items():
    assert float(loss(outputs, wanted, image)[0]) == pytest.approx(0, abs=1e-6), name


def test_mismatches_by_hand():
  logit = 200 * (_disk(8) - 0.5)
  rec = jnp.full((1, SIDE, SIDE, 1), 0.25)
  outputs = _outputs(logit=logit, contour=_circle(8) + 2.0, reconstruction=rec)
  wanted = {'contour': _circle(8), 'probability': jnp.asarray(_disk(8))}
  image = jnp.zeros((1, SIDE, SIDE, 1))
  value = lambda name: float(mismatch.MISMATCHES[name](outputs, wanted, image)[0])
  assert value('reg') == pytest.approx(2, abs=1e-5)
  assert value('seg') == pytest.approx(0, abs=1e-6)
  assert value('joint') == pytest.approx(4, abs=1e-4)
  assert value('joint_rec') == pytest.approx(4.25, abs=1e-4)
  assert value('adaptive') == pytest.approx(6.5, abs=1e-4)


def test_score_without_a_reconstruction_is_unknown():
  image = jnp.zeros((1, SIDE, SIDE, 1))
  assert np.isnan(mismatch.score(_outputs(logit=_disk(3)), image)).all()


def test_agreement():
  wanted = {'contour': _circle(8), 'mask': jnp.asarray(_disk(8))}
  same = mismatch.agreement(_outputs(logit=_disk(8) - 0.5), wanted, side=SIDE)
  assert float(same['agree_seg'][0]) == 1 and float(same['agree_reg'][0]) == 1
  assert float(same['agree_error'][0]) == 0
  apart = _outputs(logit=-_disk(8), contour=_circle(8, (16.0, 19.0)))
  other = mismatch.agreement(apart, wanted, side=SIDE)
  assert float(other['agree_seg'][0]) == 0
  assert float(other['agree_error'][0]) == pytest.approx(3, abs=1e-5)
  assert 0.6 < float(other['agree_reg'][0]) < 0.9


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_an_object_is_found_whatever_its_sign_and_scale(sign):
  mask = _disk(8)
  change = sign * 0.01 * mask + np.random.default_rng(0).normal(0, 0.002, mask.shape)
  found = mismatch.object_dice(jnp.asarray(change, jnp.float32), jnp.asarray(mask))
  assert float(found[0]) > 0.9


def test_noise_shows_no_object():
  mask = np.repeat(_disk(8), 8, axis=0)
  change = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)
  found = mismatch.object_dice(jnp.asarray(change), jnp.asarray(mask))
  assert found.shape == (8,)
  share = mask.mean()
  np.testing.assert_allclose(found, share, atol=0.12)
