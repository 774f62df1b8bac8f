"""APGD, Square and the search for the smallest eps find known optima."""

import dataclasses
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors

apgd = sys.modules['robustmed.attacks.apgd']
square = sys.modules['robustmed.attacks.square']
SHAPE = (3, 4, 4, 2)


def test_apgd_checkpoints_of_the_paper():
  # p = 0, .22, .41, .57, .70, .80, .87, .93, .99: the sequence printed with algorithm 1.
  assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
  assert apgd.checkpoints(1) == []
  for steps in (2, 7, 20, 1000):
    marks = apgd.checkpoints(steps)
    assert marks == sorted(set(marks))
    assert all(0 < mark < steps for mark in marks)


@dataclasses.dataclass(frozen=True, eq=False)
class _Around(attacks.Threat):
  """A box of [0, 1] whose random start is a given one."""

  begun: jax.Array | None = None

  def __init__(self, begun):
    super().__init__('linf', (0.0, 1.0))
    object.__setattr__(self, 'begun', begun)

  def start(self, keys, centre, radius):
    return self.begun


def _apgd_reference(grad, value, x, eps, num_steps, bounds):
  """Algorithm 1 for one example in float64, linf, without a random start."""
  place = lambda z: np.clip(np.clip(z, x - eps, x + eps), *bounds)
  step, now, before = eps * min(2, num_steps / 10), x.copy(), x.copy()
  best, best_value, last_value = x.copy(), -np.inf, -np.inf
  mark_value, halved, rises, mark = -np.inf, False, 0, 0
  halvings = 0
  for k in range(num_steps):
    f = value(now)
    rises += k > 0 and f > last_value
    last_value = f
    if f > best_value:
      best, best_value = now.copy(), f
    if k in apgd.checkpoints(num_steps):
      stalled = rises < 0.75 * (k - mark)
      stuck = not halved and best_value <= mark_value
      halved = stalled or stuck
      if halved:
        step, now, halvings = step / 2, best.copy(), halvings + 1
      mark, mark_value, rises = k, best_value, 0
    z = place(now + step * np.sign(grad(now)))
    new = z if k == 0 else place(now + 0.75 * (z - now) + 0.25 * (now - before))
    before, now = now, new
  if value(now) > best_value:
    best = now
  return best, halvings


def test_sea_is_three_runs_of_apgd_each_from_the_projected_best_of_the_one_before(problems):
  objective, x, eps = problems.network(SHAPE[1:]), problems.images(SHAPE), 0.1
  monitor = lambda x: jnp.cos(9 * objective(x))
  for select in ('best', 'monitor'):
    sea = attacks.sea(num_steps=10, select=select, bounds=(0.0, 1.0))
    found = problems.call(sea, objective, x, eps, monitor=monitor)
    start, keys = None, jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
    for steps, radius in ((3, 2.0), (3, 1.5), (4, 1.0)):
      last = radius == 1
      threat = attacks.Threat('linf', (0.0, 1.0))
      start = threat.start(keys, x, eps) if start is None else start
      start = threat.project(start, x, radius * eps)
      # APGD that begins where it is told, in the ball around x
      told = dataclasses.replace(
        attacks.apgd(num_steps=steps, select=select, score_last=last),
        threat=_Around(start),
        solver=sea.solver,  # whose first step is 2 eps
      )
      start = problems.call(told, objective, x, radius * eps, monitor=monitor).x
    np.testing.assert_allclose(found.x, start, atol=1e-6)
    assert np.all(found.distance <= eps + 1e-6)
  with_restarts = problems.call(
    attacks.sea(num_steps=10, restarts=3, bounds=(0.0, 1.0)), objective, x, eps
  )
  alone = problems.call(attacks.sea(num_steps=10, bounds=(0.0, 1.0)), objective, x, eps)
  assert np.all(with_restarts.value >= alone.value)


