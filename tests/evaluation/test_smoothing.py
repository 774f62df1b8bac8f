"""Certified bounds against the truth of networks whose smoothed version is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed import attacks, errors, types
from robustmed.evaluation.smoothing import beside, bounds, sampling

SIGMA, ALPHA = 0.5, 0.05


def _linear(count, seed=0):
  """(labels_of, images, margins / norms): a linear classifier for each of `count` images."""
  rng = np.random.default_rng(seed)
  weight = rng.normal(size=(count, 6, 1, 1)).astype(np.float32)
  image = rng.normal(size=(count, 6, 1, 1)).astype(np.float32) * 0.4
  margin = (weight * image).sum((1, 2, 3)) / np.sqrt((weight**2).sum((1, 2, 3)))

  def labels_of(x):
    tiled = jnp.tile(weight, (len(x) // count, 1, 1, 1))
    return (jnp.sum(tiled * x, axis=(1, 2, 3)) > 0).astype(jnp.int32)

  return labels_of, jnp.asarray(image), margin


def test_radii_of_2000_linear_classifiers():
  """The smoothed label is the sign of the margin, its radius the margin over the norm."""
  labels_of, image, margin = _linear(2000)
  key, how = jax.random.key(0), {'sigma': SIGMA, 'at_once': 50}
  counts = sampling.label_counts(labels_of, image, draws=100, classes=2, key=key, **how)
  top = np.argmax(counts, -1)
  hits = sampling.hits(labels_of, image, jnp.asarray(top), draws=1000, key=key, **how)
  assert np.all(np.asarray(counts).sum(-1) == 100)
  found = bounds.radii(top, np.asarray(hits), draws=1000, sigma=SIGMA, alpha=ALPHA)
  sure = found.labels != bounds.ABSTAIN
  wrong = sure & ((found.labels != (margin > 0)) | (found.radius > np.abs(margin)))
  assert wrong.mean() <= 0.065
  assert wrong.mean() > 0.01  # a bound that never errs is not at this level
  assert found.radius.mean() >= 0.5 * np.abs(margin).mean()
  assert np.all(found.radius[~sure] == 0)


def test_the_shares_are_those_of_the_network():
  labels_of, image, margin = _linear(5, seed=3)
  count = sampling.hits(
    labels_of,
    image,
    jnp.ones(5, jnp.int32),
    sigma=SIGMA,
    draws=20000,
    key=jax.random.key(1),
    at_once=500,
  )
  np.testing.assert_allclose(np.asarray(count) / 20000, stats.norm.cdf(margin / SIGMA), atol=0.015)


@pytest.mark.parametrize('correction', ['holm', 'bonferroni'])
def test_no_pixel_of_an_image_errs_more_often_than_alpha(correction):
  """All pixels lie exactly on the border of what may be said: any label is an error."""
  rng, radius, draws = np.random.default_rng(0), 0.3, 500
  share = stats.norm.cdf(radius / SIGMA)
  hits = rng.binomial(draws, share, (2000, 20, 20))
  made = lambda correction: bounds.at_radius(
    np.ones(hits.shape, int),
    hits,
    draws=draws,
    sigma=SIGMA,
    radius=radius,
    alpha=ALPHA,
    correction=correction,
  )
  any_wrong = (made(correction).labels != bounds.ABSTAIN).any((1, 2)).mean()
  assert 0.01 < any_wrong <= 0.065
  assert (made('none').labels != bounds.ABSTAIN).any((1, 2)).mean() > 0.9


def test_holm_certifies_what_bonferroni_does_and_more():
  rng, draws = np.random.default_rng(1), 300
  hits = rng.binomial(draws, rng.uniform(0.6, 1.0, (3, 30, 30)))
  made = {
    name: bounds.at_radius(
      np.ones(hits.shape, int),
      hits,
      draws=draws,
      sigma=1.0,
      radius=0.5,
      alpha=0.05,
      correction=name,
    ).labels
    for name in ('holm', 'bonferroni')
  }
  assert np.all(made['holm'][made['bonferroni'] == 1] == 1)
  assert (made['holm'] == 1).sum() > (made['bonferroni'] == 1).sum()


def test_every_pixel_has_its_own_radius():
  """A label map by a threshold: the noise of a pixel decides it alone."""
  image = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
  labels_of = lambda x: (x[..., 0] > 0).astype(jnp.int32)
  key, how = jax.random.key(0), {'sigma': 1.0, 'at_once': 100}
  counts = sampling.label_counts(labels_of, image, draws=100, classes=2, key=key, **how)
  top = np.argmax(counts, -1)
  hits = np.asarray(sampling.hits(labels_of, image, jnp.asarray(top), draws=2000, key=key, **how))
  found = bounds.radii(top, hits, draws=2000, sigma=1.0, alpha=ALPHA)
  true = np.abs(np.asarray(image[..., 0]))
  assert np.all(found.radius <= true)
  sure = true > 0.3
  assert np.all(found.labels[sure] == (np.asarray(image[..., 0]) > 0)[sure])
  assert np.all(found.radius[sure] > 0.5 * true[sure])


def test_smoothed_numbers_never_fall_below_their_bound():
  """An indicator reaches the bound exactly, so that its coverage is that of the mean."""
  rng, radius, draws = np.random.default_rng(2), 0.4, 400
  share = rng.uniform(0.3, 0.99, 2000)
  values = rng.uniform(size=(draws, 2000)) < share
  found = bounds.mean_at_radius(values, sigma=SIGMA, radius=radius, alpha=ALPHA)
  true = stats.norm.cdf(stats.norm.ppf(share) - radius / SIGMA)
  assert np.mean(found > true) <= 0.065
  assert np.mean(true - found) < 0.1
  with pytest.raises(errors.UserError, match=r'numbers in \[0, 1\]'):
    bounds.mean_at_radius(2 * values, sigma=SIGMA, radius=radius, alpha=ALPHA)


def test_medians_of_linear_landmarks():
  """Coordinates w . x: within r the median moves by r |w|, no more and no less."""
  rng, radius, draws, count = np.random.default_rng(3), 0.2, 400, 1500
  norms = rng.uniform(0.5, 2, (count, 2))
  centre = rng.normal(size=(count, 2))
  values = centre + SIGMA * norms * rng.normal(size=(draws, count, 2))
  found = bounds.median_at_radius(values, sigma=SIGMA, radius=radius, alpha=ALPHA)
  outside = (found.low > centre - radius * norms) | (found.high < centre + radius * norms)
  assert outside.any(-1).mean() <= 0.065
  width = (found.high - found.low) / (2 * radius * norms)
  assert 1 < np.median(width) < 2.2
  few = bounds.median_at_radius(values[:3], sigma=SIGMA, radius=radius, alpha=ALPHA)
  assert np.isinf(few.high).all()


def test_values_are_those_of_noisy_images():
  image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
  found = sampling.values(
    lambda x: jnp.mean(x, axis=(1, 2, 3)),
    image,
    sigma=0.2,
    draws=400,
    key=jax.random.key(0),
    at_once=20,
  )
  assert found.shape == (400, 3)
  np.testing.assert_allclose(found.mean(0), np.asarray(image).mean((1, 2, 3)), atol=0.01)
  np.testing.assert_allclose(found.std(0), 0.2 / 4, rtol=0.15)
  with pytest.raises(errors.UserError, match='no multiple'):
    sampling.values(lambda x: x, image, sigma=0.2, draws=7, key=jax.random.key(0), at_once=2)


def test_uncertified_pixels_count_as_wrong():
  truth = np.array([[0, 0, 1, 1, 1, 0]])
  found = np.array([[0, 1, 1, -1, 1, -1]])
  # of class 1: right 2; wrong: a false one, and two without a label
  np.testing.assert_allclose(bounds.certified_dice(found, truth, 1), [4 / (4 + 3)])
  fill = [
    np.where(found == -1, np.array([[0, 0, 0, a, 0, b]]), found) for a in (0, 1) for b in (0, 1)
  ]
  dice = [2 * ((f == 1) & (truth == 1)).sum() / ((f == 1).sum() + (truth == 1).sum()) for f in fill]
  assert min(dice) == pytest.approx(bounds.certified_dice(found, truth, 1)[0])


def test_an_attack_of_the_smoothed_network_stays_below_its_certificate():
  """Inside the radius no expected margin changes its sign, a little outside it does."""
  labels_of, image, margin = _linear(24, seed=5)
  key, how = jax.random.key(0), {'sigma': SIGMA, 'at_once': 100}
  counts = sampling.label_counts(labels_of, image, draws=200, classes=2, key=key, **how)
  top = jnp.asarray(np.argmax(counts, -1))
  hits = np.asarray(sampling.hits(labels_of, image, top, draws=4000, key=key, **how))
  found = bounds.radii(np.asarray(top), hits, draws=4000, sigma=SIGMA, alpha=0.001)
  rng = np.random.default_rng(5)
  weight = jnp.asarray(rng.normal(size=(24, 6, 1, 1)), jnp.float32)
  signed = lambda x: jnp.sum(weight * x, axis=(1, 2, 3)) * jnp.where(top == 1, -1.0, 1.0)
  soft = lambda x: jnp.tanh(3 * signed(x))
  objective = attacks.expected(soft, sigma=SIGMA, draws=16, key=key)
  attack = attacks.pgd(norm='l2', num_steps=20)
  for factor, broken in ((1.0, False), (1.2, True)):
    eps = jnp.asarray(found.radius if not broken else factor * np.abs(margin), jnp.float32)
    x = attack(objective, image, eps=eps, key=key).x
    wrong = np.asarray(labels_of(x) != top)  # the smoothed label of a linear network is its own
    sure = found.labels != bounds.ABSTAIN
    assert wrong[sure].mean() == (0 if not broken else pytest.approx(1, abs=0.05))
    assert sure.mean() > 0.5


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match='alpha must lie'):
    bounds.radii(np.ones(3), np.ones(3), draws=5, sigma=1, alpha=2)
  with pytest.raises(errors.UserError, match='between 0 and the 5 draws'):
    bounds.radii(np.ones(3), 9 * np.ones(3), draws=5, sigma=1, alpha=0.1)
  assert bounds.least_draws(radius=0.5, sigma=0.5, alpha=0.05) == 18


# Both bounds of one network -----------------------------------------------------------------------


def _task(outputs):
  blank = dict.fromkeys(('init', 'forward', 'losses', 'metrics'))
  return types.Task(
    **blank,
    predict=outputs,
    objectives={'loss': _loss},
    image_shape=(4, 4, 1),
  )


def _loss(outputs, batch):
  """Minus the margin of the true one of two labels, summed over pixels."""
  (logits,) = outputs.values()
  sign = 2.0 * jnp.maximum(next(iter(batch['target'].values())), 0) - 1
  margin = sign * (logits[..., 1] - logits[..., 0])
  return -jnp.sum(margin.reshape(len(margin), -1), axis=1)


PLAN = beside.Plan(sigma=1.0, draws=320, images=5)


def _table(task, target, image, *, size=None, made=PLAN):
  batch = {
    'image': jnp.asarray(image, jnp.float32),
    'target': target,
    'mask': np.arange(len(image)) < 6,
    'index': np.arange(len(image)),
    'group': np.arange(len(image)) // 2,
  }
  how = {'objective': 'loss', 'space': None, 'made': made, 'classes': 2, 'key': jax.random.key(0)}
  parts = [
    jax.tree.map(lambda leaf, at=first: leaf[at : at + (size or len(image))], batch)
    for first in range(0, len(image), size or len(image))
  ]
  return beside.table(task, {}, parts, **how)


def test_the_bounds_of_linear_classifiers_lie_beside_their_margins():
  """A gradient finds the nearest image of the other class, so attacked says margin > radius."""
  plane = np.zeros((4, 4, 1), np.float32)
  plane[1, 2] = 1.0
  margins = np.array([3.0, 1.2, 0.9, 0.4, -2.0, 5.0, 5.0])
  image = margins.reshape(-1, 1, 1, 1) * plane

  def outputs(variables, x):
    found = jnp.sum(x * plane[None], axis=(1, 2, 3))
    return {'logits': jnp.stack([-found, found], -1)}

  # 0.1 beyond the border the smoothed label is right by 4 %, three deviations of so many draws
  many = PLAN._replace(draws=1600)
  found = _table(_task(outputs), {'label': jnp.ones(7, jnp.int32)}, image, made=many)
  assert list(found['index']) == [*range(5)] * 3 and list(found['group'][:5]) == [0, 0, 1, 1, 2]
  assert sorted(set(found['radius'])) == [0.25, 0.5, 1.0]
  margin = margins[found['index']]
  np.testing.assert_array_equal(found['smoothed'], margin > 0)
  np.testing.assert_array_equal(found['attacked'], margin > found['radius'])
  assert np.all(found['certified'] <= found['attacked'])
  assert np.all(found['certified'][margin >= found['radius'] + 0.5] == 1)
  np.testing.assert_array_equal(found['abstained'][margin > 0], 1 - found['certified'][margin > 0])
  # noise is that of an image, not of its batch
  pairs = _table(_task(outputs), {'label': jnp.ones(7, jnp.int32)}, image, size=2, made=many)
  pd.testing.assert_frame_equal(pairs, found)


def test_alpha_is_that_of_all_radii_together():
  """Every radius is tested at a third of it: a share that alpha alone would certify is not."""
  labels = np.zeros((1, 4, 4), int)
  kept = {}
  for radius in (0.25, 0.5, 1.0):
    share = stats.norm.cdf(radius)
    hits = next(h for h in range(321) if stats.binom.sf(h - 1, 320, share) <= PLAN.alpha)
    kept[radius] = hits, stats.binom.sf(hits - 1, 320, share) <= PLAN.alpha / 3
  assert not all(enough for _, enough in kept.values())
  batch = {'target': {'label': jnp.zeros(1, jnp.int32)}, 'index': [0], 'group': [0]}
  for radius, (hits, enough) in kept.items():
    programs = beside._Programs(
      encode=lambda batch: 0,
      counted=lambda variables, batch, key, hits=hits: (labels[:, 0, 0], np.array([hits])),
      attacked=lambda *args: 0,
      said=lambda *args: labels[:, 0, 0],
    )
    lines = beside._lines(programs, {}, batch, PLAN, jax.random.key(0))
    certified = {line[2]: line[4] for line in lines}
    assert certified[radius] == enough


def test_label_maps_count_pixels_that_are_not_certified_as_wrong():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(5, 4, 4, 1)) * 3
  labels = (image[..., 0] > 0).astype(np.int32)
  labels[:, :, 0] = -1  # does not count, whatever is there
  outputs = lambda variables, x: {'head0': jnp.concatenate([-x, x], -1)}
  found = _table(_task(outputs), {'labels': jnp.asarray(labels)}, image)
  assert np.all(found['certified'] <= found['attacked'] + 1e-9)
  assert np.all(found['attacked'] <= found['smoothed'])
  assert np.all(found.groupby('index')['certified'].diff().dropna() <= 0)
  assert found['certified'].max() > 0.5 and 0 < found['abstained'].max() < 0.9
  assert np.all(found['certified'][found['abstained'] > 0] < 1)
  summary = beside.summary(found.assign(arm='net'))
  assert summary['below'].sum() == 0 and list(summary['images']) == [5, 5, 5]
  np.testing.assert_allclose(
    summary['certified'], found.groupby('radius')['certified'].mean(), rtol=1e-6
  )


def test_a_plan_is_off_by_default_and_mistakes_are_named():
  assert beside.plan({}) is None and beside.plan({'sigma': 0.0, 'draws': 800}) is None
  assert beside.plan({'sigma': 0.5, 'draws': 0, 'images': 0}) == beside.Plan(0.5)
  with pytest.raises(errors.UserError, match='multiple of 80'):
    beside.plan({'sigma': 0.5, 'draws': 100})
  with pytest.raises(errors.UserError, match='above 0'):
    beside.plan({'sigma': -0.5})
  with pytest.raises(errors.UserError, match=r"field of evaluate\.smoothing 'sgima'; did you mean"):
    beside.plan({'sgima': 0.5})
  cost = beside.cost(beside.Plan(1.0, 800), 2)
  assert (cost.gradients, cost.forwards) == (2 * 240, 2 * (80 + 5 * 800 + 24))
