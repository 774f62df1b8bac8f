"""Attacks beside torchattacks, foolbox, ART and AutoAttack, on one network with the same weights.

Skipped without them, see requirements.txt. With ATTACK_TABLE=FILE.csv in the environment the
numbers and CPU seconds go to that file; XLA_FLAGS=--xla_backend_optimization_level=3 makes ours
those of users, as tests compile without optimisation.
"""

import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import attacks

reason = 'needs PyTorch, foolbox, ART and AutoAttack, see tests/peers/requirements.txt'
torch = pytest.importorskip('torch', reason=reason)
foolbox = pytest.importorskip('foolbox', reason=reason)
autoattack = pytest.importorskip('pyautoattack', reason=reason)
evasion = pytest.importorskip('art.attacks.evasion', reason=reason)
classification = pytest.importorskip('art.estimators.classification', reason=reason)
fab_pt = pytest.importorskip('pyautoattack.fab_pt', reason=reason)
square_pt = pytest.importorskip('pyautoattack.square', reason=reason)
autopgd = pytest.importorskip('pyautoattack.autopgd_base', reason=reason)

from support import attack_peer_cases as peer_cases  # noqa: E402

try:  # not everywhere: it pins versions that other peers exclude
  import torchattacks
except ImportError:
  torchattacks = None

BOX = (0.0, 1.0)
WIDE = (-9.0, 10.0)  # for ART's PGD, which clips to the box before it projects onto the ball
STEPS, SEARCH, QUERIES, SEEDS = 40, 500, 300, 3
KINDS, NORMS = ('classes', 'pixels'), ('linf', 'l2')
AA = {'linf': 'Linf', 'l2': 'L2'}
ART = {'linf': np.inf, 'l2': 2}
COLUMNS = ['attack', 'peer', 'what', 'ours', 'theirs', 'CPU seconds of ours', 'of theirs']


@pytest.fixture(scope='module')
def cases():
  torch.set_num_threads(1)
  made = {kind: peer_cases.Case(kind) for kind in KINDS}
  for case in made.values():
    assert float(jnp.max(case.margin(case.image))) < 0
    theirs = case.clean[np.arange(len(case.clean)), case.y]
    others = np.where(
      np.arange(case.clean.shape[1]) == case.y[:, None].numpy(), -np.inf, case.clean
    )
    np.testing.assert_allclose(case.margin(case.image), others.max(1) - theirs, atol=1e-3)
  return made


@pytest.fixture(scope='module')
def table():
  rows = []
  yield rows
  shown = pd.DataFrame(rows, columns=COLUMNS)
  for name in COLUMNS[3:]:
    shown[name] = [
      f'{value:.4g}' if name in COLUMNS[3:5] else f'{value:.2f}' for value in shown[name]
    ]
  print(f'\n{shown.to_string(index=False)}')
  if path := os.environ.get('ATTACK_TABLE'):
    shown.to_csv(pathlib.Path(path), index=False)


def _art(case, box=BOX):
  return classification.PyTorchClassifier(
    case.module,
    loss=torch.nn.CrossEntropyLoss(reduction='sum'),
    input_shape=tuple(case.x.shape[1:]),
    nb_classes=case.clean.shape[1],
    clip_values=box,
    device_type='cpu',
  )


def _inside(case, x, norm, eps):
  assert peer_cases.length(x - case.image, norm).max() <= eps * (1 + 1e-5)
  assert np.min(x) >= 0
  assert np.max(x) <= 1


def _traced_pgd(case, norm):
  """(x, low, high) -> the points of PGD-10 with steps of eps / 4 from x, and the last one."""
  eps = case.eps[norm]

  def run(x, low, high):
    attack = attacks.pgd(
      norm=norm, num_steps=10, step_size=eps / 4, random_start=False, bounds=(low, high),
      fold='trace',
    )  # fmt: skip
    told = {'eps': eps, 'key': jax.random.key(0), 'monitor': lambda x: x}
    found = attack(case.objective, x, **told)
    return found.monitored, found.x

  return jax.jit(run)