@pytest.mark.parametrize('num_steps', [20, 10])  # the second begins with half the step
def test_apgd_against_numpy(num_steps):
  rng = np.random.default_rng(0)
  x, scale = rng.uniform(size=(2, 6)), rng.uniform(0.5, 9.0, size=6)
  goal = x + np.asarray([[0.03], [0.3]]) * rng.choice([-1, 1], size=(2, 6))
  objective = lambda image: (
    -jnp.sum(
      jnp.asarray(scale, jnp.float32)[None] * (image - jnp.asarray(goal, jnp.float32)) ** 2, 1
    )
  )
  attack = attacks.apgd(num_steps=num_steps, bounds=(0.0, 1.0), random_start=False)
  result = attack(objective, jnp.asarray(x, jnp.float32), eps=0.1, key=jax.random.key(0))
  total = 0
  for i in range(2):
    want, halvings = _apgd_reference(
      lambda z, i=i: -2 * scale * (z - goal[i]),
      lambda z, i=i: -(scale * (z - goal[i]) ** 2).sum(),
      x[i],
      0.1,
      num_steps,
      (0, 1),
    )
    total += halvings
    np.testing.assert_allclose(result.x[i], want, atol=1e-5)
  assert total > 1


def test_apgd_gets_closer_than_a_fixed_step(problems):
  x = problems.images(SHAPE)
  objective = problems.bowl(x + 0.031)
  ours = problems.call(attacks.apgd(num_steps=60, random_start=False), objective, x, 0.1)
  fixed = attacks.pgd(num_steps=60, relative_step=0.25, select='best', random_start=False)
  theirs = problems.call(fixed, objective, x, 0.1)
  assert np.all(ours.value > 0.1 * theirs.value)
  np.testing.assert_allclose(ours.x, x + 0.031, atol=1e-3)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_apgd_finds_the_linear_optimum(problems, norm):
  weights = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  x = problems.images(SHAPE)
  result = problems.call(attacks.apgd(norm=norm, num_steps=30), problems.linear(weights), x, 0.2)
  dual = np.abs(weights).sum((1, 2, 3)) if norm == 'linf' else np.sqrt((weights**2).sum((1, 2, 3)))
  gain = result.value - problems.linear(weights)(x)
  np.testing.assert_allclose(gain, 0.2 * dual, rtol=1e-3)


def test_square_needs_no_gradient_and_finds_the_linf_optimum(problems):
  """The objective is a step function: its gradient is zero everywhere."""
  signs = np.random.default_rng(0).choice([-1.0, 1.0], SHAPE).astype(np.float32)
  x = problems.images(SHAPE)
  objective = lambda image: jnp.sum((image - x) * signs > 0.199, (1, 2, 3)).astype(jnp.float32)
  result = problems.call(attacks.square(num_steps=600), objective, x, 0.2)
  assert np.all(result.value == np.prod(SHAPE[1:]))
  blind = problems.call(attacks.pgd(num_steps=20), objective, x, 0.2)
  assert np.all(blind.value < 0.2 * np.prod(SHAPE[1:]))
  assert attacks.square(num_steps=600).num_gradients == 0
  assert attacks.square(num_steps=600).num_forwards == 601


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_square_keeps_only_better_proposals(problems, norm):
  shape = {'linf': (2, 3, 4, 5, 1), 'l2': SHAPE}[norm]
  x = problems.images(shape)
  weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  objective = problems.linear(weights)
  attack = attacks.square(norm=norm, bounds=(0.0, 1.0), num_steps=300, fold='trace')
  result = problems.call(attack, objective, x, 0.3, monitor=objective)
  np.testing.assert_allclose(result.value, result.monitored.max(0), rtol=1e-6)
  np.testing.assert_allclose(result.value, objective(result.x), rtol=1e-4, atol=1e-5)
  assert np.all(result.value > result.monitored[:20].max(0))
  rest = problems.axes(x)
  dual = np.abs(weights).sum(rest) if norm == 'linf' else np.sqrt((weights**2).sum(rest))
  assert np.all(result.value - objective(x) > 0.4 * 0.3 * dual)
  assert np.all((result.x >= 0) & (result.x <= 1))


def test_square_windows():
  sides = square.sides((10, 20), 1000, 0.8)
  assert sides.shape == (1000, 2)
  np.testing.assert_array_equal(sides[0], [10, 13])  # sqrt(.8 * 200) = 12.6, cut to the image
  assert np.all(np.diff(sides[:, 1]) <= 0)
  assert sides[-1, 0] == round((0.8 / 2**9 * 200) ** 0.5) == 1
  masks = jax.vmap(lambda key: square._window(key, jnp.asarray([2, 3]), (4, 5, 2)))(
    jax.random.split(jax.random.key(0), 200)
  )
  assert np.all(masks.sum((1, 2, 3)) == 2 * 3 * 2)
  share = np.asarray(masks, np.float64).mean((0, 3))
  assert np.all(share > 0.05)  # every position is reached


