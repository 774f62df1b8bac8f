"""Attacks beside those of torchattacks and foolbox, on one network with the same weights.

Skipped without them. torchattacks pins versions that other peers exclude, so both are installed
without their dependencies: `pip install --no-deps torchattacks==3.5.1 foolbox==3.3.4 eagerpy
GitPython gitdb smmap`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks

reason = 'needs torchattacks and foolbox, see the top of the file'
torch = pytest.importorskip('torch', reason=reason)
torchattacks = pytest.importorskip('torchattacks', reason=reason)
foolbox = pytest.importorskip('foolbox', reason=reason)

COUNT, SIDE, CLASSES = 64, 8, 5
EPS = {'linf': 0.03, 'l2': 0.4}
STEPS, QUERIES, SEEDS = 50, 400, 3


def _weights():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
  return {
    'first': 3 * draw(8, 3, 3, 3),
    'second': 3 * draw(12, 8, 3, 3),
    'dense': 6 * draw(CLASSES, 12),
  }


class Classifier(torch.nn.Module):
  """Two convolutions, then the mean over pixels (`pixels` False) and a dense layer."""

  def __init__(self, weights, *, pixels=False):
    super().__init__()
    for name, value in weights.items():
      self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))
    self.pixels = pixels

  def forward(self, x):
    for name in ('first', 'second'):
      x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode='circular')
      x = torch.nn.functional.softplus(torch.nn.functional.conv2d(x, getattr(self, name)), 5.0)
    x = x - x.mean((2, 3), keepdim=True) if self.pixels else (x * x).mean((2, 3))
    return torch.einsum('nc...,kc->nk...', x, self.dense)


def _predict(weights, x, *, pixels=False):
  """The same of x [b, h, w, 3]: logits [b, k], or [b, h, w, k]; convolutions as matrix products."""
  places = [(i, j) for i in range(3) for j in range(3)]
  for name in ('first', 'second'):
    taps = jnp.stack([weights[name][:, :, i, j] for i, j in places])
    moved = jnp.stack([jnp.roll(x, (1 - i, 1 - j), (1, 2)) for i, j in places])
    x = jax.nn.softplus(5 * jnp.einsum('tbhwi,toi->bhwo', moved, taps)) / 5
  x = x - jnp.mean(x, (1, 2), keepdims=True) if pixels else jnp.mean(x * x, (1, 2))
  return jnp.einsum('b...c,kc->b...k', x, weights['dense'])


def _entropy(logits, labels):
  log_p = jax.nn.log_softmax(logits)
  own = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  return jnp.mean(own, axis=tuple(range(1, own.ndim)))


def _margin(logits, labels):
  """Best wrong logit - true logit: above 0 where the class is wrong."""
  true = labels[:, None] == jnp.arange(CLASSES)[None]
  own = jnp.sum(jnp.where(true, logits, 0), -1)
  return jnp.max(jnp.where(true, -jnp.inf, logits), -1) - own


class _Case:
  """The network in both, images and the labels that it gives them."""

  def __init__(self, dtype, *, pixels=False):
    weights = {name: value.astype(dtype) for name, value in _weights().items()}
    image = np.random.default_rng(1).uniform(size=(COUNT, SIDE, SIDE, 3)).astype(dtype)
    self.module = Classifier(weights, pixels=pixels).eval()
    self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
    self.image, self.x = jnp.asarray(image), torch.tensor(np.moveaxis(image, -1, 1).copy())
    if not pixels:  # centred, so that all classes occur
      with torch.no_grad():
        self.shift = self.module(self.x).mean(0)
      self.module.register_forward_hook(lambda module, given, logits: logits - self.shift)
      shift = jnp.asarray(self.shift.numpy())[None]
      self.predict = lambda x: _predict(self.weights, x) - shift
    else:
      self.predict = lambda x: _predict(self.weights, x, pixels=True)
    with torch.no_grad():
      self.y = self.module(self.x).argmax(1)
    self.labels = jnp.asarray(self.y.numpy())

  def objective(self, x):
    return _entropy(self.predict(x), self.labels)

  def margin(self, x):
    return _margin(self.predict(x), self.labels)


def _theirs(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


def _timed(function, *given):
  begin = time.perf_counter()
  found = jax.block_until_ready(function(*given))
  return found, time.perf_counter() - begin


@pytest.fixture(scope='module')
def case():
  torch.set_num_threads(1)
  made = _Case(np.float32)
  assert len(np.unique(made.labels)) == CLASSES
  logits = _theirs(made.module(made.x)[..., None, None])[:, 0, 0]
  np.testing.assert_allclose(made.predict(made.image), logits, atol=1e-4)
  return made


@pytest.fixture(scope='module')
def table():
  """Rows (attack, number, ours, theirs, seconds of both), printed at the end."""
  rows = []
  yield rows
  print('\n| attack | what | ours | theirs | seconds, ours | seconds, theirs |\n|' + '---|' * 6)
  for name, what, ours, theirs, own, other in rows:
    print(f'| {name} | {what} | {ours:.4g} | {theirs:.4g} | {own:.3g} | {other:.3g} |')


def _length(change, norm):
  change = np.asarray(change).reshape(len(change), -1)
  return np.abs(change).max(1) if norm == 'linf' else np.sqrt((change**2).sum(1))


@pytest.mark.parametrize('pixels', [False, True], ids=['classes', 'pixels'])
@pytest.mark.parametrize('norm', list(EPS))
def test_pgd_follows_the_same_trajectory(norm, pixels, table):
  """From the clean image, in float64, whose gradients have the same signs."""
  eps, step = EPS[norm], EPS[norm] / 4
  with jax.enable_x64(True):
    case = _Case(np.float64, pixels=pixels)
    run = {
      n: jax.jit(
        lambda x, n=n: (
          attacks.pgd(
            norm=norm, num_steps=n, step_size=step, random_start=False, bounds=(0.0, 1.0)
          )(case.objective, x, eps=eps, key=jax.random.key(0)).x
        )
      )
      for n in (1, 2, 5, 10)
    }
    for n, ours in run.items():
      found = np.asarray(ours(case.image))
      known = {'eps': eps, 'alpha': step, 'steps': n, 'random_start': False}
      if norm == 'linf':
        peer = torchattacks.PGD(case.module, **known)
      else:  # its gradient is of a mean over the batch, and its constant not far below the smallest
        peer = torchattacks.PGDL2(case.module, **known, eps_for_division=1e-30)
      adversarial, seconds = _timed(peer, case.x, case.y)
      np.testing.assert_allclose(found, _theirs(adversarial), atol=1e-7, err_msg=f'{n} steps')
      if not pixels:
        model = foolbox.PyTorchModel(case.module, bounds=(0, 1))
        kind = foolbox.attacks.LinfPGD if norm == 'linf' else foolbox.attacks.L2PGD
        peer = kind(abs_stepsize=step, steps=n, random_start=False)
        _, clipped, _ = peer(model, case.x, case.y, epsilons=eps)
        np.testing.assert_allclose(found, _theirs(clipped), atol=1e-7, err_msg=f'{n} steps')
    assert _length(found - case.image, norm).max() <= eps + 1e-9
    again, own = _timed(lambda: run[10](case.image))
    both = again, jnp.asarray(_theirs(adversarial))
    values = [np.mean(np.asarray(case.objective(x))) for x in both]
  name = f'PGD {norm}, {"pixels" if pixels else "classes"}, torchattacks'
  table.append((name, 'mean loss', *values, own, seconds))


@pytest.mark.parametrize('norm', list(EPS))
def test_apgd_reaches_the_loss_of_its_authors(norm, case, table):
  """Mean over examples and random starts, of which a single one may end in another optimum."""
  eps = EPS[norm]
  attack = attacks.apgd(norm=norm, num_steps=STEPS, bounds=(0.0, 1.0))
  run = jax.jit(lambda x, key: attack(case.objective, x, eps=eps, key=key))
  run(case.image, jax.random.key(0))
  peer = torchattacks.APGD(
    case.module, norm={'linf': 'Linf', 'l2': 'L2'}[norm], eps=eps, steps=STEPS
  )
  ours, theirs, own, seconds = [], [], 0, 0
  for seed in range(8):
    found, spent = _timed(run, case.image, jax.random.key(seed))
    assert _length(found.x - case.image, norm).max() <= eps * (1 + 1e-5)
    ours.append(np.mean(found.value))
    own += spent
    torch.manual_seed(seed)
    (_, _, loss, _), spent = _timed(peer.attack_single_run, case.x, case.y)
    theirs.append(np.mean(loss.numpy()))
    seconds += spent
  ours, theirs = np.mean(ours), np.mean(theirs)
  table.append((f'APGD {norm}, torchattacks', 'mean loss', ours, theirs, own, seconds))
  assert ours >= 0.99 * theirs


@pytest.mark.parametrize('norm', list(EPS))
def test_the_smallest_eps_is_that_of_fmn_or_ddn(norm, case, table):
  """Pintor et al. 2021 and Rony et al. 2019 by foolbox, whose FMN in L2 stays far above both."""
  attack = attacks.apgd(norm=norm, num_steps=STEPS, bounds=(0.0, 1.0), random_start=False)
  run = jax.jit(
    lambda x: attacks.minimal_eps(
      attack,
      case.objective,
      x,
      broken=lambda x: case.margin(x) > 0,
      upper=8 * EPS[norm],
      key=jax.random.key(0),
      num_bisections=12,
    )
  )
  run(case.image)
  ours, own = _timed(run, case.image)
  kind = {'linf': foolbox.attacks.LInfFMNAttack, 'l2': foolbox.attacks.DDNAttack}[norm]
  model = foolbox.PyTorchModel(case.module, bounds=(0, 1))
  (_, x, broken), seconds = _timed(lambda: kind(steps=500)(model, case.x, case.y, epsilons=None))
  theirs = np.where(broken, _length(_theirs(x) - case.image, norm), np.inf)
  table.append(
    (
      f'minimal {norm}, foolbox {kind.__name__}',
      'median eps',
      np.median(ours),
      np.median(theirs),
      own,
      seconds,
    )
  )
  # Of the others the cross-entropy is 0 in float32, with all of its gradient.
  assert np.mean(np.isfinite(ours)) > 0.9
  assert np.median(ours) <= 1.01 * np.median(theirs)


@pytest.mark.parametrize('norm', list(EPS))
def test_square_needs_no_more_queries(norm, case, table):
  """Median over examples and seeds; what is not broken counts as all queries."""
  eps = 2 * EPS[norm]
  attack = attacks.square(norm=norm, num_steps=QUERIES, bounds=(0.0, 1.0), fold='trace')
  run = jax.jit(lambda x, key: attack(case.margin, x, eps=eps, key=key, monitor=case.margin))
  run(case.image, jax.random.key(0))
  ours, theirs, own, seconds = [], [], 0, 0
  for seed in range(SEEDS):
    found, spent = _timed(run, case.image, jax.random.key(seed))
    broken = np.asarray(found.monitored) > 0
    ours.append(np.where(broken.any(0), broken.argmax(0) + 1, QUERIES))
    assert _length(found.x - case.image, norm).max() <= eps * (1 + 1e-5)
    own += spent
    peer = torchattacks.Square(
      case.module, norm={'linf': 'Linf', 'l2': 'L2'}[norm], eps=eps, n_queries=QUERIES, seed=seed
    )
    peer.init_hyperparam(case.x)
    torch.manual_seed(seed)
    (queries, x), spent = _timed(peer.attack_single_run, case.x, case.y)
    wrong = np.asarray(case.margin(jnp.asarray(_theirs(x)))) > 0
    theirs.append(np.where(wrong, queries.numpy(), QUERIES))
    seconds += spent
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  for what, reduce in (('median queries', np.median), ('mean queries', np.mean)):
    table.append((f'Square {norm}, torchattacks', what, reduce(ours), reduce(theirs), own, seconds))
  assert np.mean(ours) <= 1.1 * np.mean(theirs)