def _pgd_peers(case, norm, steps, art_box=WIDE):
  """{peer: attacked images} of PGD from the clean image with steps of eps / 4."""
  eps = case.eps[norm]
  known = {'eps': eps, 'alpha': eps / 4, 'steps': steps, 'random_start': False}
  kind = foolbox.attacks.LinfPGD if norm == 'linf' else foolbox.attacks.L2PGD
  second = kind(abs_stepsize=eps / 4, steps=steps, random_start=False)
  model = foolbox.PyTorchModel(case.module, bounds=BOX)
  third = evasion.ProjectedGradientDescentPyTorch(
    _art(case, art_box), norm=ART[norm], eps=eps, eps_step=eps / 4, max_iter=steps, batch_size=64,
    verbose=False,
  )  # fmt: skip
  found = {
    'foolbox': lambda: second(model, case.x, case.y, epsilons=eps)[1],
    'ART': lambda: third.generate(case.x.numpy(), case.y.numpy()),
  }
  if torchattacks:
    # in L2 its gradient is of a mean over the batch, and its constant not far below the smallest
    first = (
      torchattacks.PGD(case.module, **known)
      if norm == 'linf'
      else torchattacks.PGDL2(case.module, **known, eps_for_division=1e-30)
    )
    found['torchattacks'] = lambda: first(case.x, case.y)
  return found


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', NORMS)
def test_pgd_follows_the_same_trajectory(norm, kind, table, monkeypatch):
  """From the clean image, in float64, whose gradients have the same signs."""
  for name, module in list(sys.modules.items()):
    if name.startswith('art.') and hasattr(module, 'ART_NUMPY_DTYPE'):
      monkeypatch.setattr(module, 'ART_NUMPY_DTYPE', np.float64)
  torch.set_num_threads(1)
  with jax.enable_x64(True):
    case = peer_cases.Case(kind, np.float64)
    run = _traced_pgd(case, norm)
    path, _ = run(case.image, *BOX)
    unclipped, _ = run(case.image, *WIDE)
    for steps in (1, 2, 10):
      for peer, call in _pgd_peers(case, norm, steps).items():
        ours, near = (unclipped if peer == 'ART' else path)[steps], peer_cases.theirs(call())
        error = f'{peer}, {steps} steps'
        np.testing.assert_allclose(ours, near, atol=2e-7, err_msg=error)
    assert peer_cases.length(path[-1] - case.image, norm).max() <= case.eps[norm] + 1e-9


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', NORMS)
def test_pgd_reaches_the_same_loss(norm, kind, cases, table):
  """In float32, where signs of gradients near 0 may differ."""
  case = cases[kind]
  run = _traced_pgd(case, norm)
  run(case.image, *BOX)
  (_, found), own = peer_cases.timed(run, case.image, *BOX)
  _inside(case, found, norm, case.eps[norm])
  for peer, call in _pgd_peers(case, norm, 10, BOX).items():
    call()
    x, seconds = peer_cases.timed(call)
    pair = found, jnp.asarray(peer_cases.theirs(x))
    reached = [float(jnp.mean(case.objective(x))) for x in pair]
    table.append((f'PGD-10, {norm}, {kind}', peer, 'mean loss', *reached, own, seconds))
    assert reached[0] >= 0.99 * reached[1], peer