def test_square_on_codes(problems):
  weights = np.random.default_rng(0).choice([-1.0, 1.0], (2, 6)).astype(np.float32)
  x = problems.images((2, 6))
  result = problems.call(attacks.square(num_steps=250), problems.linear(weights), x, 0.1)
  np.testing.assert_allclose(result.x, x + 0.1 * weights, atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_minimal_eps_of_a_linear_model(problems, norm):
  """margin / ||w||_dual, inf where `upper` is too little, 0 where it is broken already."""
  weights = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  dual = np.abs(weights).sum(1) if norm == 'linf' else np.linalg.norm(weights, axis=1)
  x = problems.images((4, 5))
  want = np.asarray([0.02, 0.31, 0.9, -0.1])
  margin = jnp.asarray(want * dual, jnp.float32)
  score = lambda image: problems.linear(weights)(image) - problems.linear(weights)(x) - margin
  attack = attacks.fgsm(norm=norm)
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def search(x, upper):
    broken = lambda image: score(image) >= 0
    key = jax.random.key(0)
    return attacks.minimal_eps(
      attack, score, x, broken=broken, upper=upper, key=key, num_bisections=12
    )

  found = search(x, jnp.full(4, 0.5))
  np.testing.assert_allclose(found[:2], want[:2], atol=0.5 / 2**12 + 1e-6)
  assert np.isinf(found[2])
  assert found[3] == 0
  np.testing.assert_allclose(search(x, jnp.full(4, 2.0))[2], 0.9, atol=2.0 / 2**12 + 1e-6)
  assert np.all(
    score(attack(score, x, eps=found.at[2:].set(0.0), key=jax.random.key(0)).x)[:2] >= 0
  )


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_fmn_ends_at_the_border(problems, norm):
  """Its smallest change that breaks is the known one, unless eps does not reach it."""
  weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  dual = np.abs(weights).sum(1) if norm == 'linf' else np.linalg.norm(weights, axis=1)
  x, want = problems.images((3, 5)), np.asarray([0.02, 0.31, 0.9])
  margin = jnp.asarray(want * dual, jnp.float32)
  score = lambda image: problems.linear(weights)(image) - problems.linear(weights)(x) - margin
  attack = attacks.fmn(norm=norm, num_steps=100, fold='trace')
  seen = lambda image: (score(image) > 0, attack.threat.distance(image, x))
  run = jax.jit(lambda x: attack(score, x, eps=0.5, key=jax.random.key(0), monitor=seen))
  broken, size = run(x).monitored
  found = np.where(broken, size, np.inf).min(0)
  np.testing.assert_allclose(found[:2], want[:2], rtol=0.01)
  assert np.isinf(found[2])
  np.testing.assert_allclose(size[-1, 2], 0.5, rtol=1e-5)
  told = {'broken': lambda image: score(image) > 0, 'upper': 0.5, 'key': jax.random.key(0)}
  smallest = jax.jit(lambda x: attacks.minimal_eps(attack, score, x, **told))(x)
  np.testing.assert_allclose(smallest, found, rtol=1e-6)
  with pytest.raises(errors.UserError, match='random_start'):
    attacks.fmn(restarts=2)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_fmn_crosses_a_border_that_slopes_only_come_near(problems, norm):
  """Where the slope falls on the way, the border of its tangent lies before the real one."""
  weights = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  dual = np.abs(weights).sum(1) if norm == 'linf' else np.linalg.norm(weights, axis=1)
  x, want = problems.images((4, 5)), np.asarray([0.02, 0.11, 0.23, 0.31], np.float32)
  far = problems.linear(weights / dual[:, None])
  score = lambda image: 1 - jnp.exp(1 - (far(image) - far(x)) / want)
  attack = attacks.fmn(norm=norm, num_steps=100)
  told = {'broken': lambda image: score(image) > 0, 'upper': 0.5, 'key': jax.random.key(0)}
  smallest = jax.jit(lambda x: attacks.minimal_eps(attack, score, x, **told))(x)
  np.testing.assert_allclose(smallest, want, rtol=0.01)


def test_square_may_start_with_stripes(problems):
  x = problems.images((2, 4, 3, 2))
  attack = attacks.square(num_steps=0, start='stripes')
  change = np.asarray(problems.call(attack, problems.linear(jnp.ones(x.shape)), x, 0.1).x - x)
  np.testing.assert_allclose(np.abs(change), 0.1, atol=1e-6)
  np.testing.assert_allclose(change, change[:, :1].repeat(4, 1), atol=1e-6)
  assert len(np.unique(change[:, 0] > 0)) == 2 and np.any(change[0] * change[1] < 0)
  with pytest.raises(errors.UserError, match='linf'):
    attacks.square(norm='l2', start='stripes')


def _counted(function, seen):
  """The function of x; every pass of it that runs adds 1 to `seen`, a gradient 2 more."""

  @jax.custom_vjp
  def tap(outputs):
    return outputs

  def backward(_, cotangent):
    jax.debug.callback(lambda: seen.append(2))
    return (cotangent,)

  tap.defvjp(lambda outputs: (outputs, None), backward)

  def counted(x):
    jax.debug.callback(lambda _: seen.append(1), x[0, 0])  # of x, or it is taken out of loops
    return tap(function(x))

  return counted


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_a_warm_start_costs_one_and_a_half_searches(problems, norm):
  """It finds nearly what eleven searches find, on a network whose margins bend."""
  rng = np.random.default_rng(2)
  hidden = jnp.asarray(rng.normal(size=(6, 16)), jnp.float32)
  last = jnp.asarray(rng.normal(size=16), jnp.float32)
  x = jnp.asarray(rng.normal(size=(24, 6)), jnp.float32)
  network = lambda image: jnp.tanh(image @ hidden) @ last
  sign = jnp.sign(network(x))
  seen = []
  outputs = attacks.Shared(_counted(network, seen))
  score = lambda image: -sign * outputs(image)
  broken = lambda image: sign * outputs(image) < 0
  attack = attacks.pgd(norm=norm, num_steps=20, relative_step=0.25, select='best')
  # one device, as a callback would run on each
  run = jax.jit(
    lambda warm: attacks.minimal_eps(
      attack, score, x, broken=broken, upper=1.0, key=jax.random.key(0), warm_start=warm
    ),
    static_argnums=0,
  )
  plain = run(False)
  jax.effects_barrier()
  one = 3 * 20 + 1
  assert sum(seen) == 11 * one + 12  # the last forward pass of each, and whether it broke
  seen.clear()
  warm = run(True)
  jax.effects_barrier()
  assert 1.4 * one < sum(seen) <= 1.5 * one
  known = np.isfinite(plain)
  assert known.sum() > 15 and np.isfinite(warm)[known].all()
  assert np.median(warm[known] / plain[known]) < 1.06
  assert np.mean(warm[known] / plain[known]) < 1.25
  # what is found breaks: at that eps an attack has
  again = jax.jit(lambda eps, key: attack(score, x, eps=eps, key=key).x)
  ends = [again(warm, jax.random.key(seed)) for seed in range(2)]
  assert np.mean(broken(ends[0]) | broken(ends[1]), where=known) > 0.6


def test_a_warm_start_of_a_linear_model_needs_no_more_gradients(problems):
  weights = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  x, want = problems.images((4, 5)), np.asarray([0.02, 0.31, 0.9, -0.1])
  margin = jnp.asarray(want * np.abs(weights).sum(1), jnp.float32)
  score = lambda image: problems.linear(weights)(image) - problems.linear(weights)(x) - margin
  found = attacks.minimal_eps(
    attacks.fgsm(),
    score,
    x,
    broken=lambda image: score(image) >= 0,
    upper=0.5,
    key=jax.random.key(0),
    num_bisections=12,
    warm_start=True,
  )
  np.testing.assert_allclose(found[:2], want[:2], atol=0.5 / 2**12 + 1e-6)
  assert np.isinf(found[2]) and found[3] == 0


def test_minimal_eps_wants_a_verdict_per_example(problems):
  x = problems.images((3, 2))
  with pytest.raises(errors.UserError, match='one bool per example'):
    attacks.minimal_eps(
      attacks.fgsm(),
      problems.bowl(0.0),
      x,
      broken=lambda image: jnp.sum(image, 1),
      upper=1.0,
      key=jax.random.key(0),
    )
