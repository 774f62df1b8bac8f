"""FGSM, i-FGSM, ti-FGSM, PGD, step rules, OOD and latent search against independent loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors

SHAPE = (3, 4, 2)


def _reference(grad, x, eps, step, num_steps, norm, bounds, *, start=None):
  """PGD in float64 numpy, written from the definition; grad: image -> gradient."""
  centre = np.asarray(x, np.float64)
  rest = tuple(range(1, centre.ndim))
  size = lambda d: np.sqrt((d**2).sum(rest, keepdims=True))

  def place(image):
    delta = image - centre
    if norm == 'linf':
      delta = np.minimum(np.maximum(delta, -eps), eps)
    else:
      delta = delta * np.minimum(1.0, eps / np.maximum(size(delta), 1e-30))
    return np.clip(centre + delta, *bounds) if bounds else centre + delta

  image = place(centre if start is None else np.asarray(start, np.float64))
  for _ in range(num_steps):
    g = grad(image)
    image = place(image + step * (np.sign(g) if norm == 'linf' else g / np.maximum(size(g), 1e-8)))
  return image


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('bounds', [None, (0.0, 1.0)])
def test_pgd_against_numpy(problems, norm, bounds):
  rng = np.random.default_rng(3)
  scale = rng.uniform(0.5, 2.0, SHAPE)
  goal = rng.uniform(-0.5, 1.5, SHAPE)
  grad = lambda x: 3 * scale * (x - goal) ** 2 - 0.5
  near, far = (jnp.asarray(part, jnp.float32) for part in (scale, goal))
  objective = lambda x: jnp.sum(near * (x - far) ** 3 - 0.5 * x, (1, 2))
  x = problems.images(SHAPE)
  eps, step = 0.4, 0.15
  attack = attacks.pgd(norm=norm, num_steps=7, step_size=step, bounds=bounds)
  result = problems.call(attack, objective, x, eps)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
  start = attacks.Threat(norm).start(keys, x, eps)
  want = _reference(grad, x, eps, step, 7, norm, bounds, start=start)
  np.testing.assert_allclose(result.x, want, atol=2e-6)


def test_fgsm_by_hand(problems):
  weights = jnp.asarray([[2.0, -0.1, 0.0], [-1.0, 5.0, 0.3]])
  x = jnp.asarray([[0.5, 0.02, 0.5], [0.5, 0.99, 0.5]])
  result = problems.call(attacks.fgsm(bounds=(0.0, 1.0)), problems.linear(weights), x, 0.05)
  np.testing.assert_allclose(result.x, [[0.55, 0.0, 0.5], [0.45, 1.0, 0.55]], atol=1e-7)
  np.testing.assert_allclose(result.distance, 0.05, rtol=1e-5)
  np.testing.assert_allclose(result.value, [1.1, -0.45 + 5.0 + 0.165], rtol=1e-6)
  euclid = problems.call(attacks.fgsm(norm='l2'), problems.linear(weights), x, 0.05)
  unit = np.asarray(weights) / np.linalg.norm(weights, axis=1, keepdims=True)
  np.testing.assert_allclose(euclid.x, np.asarray(x) + 0.05 * unit, atol=1e-6)


def test_ifgsm_walks_to_the_border_and_tifgsm_the_other_way(problems):
  weights = jnp.asarray([[2.0, -0.1, 0.0]])
  x = jnp.full((1, 3), 0.5)
  objective = problems.linear(weights)
  up = problems.call(attacks.ifgsm(num_steps=10), objective, x, 0.05)
  np.testing.assert_allclose(up.x, [[0.55, 0.45, 0.5]], atol=1e-6)
  down = problems.call(attacks.tifgsm(num_steps=10), objective, x, 0.05)
  np.testing.assert_allclose(down.x, [[0.45, 0.55, 0.5]], atol=1e-6)
  np.testing.assert_allclose(down.value, objective(down.x), rtol=1e-6)
  assert down.value < objective(x) < up.value
  # alpha 0.005 and 10 steps is eps 0.05: the ball never cuts.
  free = problems.call(attacks.ifgsm(num_steps=10, step_size=0.005), objective, x, 9.0)
  np.testing.assert_allclose(free.x, up.x, atol=1e-6)


def test_adamax_on_signs_by_hand(problems):
  """Its state runs on through projections: signs + + - of a zigzag objective, worked out here."""
  weights = jnp.asarray([1.0, -2.0, 0.5])
  objective = lambda x: jnp.sum(jnp.sin(7 * x) * weights[None], 1)
  x = jnp.asarray([[0.1, 0.4, 0.7], [0.2, 0.0, 0.3]])
  eps, steps = 0.25, 12
  attack = attacks.pgd(num_steps=steps, relative_step=0.2, rule='adamax', random_start=False)
  result = problems.call(attack, objective, x, eps)
  centre = np.asarray(x, np.float64)
  image, mean, most = centre.copy(), np.zeros_like(centre), np.zeros_like(centre)
  turned, before = 0, None
  for t in range(1, steps + 1):
    g = np.sign(7 * np.cos(7 * image) * np.asarray(weights, np.float64))
    turned += before is not None and bool(np.any(g != before))
    before = g
    mean = 0.9 * mean + 0.1 * g
    most = np.maximum(0.999 * most, np.abs(g) + 1e-8)
    image = image + 0.2 * eps * mean / (1 - 0.9**t) / most
    image = np.clip(image, centre - eps, centre + eps)
  np.testing.assert_allclose(result.x, image, atol=1e-5)
  assert turned > 1


@pytest.mark.parametrize('rule', ['momentum', 'adamax', optax.scale_by_adam(), optax.trace(0.5)])
def test_every_rule_climbs_to_the_linear_optimum(problems, rule):
  weights = np.random.default_rng(0).normal(size=SHAPE[1:]).astype(np.float32)
  x = problems.images(SHAPE)
  attack = attacks.pgd(num_steps=25, relative_step=0.2, rule=rule, random_start=False)
  result = problems.call(attack, problems.linear(weights[None]), x, 0.1)
  np.testing.assert_allclose(result.x, np.asarray(x) + 0.1 * np.sign(weights), atol=1e-6)


def test_best_iterate_beats_an_overshooting_last_one(problems):
  x = jnp.zeros((2, 3))
  objective = problems.bowl(jnp.full((2, 3), 0.1))
  settings = {'num_steps': 4, 'step_size': 0.15, 'random_start': False}
  last = problems.call(attacks.pgd(**settings), objective, x, 1.0)
  best = problems.call(attacks.pgd(**settings, select='best'), objective, x, 1.0)
  np.testing.assert_allclose(last.x, 0.0, atol=1e-6)  # 0, .15, 0, .15, 0
  np.testing.assert_allclose(best.x, 0.15, atol=1e-6)
  np.testing.assert_allclose(best.value, -3 * 0.05**2, rtol=1e-5)


def test_ood_reproduces_target_outputs(problems):
  """From an image of another kind to the outputs of the wanted one, noise within [-1, 1]."""
  matrix = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)) / 3, jnp.float32)
  predict = lambda image: image.reshape(image.shape[0], -1) @ matrix
  inside, other = problems.images(SHAPE, seed=1), problems.images(SHAPE, seed=2)
  loss = lambda out, wanted: jnp.mean((out - wanted) ** 2, 1)
  objective = attacks.mismatch(predict, predict(inside), loss)
  attack = attacks.ood(num_steps=150, step_size=0.01, bounds=(0.0, 1.0))
  result = problems.call(attack, objective, other, 2.0)
  assert np.all(objective(other) > 1e-3)
  assert np.all(result.value < 0.02 * objective(other))
  assert np.all(np.linalg.norm(np.asarray(result.x - other), axis=(1, 2)) <= 2.0 + 1e-5)
  np.testing.assert_allclose(
    result.distance, np.linalg.norm(np.asarray(result.x - other), axis=(1, 2)), rtol=1e-5
  )


def test_ood_starts_at_a_random_point_of_its_ball(problems):
  """Algorithm 1, lines 1 and 2: clip(x + xi) with |xi| <= eps; in L2 xi lies on the sphere."""
  x = 0.5 * jnp.ones((3, 8, 8, 1))
  objective = problems.linear(jnp.ones((1, 8, 8, 1)))
  start = lambda **more: problems.call(attacks.ood(num_steps=0, **more), objective, x, 2.0)
  np.testing.assert_allclose(start().distance, 2.0, rtol=1e-5)
  boxed = start(bounds=(0.4, 0.6))
  np.testing.assert_allclose(boxed.x, np.clip(start().x, 0.4, 0.6), atol=1e-6)
  assert not np.allclose(boxed.x[0], boxed.x[1])
  np.testing.assert_array_equal(start(random_start=False).x, x)


def test_latent_search_moves_the_code(problems):
  decoder = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
  decode = lambda code: jax.nn.sigmoid(code @ decoder)
  objective = lambda code: jnp.sum(decode(code), 1)
  code = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
  attack = attacks.latent(num_steps=20, step_size=0.05)
  result = problems.call(attack, objective, code, 0.15)
  assert np.all(result.value > objective(code))
  assert np.all(np.abs(result.x - code) <= 0.15 + 1e-6)
  with pytest.raises(errors.UserError, match='no bounds'):
    attacks.latent(bounds=(0.0, 1.0))


def test_noise_is_the_start_alone(problems):
  x = problems.images(SHAPE)
  objective = problems.linear(jnp.ones((1, *SHAPE[1:])))
  result = problems.call(attacks.noise(norm='l2'), objective, x, 0.3)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
  np.testing.assert_allclose(result.x, attacks.Threat('l2').start(keys, x, 0.3), atol=1e-6)
  assert attacks.noise().num_gradients == 0


def test_the_notebook_snippet(problems):
  my_network = problems.network(SHAPE[1:])
  my_loss, target = lambda out, target: (out - target) ** 2, jnp.zeros(3)
  x = problems.images(SHAPE)

  attack = attacks.pgd(norm='linf', num_steps=20, step_size=0.01, bounds=(0.0, 1.0))
  objective = lambda image: my_loss(my_network(image), target)
  run = jax.jit(lambda x, eps, key: attack(objective, x, eps=eps, key=key))
  result = run(x, 0.07, jax.random.key(0))
  assert np.all(result.value > objective(x))
  assert result.x.shape == x.shape
  assert np.all(result.distance <= 0.07 + 1e-6)


@pytest.mark.parametrize('eps', [-0.1, float('nan'), [0.1, 0.2, -1.0]])
def test_an_eps_below_zero_is_a_mistake(eps):
  x = jnp.full((3, 2, 2, 1), 0.5)
  objective = lambda image: jnp.sum(image, (1, 2, 3))
  with pytest.raises(errors.UserError, match=r'eps must be 0 or more, got (-0\.1|nan|-1)$'):
    attacks.pgd(num_steps=1)(objective, x, eps=eps, key=jax.random.key(0))


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    (lambda: attacks.pgd(step_size=0.1, relative_step=0.1), 'not both'),
    (lambda: attacks.pgd(rule='adamx'), "did you mean 'adamax'"),
    (
      lambda: attacks.pgd(rule=optax.adam(1.0)),
      'against the gradient; .* without its learning rate',
    ),
    (lambda: attacks.pgd(rule=optax.sgd(0.1, momentum=0.9)), 'against the gradient'),
    (lambda: attacks.pgd(norm='l1'), "unknown norm 'l1'"),
    (lambda: attacks.pgd(bounds=(0.0, None)), 'bounds need both sides'),
    (lambda: attacks.pgd(bounds=[(0, 1), (0.2, 0.8)]), r'per channel: \(\(low, low'),
    (lambda: attacks.pgd(fold='mean'), "unknown fold 'mean'"),
    (lambda: attacks.pgd(select='first'), "unknown select 'first'"),
    (lambda: attacks.pgd(keep='all'), "unknown keep 'all'"),
    (lambda: attacks.pgd(restarts=2, random_start=False), 'one and the same run'),
    (lambda: attacks.pgd(num_steps=-1), 'num_steps >= 0'),
    (lambda: attacks.pgd(num_steps=0, score_last=False), 'num_steps=0'),
    (lambda: attacks.make('pdg'), "did you mean 'pgd'"),
    (lambda: attacks.make('pgd', num_step=3), "did you mean 'num_steps'"),
    (lambda: attacks.make('fgsm', step_size=3), "setting of attack 'fgsm' 'step_size'"),
    (lambda: attacks.make('tifgsm', minimise=False), "'minimise'"),
  ],
)
def test_mistakes_when_made(wrong, says):
  with pytest.raises(errors.UserError, match=says):
    wrong()