def _apgd_peers(case, norm):
  """{peer: seed -> attacked images} of APGD from a random start."""
  eps = case.eps[norm]

  def seeded(peer):
    def run(seed):
      torch.manual_seed(seed)
      return peer.attack_single_run(case.x, case.y)[0]

    peer.init_hyperparam(case.x) if hasattr(peer, 'init_hyperparam') else None
    return run

  second = autopgd.APGDAttack(case.module, n_iter=STEPS, norm=AA[norm], eps=eps)
  third = evasion.AutoProjectedGradientDescent(
    _art(case), norm=ART[norm], eps=eps, eps_step=2 * eps, max_iter=STEPS, nb_random_init=1,
    batch_size=64, loss_type='cross_entropy', verbose=False,
  )  # fmt: skip

  def by_art(seed):
    np.random.seed(seed)  # noqa: NPY002 - ART draws from it
    return third.generate(case.x.numpy(), case.y.numpy())

  found = {'AutoAttack': seeded(second), 'ART': by_art}
  if torchattacks:
    first = torchattacks.APGD(case.module, norm=AA[norm], eps=eps, steps=STEPS)
    found['torchattacks'] = seeded(first)
  return found


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', NORMS)
def test_apgd_reaches_the_loss_of_its_authors(norm, kind, cases, table):
  """Mean over examples and random starts, of which a single one may end in another optimum."""
  case = cases[kind]
  eps = case.eps[norm]
  attack = attacks.apgd(norm=norm, num_steps=STEPS, bounds=BOX)
  run = jax.jit(lambda x, key: attack(case.objective, x, eps=eps, key=key))
  run(case.image, jax.random.key(0))
  ours, own = [], 0.0
  for seed in range(SEEDS):
    found, spent = peer_cases.timed(run, case.image, jax.random.key(seed))
    _inside(case, found.x, norm, eps)
    ours.append(np.mean(found.value))
    own += spent
  for peer, call in _apgd_peers(case, norm).items():
    theirs, seconds = [], 0.0
    for seed in range(SEEDS):
      x, spent = peer_cases.timed(call, seed)
      theirs.append(np.mean(case.objective(jnp.asarray(peer_cases.theirs(x)))))
      seconds += spent
    reached = np.mean(ours), np.mean(theirs)
    name = f'APGD-{STEPS}, {norm}, {kind}'
    table.append((name, peer, 'mean loss', *reached, own / SEEDS, seconds / SEEDS))
    assert reached[0] >= 0.99 * reached[1], peer


def _smallest_peers(case, norm):
  """{peer: attacked images} of searches for the smallest change; unchanged where none was found."""
  fmn = {'linf': foolbox.attacks.LInfFMNAttack, 'l2': foolbox.attacks.L2FMNAttack}[norm]
  model = foolbox.PyTorchModel(case.module, bounds=BOX)
  fab = fab_pt.FABAttack_PT(case.module, norm=AA[norm], n_iter=100, device='cpu')

  found = {
    f'foolbox {fmn.__name__}': lambda: fmn(steps=SEARCH)(model, case.x, case.y, epsilons=None)[1],
    'AutoAttack FAB': lambda: fab.attack_single_run(case.x, case.y),
  }
  if norm == 'l2':
    ddn = foolbox.attacks.DDNAttack(steps=SEARCH)
    deep = evasion.DeepFool(_art(case), batch_size=64, verbose=False)
    found['foolbox DDNAttack'] = lambda: ddn(model, case.x, case.y, epsilons=None)[1]
    found['ART DeepFool'] = lambda: deep.generate(case.x.numpy())
  return found


