"""The worst of several attacks on a small network that labels pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors
from robustmed.attacks import ensemble, objectives
from robustmed.tasks import dense_objectives, segmentation, shape

COUNT, SIDE, CLASSES = 12, 6, 3


def _network(seed):
  rng = np.random.default_rng(seed)
  return {
    'first': jnp.asarray(rng.normal(size=(9, 8)), jnp.float32),
    'last': jnp.asarray(rng.normal(size=(8, CLASSES)), jnp.float32),
  }


def _predict(variables, image):
  """Logits of a pixel from its neighbours."""
  shifts = [jnp.roll(image[..., 0], (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
  return {'head0': jnp.tanh(jnp.stack(shifts, -1) @ variables['first']) @ variables['last']}


def _badness(outputs, batch):
  right = jnp.argmax(outputs['head0'], -1) == batch['target']['labels']
  return -jnp.mean(right.astype(jnp.float32), (1, 2))


@pytest.fixture(scope='module')
def case():
  """(variables, batch): images that the network labels without a mistake, by sizes of margins."""
  variables = _network(0)
  rng = np.random.default_rng(1)
  scale = np.linspace(0.2, 3, COUNT).reshape(-1, 1, 1, 1)
  image = jnp.asarray(rng.normal(size=(COUNT, SIDE, SIDE, 1)) * scale, jnp.float32)
  labels = jnp.argmax(_predict(variables, image)['head0'], -1).astype(jnp.int32)
  return variables, {'image': image, 'target': {'labels': labels}}


def _members():
  apgd = attacks.apgd(num_steps=5, select='monitor')
  return (
    attacks.Member('ce', apgd, segmentation.cross_entropy),
    attacks.Member('masked', apgd, dense_objectives.masked_cross_entropy),
    attacks.Member('segpgd', attacks.pgd(num_steps=4, select='monitor'), dense_objectives.segpgd),
  )


@pytest.fixture(scope='module')
def made():
  return attacks.Ensemble(_predict, _members(), _badness)


EPS = 0.2


def test_worst_is_the_worst_of_members_that_run_alone(case, made):
  variables, batch = case
  key = jax.random.key(3)
  found = jax.jit(lambda b: made.worst(variables, b, eps=EPS, key=key))(batch)
  for number, member in enumerate(made.members):
    alone = member.attack(
      objectives.bind(lambda x: _predict(variables, x), member.objective, batch),
      batch['image'],
      eps=EPS,
      key=key,
      monitor=lambda x: _badness(_predict(variables, x), batch),
    )
    np.testing.assert_allclose(
      found.each[number], _badness(_predict(variables, alone.x), batch), atol=1e-6
    )
  np.testing.assert_array_equal(found.badness, found.each.max(0))
  np.testing.assert_array_equal(found.member, np.argmax(found.each, 0))
  np.testing.assert_allclose(
    found.badness, _badness(_predict(variables, found.x), batch), atol=1e-6
  )
  assert np.abs(found.x - batch['image']).max() <= EPS + 1e-6
  # several members are needed, and each is better than a network that is right everywhere
  assert len(np.unique(found.member)) > 1
  assert np.all(found.badness > -1)


def test_nothing_is_worse_than_the_image_itself_at_eps_0(case, made):
  variables, batch = case
  found = made.worst(variables, batch, eps=0.0, key=jax.random.key(0))
  assert np.all(found.member == ensemble.CLEAN)
  np.testing.assert_array_equal(found.x, batch['image'])
  np.testing.assert_array_equal(found.badness, -np.ones(COUNT))


def test_what_was_found_before_counts_after_it_is_projected(case, made):
  variables, batch = case
  key = jax.random.key(0)
  good = made.worst(variables, batch, eps=1.0, key=key)
  weak = attacks.Ensemble(_predict, (_members()[0]._replace(attack=attacks.noise()),), _badness)
  alone = weak.worst(variables, batch, eps=EPS, key=key)
  helped = weak.worst(variables, batch, eps=EPS, key=key, candidates=[good.x])
  assert np.all(helped.badness >= alone.badness)
  assert np.mean(helped.badness) > np.mean(alone.badness) + 0.05
  assert np.abs(helped.x - batch['image']).max() <= EPS + 1e-6
  assert np.all(helped.member[np.asarray(helped.badness > alone.badness)] == 1)


def test_a_sweep_never_helps_the_defender(case, made):
  variables, batch = case
  levels = (0.4, 0.05, 0.1, 0.2)
  found, passes = made.sweep(variables, batch, levels=levels, key=jax.random.key(1))
  # of a level the image itself, of a member its gradients, its last point, what it hands over;
  # of all levels but the first also what the last one found
  assert passes == COUNT * (4 * (1 + 2 * (5 + 1 + 1) + (4 + 1 + 1)) + 3)
  nested = np.stack([worst.badness for _, worst in found])
  assert np.all(np.diff(nested, axis=0) >= 0)
  for (alone, worst), eps in zip(found, sorted(levels)):
    assert np.all(worst.badness >= alone.badness)
    again = made.worst(variables, batch, eps=eps, key=jax.random.key(1))
    np.testing.assert_allclose(alone.badness, again.badness, atol=0.06)
    assert np.abs(worst.x - batch['image']).max() <= eps + 1e-6


def test_broken_examples_leave(case, made):
  """The same share as with every member on every example, at less than 60 % of the cost."""
  variables, batch = case
  key, limit = jax.random.key(2), -0.9
  whole = made.worst(variables, batch, eps=0.08, key=key)
  found = made.robust(variables, batch, eps=0.08, key=key, broken_at=limit)
  assert found.share == pytest.approx(np.mean(np.asarray(whole.badness) < limit))
  assert 0 < found.share < 0.6
  assert found.passes <= 0.6 * found.full
  np.testing.assert_array_equal(
    np.asarray(found.found.badness) >= limit, np.asarray(whole.badness) >= limit
  )
  ran = np.isfinite(np.asarray(found.found.each))
  assert ran[0].all()
  assert ran[2].sum() < COUNT
  np.testing.assert_allclose(
    found.found.badness, _badness(_predict(variables, found.found.x), batch), atol=1e-6
  )


def test_members_are_compiled_for_few_sizes(case):
  variables, batch = case
  traced = []

  def predict(variables, image):
    traced.append(image.shape[0])
    return _predict(variables, image)

  made = attacks.Ensemble(predict, _members()[:2], _badness)
  for limit in (-0.99, -0.95, -0.9, -0.8, -0.7, -0.5):
    made.robust(variables, batch, eps=0.3, key=jax.random.key(0), broken_at=limit)
  assert set(traced) <= {12, 6, 3}
  seen = len(traced)
  for seed in range(4):
    made.robust(variables, batch, eps=0.3, key=jax.random.key(seed), broken_at=-0.93)
  assert len(traced) == seen


def test_padding_does_not_count(case, made):
  variables, batch = case
  run = lambda mask: made.robust(
    variables, {**batch, 'mask': mask}, eps=0.3, key=jax.random.key(0), broken_at=-0.9
  )
  half = np.arange(COUNT) < COUNT // 2
  first, second = run(half), run(~half)
  whole = run(np.ones(COUNT, bool))
  assert whole.share == pytest.approx((first.share + second.share) / 2)
  assert np.isnan(np.asarray(first.found.each)[:, ~half]).all()


def test_an_image_without_a_metric_is_broken_by_one_with_it():
  """The Dice of an empty truth is unknown until the network finds something there."""

  def badness(outputs, batch):
    found, true = jnp.sum(outputs > 0.5, (1, 2)), jnp.sum(batch['target'], (1, 2))
    both = jnp.sum((outputs > 0.5) * batch['target'], (1, 2))
    return jnp.where(found + true > 0, -2 * both / (found + true), jnp.nan)

  image = jnp.stack([jnp.full((2, 2), 0.4), jnp.full((2, 2), 0.1), jnp.full((2, 2), 0.9)])
  batch = {
    'image': image,
    'target': jnp.asarray([0.0, 0.0, 1.0])[:, None, None] * jnp.ones((1, 2, 2)),
  }
  up = lambda outputs, batch: jnp.sum(outputs, (1, 2))
  climb = attacks.pgd(num_steps=2, select='monitor', random_start=False)
  made = attacks.Ensemble(lambda _, x: x, (attacks.Member('up', climb, up),), badness)
  found = made.robust({}, batch, eps=0.2, key=jax.random.key(0), broken_at=-0.5)
  np.testing.assert_array_equal(found.found.badness, [0, np.nan, -1])
  assert found.found.member.tolist() == [0, -1, -1]
  assert found.share == pytest.approx(2 / 3)


def test_images_made_against_another_network_are_judged_on_this_one(case):
  variables, batch = case
  other = _network(9)
  climb = attacks.pgd(num_steps=6, select='monitor')
  member = attacks.Member('transfer', climb, segmentation.cross_entropy, other)
  made = attacks.Ensemble(_predict, (member,), _badness)
  found = made.worst(variables, batch, eps=EPS, key=jax.random.key(0))
  np.testing.assert_allclose(
    found.each[0], _badness(_predict(variables, found.x), batch), atol=1e-6
  )
  own = attacks.Ensemble(_predict, (member._replace(variables=None),), _badness)
  white = own.worst(variables, batch, eps=EPS, key=jax.random.key(0))
  assert np.mean(white.badness) > np.mean(found.badness)


def test_a_larger_budget_contains_the_smaller_one():
  for known in (
    segmentation.OBJECTIVES,
    ('margin',),
    ('loss', 'bce', 'heat', 'offset'),
    ('loss', 'obj'),
  ):
    quick, standard, thorough = (
      ensemble.settings_of(tuple(known), name) for name in ('quick', 'standard', 'thorough')
    )
    assert list(standard)[: len(quick)] == list(quick)
    assert list(thorough)[: len(standard)] == list(standard)
    assert all(standard[name] == quick[name] for name in quick)
    kinds = [[one['name'] for one in members.values()] for members in (quick, standard, thorough)]
    assert [kind.count('fmn') for kind in kinds] == ([0, 1, 2] if 'margin' in known else [0] * 3)
    for settings in thorough.values():
      fields = {k: v for k, v in settings.items() if k != 'objective'}
      assert attacks.make(**fields).select == 'monitor'
      assert settings['objective'] in known


@pytest.mark.parametrize('objective', [segmentation.cross_entropy, segmentation.margin])
def test_a_member_reaches_the_mean_of_pgd_less_a_hundredth(case, objective):
  """On its own objective, with as many gradients, in both norms."""
  variables, batch = case
  climbed = objectives.bind(lambda x: _predict(variables, x), objective, batch)
  for norm, eps in (('linf', 0.1), ('l2', 0.4)):
    members = (
      attacks.pgd(norm=norm, num_steps=20, relative_step=0.125),
      attacks.pgd(norm=norm, num_steps=20, relative_step=0.125, select='best'),
      attacks.apgd(norm=norm, num_steps=20),
    )
    run = jax.jit(
      lambda key, members=members, eps=eps: [
        member(climbed, batch['image'], eps=eps, key=key).value for member in members
      ]
    )
    last, best, adaptive = np.mean([run(jax.random.key(seed)) for seed in range(4)], axis=(0, 2))
    assert last > np.mean(climbed(batch['image'])) + 0.1
    assert best >= last
    assert adaptive >= best - 0.01 * abs(best), norm


def test_the_worst_is_never_weaker_than_the_attacks_of_a_paper(case):
  """The last iterate of PGD and the best one, by the objective, are among its candidates."""
  variables, batch = case
  last = attacks.pgd(num_steps=4, relative_step=0.5, score_last=False)
  best = attacks.pgd(num_steps=4, relative_step=0.5, select='best')
  plain = [
    attacks.Member(name, a, segmentation.cross_entropy)
    for name, a in (('last', last), ('best', best))
  ]
  both = attacks.Ensemble(_predict, (*plain, _members()[1]), _badness)
  found = both.worst(variables, batch, eps=EPS, key=jax.random.key(0))
  for number, member in enumerate(plain):
    result = member.attack(
      objectives.bind(lambda x: _predict(variables, x), member.objective, batch),
      batch['image'],
      eps=EPS,
      key=jax.random.key(0),
    )
    value = _badness(_predict(variables, result.x), batch)
    np.testing.assert_allclose(found.each[number], value, atol=1e-6)
    assert np.all(found.badness >= value)
  assert np.mean(found.badness) > np.mean(found.each[0])


def test_a_budget_adds_to_the_attacks_of_an_experiment():
  pgd = {'name': 'pgd', 'norm': 'l2', 'num_steps': 9, 'objective': 'ce', 'score_last': False}
  own = {
    'one_step': {'name': 'fgsm', 'norm': 'l2', 'objective': 'ce'},
    'pgd': pgd,
    'chosen': {**pgd, 'select': 'best', 'score_last': True},
    'dice': {'name': 'ifgsm', 'num_steps': 4, 'objective': 'dice'},
    'moved': {**pgd, 'space': {'name': 'deformation'}},
    'down': {'name': 'tifgsm', 'num_steps': 4, 'objective': 'dice'},
  }
  before = {name: dict(fields) for name, fields in own.items()}
  assert ensemble.added_to(own, ('ce', 'dice'), '') == own
  quick = ensemble.added_to(own, ('ce', 'dice'), 'quick', source='std')
  # the best iterate of pgd is there as 'chosen'
  assert list(quick) == [*own, 'dice_best', 'apgd_ce_10', 'apgd_dice_10']
  assert quick['dice_best']['select'] == 'best'
  assert quick['apgd_ce_10']['norm'] == 'l2'
  masked = {'pgd': {**pgd, 'region': (True, False), 'bounds': (0.0, 1.0)}}
  for fields in ensemble.added_to(masked, ('ce', 'dice'), 'thorough', source='std').values():
    assert (fields['region'], fields['bounds']) == ((True, False), (0.0, 1.0))
  standard = ensemble.added_to(own, ('ce', 'dice'), 'standard', source='std')
  assert standard['transfer'] == {**pgd, 'source': 'std'}
  assert 'transfer' not in ensemble.added_to(own, ('ce', 'dice'), 'standard')
  assert own == before


def test_a_name_that_is_taken_does_not_keep_a_best_iterate_out():
  """By another attack; one that says what the defaults are is the same."""
  pgd = {'name': 'pgd', 'num_steps': 9, 'objective': 'ce', 'score_last': False}
  own = {'pgd': pgd, 'pgd_best': {**pgd, 'select': 'best', 'num_steps': 3}}
  assert ensemble.added_to(own, ('ce',), 'quick')['pgd_best_iterate'] == {
    **pgd, 'select': 'best', 'score_last': True
  }  # fmt: skip
  same = {'name': 'pgd', 'num_steps': 9, 'objective': 'ce', 'select': 'best', 'restarts': 1}
  own = {'pgd': pgd, 'pgd_best': same}
  assert list(ensemble.added_to(own, ('ce',), 'quick')) == [*own, 'apgd_ce_10']
  own = {'pgd': pgd, 'pgd_best': {**same, 'levels': (0.1,)}}
  assert 'pgd_best_iterate' in ensemble.added_to(own, ('ce',), 'quick')
  taken = {**own, 'pgd_best_iterate': {**pgd, 'num_steps': 4, 'select': 'best'}}
  with pytest.raises(errors.UserError, match="adds an attack 'pgd_best_iterate'"):
    ensemble.added_to(taken, ('ce',), 'quick')


def test_members_have_the_threat_of_the_main_attack():
  first = {'name': 'fgsm', 'norm': 'l2', 'objective': 'ce'}
  main = {'name': 'pgd', 'objective': 'ce', 'max_change': 0.2, 'region': ((1.0, 0.0),)}
  found = ensemble.added_to({'first': first, 'main': main}, ('ce',), 'thorough', main='main')
  for name in ('apgd_ce_10', 'square_200'):
    made = attacks.make(**{k: v for k, v in found[name].items() if k != 'objective'})
    threat = made.threat
    assert (threat.norm, threat.max_change, threat.region) == ('linf', 0.2, ((1.0, 0.0),))
    # two moons: the last number says which network an example is for
    total = lambda x: jnp.sum(x, axis=1)
    x = jnp.asarray([[0.3, 7.0], [0.1, 2.0]])
    moved = made(total, x, eps=0.1, key=jax.random.key(0), monitor=total).x
    np.testing.assert_array_equal(moved[:, 1], x[:, 1])
    np.testing.assert_allclose(moved[:, 0], x[:, 0] + 0.1, atol=1e-5)


@pytest.mark.parametrize(
  'names, first',
  [
    (segmentation.OBJECTIVES, ('ce', 'dice', 'masked_ce')),
    (('loss', 'ce', 'margin'), ('ce', 'margin', 'loss')),
    (('loss', 'bce', 'heat', 'offset', 'radial', 'shift'), ('bce', 'loss', 'heat')),
    (('loss', 'box', 'obj', 'cls', 'plant', 'hide'), ('loss', 'obj', 'hide')),
    (shape.OBJECTIVES, ('seg', 'train_reg', 'reg')),
    (('bce',), ('bce',)),
  ],
)
def test_every_kind_of_network_has_members(names, first):
  found = [one['objective'] for one in ensemble.settings_of(tuple(names), 'quick').values()]
  assert tuple(found) == first


def test_mistakes_are_named(case):
  with pytest.raises(errors.UserError, match='different names'):
    attacks.Ensemble(_predict, _members()[:1] * 2, _badness)
  with pytest.raises(errors.UserError, match='standrd'):
    ensemble.settings_of(('ce',), 'standrd')
  with pytest.raises(errors.UserError, match='one of the objectives other'):
    ensemble.settings_of(('other',), 'quick')