def _smallest(case, norm):
  """x -> the smallest eps: of several classes that of the nearest, each a search of its own."""
  count = case.clean.shape[1]
  steps = SEARCH if count == 2 else SEARCH // (count - 1)
  attack = attacks.fmn(norm=norm, num_steps=steps, bounds=BOX)
  told = {'broken': case.broken, 'upper': 8 * case.eps[norm], 'key': jax.random.key(0)}
  if count == 2:
    return lambda x: attacks.minimal_eps(attack, case.margin, x, **told)

  def to(x, target):
    return attacks.minimal_eps(attack, lambda x: case.margin_to(x, target), x, **told)

  return lambda x: jnp.min(jax.lax.map(lambda target: to(x, target), jnp.arange(count)), 0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', NORMS)
def test_the_smallest_eps_is_no_larger(norm, kind, cases, table):
  """By the median of its share of theirs, example by example, and by the mean."""
  case = cases[kind]
  run = jax.jit(_smallest(case, norm))
  run(case.image)
  ours, own = peer_cases.timed(run, case.image)
  assert np.all(np.isfinite(ours))
  for peer, call in _smallest_peers(case, norm).items():
    x, seconds = peer_cases.timed(call)
    x = peer_cases.theirs(x)
    broken = np.asarray(case.margin(jnp.asarray(x))) > -1e-4  # what ends on the border counts
    theirs = np.where(broken, peer_cases.length(x - case.image, norm), np.inf)
    share = np.median(np.asarray(ours) / theirs)
    name = f'smallest eps, {norm}, {kind}'
    for what, reduce in (('median', np.median), ('mean', np.mean)):
      table.append((name, peer, what, reduce(ours), reduce(theirs), own, seconds))
    table.append((name, peer, 'median of ours / theirs', share, 1.0, own, seconds))
    assert share <= 1.01, peer
    assert np.mean(ours) <= 1.02 * np.mean(theirs), peer


def _square_peers(case, norm, eps):
  """{peer: seed -> queries [b]} of Square; all queries where it did not break."""
  told = {'norm': AA[norm], 'eps': eps, 'n_queries': QUERIES}

  def counted(peer):
    def run(seed):
      torch.manual_seed(seed)
      queries, x = peer.attack_single_run(case.x, case.y)
      wrong = np.asarray(case.broken(jnp.asarray(peer_cases.theirs(x))))
      return np.where(wrong, queries.numpy(), QUERIES)

    peer.init_hyperparam(case.x)
    return run

  def by_art(seed):
    np.random.seed(seed)  # noqa: NPY002 - ART draws from it
    asked = []

    def wrong(outputs, wanted):
      asked.append(np.argmax(outputs, 1) != np.argmax(wanted, 1))
      return asked[-1]

    attack = evasion.SquareAttack(
      _art(case), ART[norm], wrong, max_iter=QUERIES, eps=eps, batch_size=64, verbose=False
    )
    attack.generate(case.x.numpy(), case.y.numpy())
    broken = np.array(asked)[1:]  # the first are the images themselves
    return np.where(broken.any(0), broken.argmax(0) + 1, QUERIES)

  peers = {'AutoAttack': counted(square_pt.SquareAttack(case.module, **told))}
  if torchattacks:
    peers['torchattacks'] = counted(torchattacks.Square(case.module, seed=0, **told))
  return peers if norm == 'l2' else {**peers, 'ART': by_art}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', NORMS)
def test_square_needs_no_more_queries(norm, kind, cases, table):
  """Mean over examples and seeds; what is not broken counts as all queries."""
  case = cases[kind]
  eps = 2 * case.eps[norm]
  start = 'stripes' if norm == 'linf' else 'uniform'
  attack = attacks.square(norm=norm, num_steps=QUERIES, bounds=BOX, fold='trace', start=start)
  run = jax.jit(lambda x, key: attack(case.margin, x, eps=eps, key=key, monitor=case.margin))
  run(case.image, jax.random.key(0))
  ours, own = [], 0.0
  for seed in range(SEEDS):
    found, spent = peer_cases.timed(run, case.image, jax.random.key(seed))
    _inside(case, found.x, norm, eps)
    broken = np.asarray(found.monitored) > 0
    ours.append(np.where(broken.any(0), broken.argmax(0) + 1, QUERIES))
    own += spent
  for peer, call in _square_peers(case, norm, eps).items():
    theirs, seconds = [], 0.0
    for seed in range(SEEDS):
      queries, spent = peer_cases.timed(call, seed)
      theirs.append(queries)
      seconds += spent
    for what, reduce in (('median queries', np.median), ('mean queries', np.mean)):
      numbers = reduce(ours), reduce(theirs)
      name = f'Square, {norm}, {kind}'
      table.append((name, peer, what, *numbers, own / SEEDS, seconds / SEEDS))
    assert np.mean(ours) <= 1.1 * np.mean(theirs), peer
