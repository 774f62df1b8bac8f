import importlib.util

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.evaluation import claims
from robustmed.papers.synthesis import arms as synthesis_arms
from robustmed.papers.synthesis import claims as synthesis_claims
from robustmed.papers.synthesis import experiment, figures, published, report
from support import runs

ORGANS = experiment.ORGANS


@pytest.fixture
def config():
  path = runs.ROOT / 'configs' / 'synthesis.py'
  spec = importlib.util.spec_from_file_location('synthesis_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config('smoke')


def test_arms_and_what_they_wait_for(config):
  arms = experiment.build(config).arms
  assert set(arms) == {
    'unet', 'nnunet', 'gen_0.5', 'gen_2', 'gen_2_nnunet', 'hardened', 'gen_2_hardened',
  }  # fmt: skip
  assert arms['gen_2'].needs == ('unet',) and arms['gen_2_nnunet'].needs == ('nnunet',)
  assert set(arms['hardened'].needs) == {'unet', 'gen_2'}
  assert arms['gen_2_hardened'].needs == ('hardened',)
  assert [name for name, arm in arms.items() if arm.evaluated is not False] == [
    'unet',
    'nnunet',
    'hardened',
  ]
  assert arms['gen_0.5'].network.fields['generator']['xi'] == 0.5
  assert {phase.name for phase in arms['gen_2'].defense.phases} == {'critic', 'generator'}


def test_arms_can_be_left_out(config):
  config.synthesis.update({'second': '', 'hardened_at': (), 'levels': (1.0,)})
  arms = experiment.build(config).arms
  assert set(arms) == {'unet', 'nnunet', 'gen_1'}


def test_mistakes_in_the_configuration_are_one_line(config):
  def fails(message, **changes):
    changed = config.copy_and_resolve_references()
    for name, value in changes.items():
      *path, last = name.split('__')
      place = changed
      for part in path:
        place = place[part]
      with place.unlocked():
        place[last] = value
    with pytest.raises(errors.UserError, match=message):
      experiment.build(changed)

  fails('synthesis levels must be', synthesis__levels=(-1.0,))
  fails("unknown arm that a generator attacks 'vnet'", synthesis__target='vnet')
  fails('unknown generator to harden against', synthesis__hardened_at=(9.0,))
  fails('unknown field of synthesis.network', synthesis__network__depth=3)
  fails('unknown field of synthesis.weights', synthesis__weights__style=1.0)
  for field in ('steps', 'coupled', 'variables'):
    fails('unknown field of synthesis.hardening', **{f'synthesis__hardening__{field}': 3})
  fails('is no segmenter here', model__name='brats_unet')
  fails('unknown loss of the U-Net', reading__loss='focal')


def test_an_organ_that_is_neither_there_nor_found_is_unknown_not_zero(config):
  task = experiment.build(config).task
  labels = np.zeros((3, 16, 16), np.int32)
  labels[0, :4], labels[1, :4] = 3, 3
  found = labels.copy()
  found[1, :2] = 0  # half of the liver of the second slice is missed
  outputs = {'head0': 9.0 * (jnp.asarray(found)[..., None] == jnp.arange(5).reshape(1, 1, 1, 5))}
  metrics = task.metrics(outputs, {'target': {'labels': labels}})
  np.testing.assert_allclose(metrics['DICE_liver'], [1, 2 / 3, np.nan], rtol=1e-5)
  assert np.isnan(metrics['DICE_spleen']).all()
  np.testing.assert_allclose(metrics['DICE'], [1, 2 / 3, 1], rtol=1e-5)


def test_the_loss_of_the_u_net_is_the_papers_or_nnunets(config):
  both = experiment.build(config).task
  config.reading.loss = 'ce'
  alone = experiment.build(config).task
  outputs = {'head0': jnp.zeros((2, 16, 16, 5))}
  batch = {'target': {'labels': jnp.zeros((2, 16, 16), int)}}
  assert set(both.losses(outputs, batch)) == {'ce', 'dice'}
  assert set(alone.losses(outputs, batch)) == {'ce'}


@pytest.mark.parametrize('loss', ['ce', 'ce_dice'])
def test_the_reading_alone_decides_what_u_nets_train_on(config, loss):
  config.reading.loss = loss
  with config.unlocked():
    config.arms.noisy = {'defense': {'name': 'noise', 'eps': 0.1, 'coupled': loss == 'ce'}}
  arms = experiment.build(config).arms
  coupled = {name: arms[name].defense.coupled for name in ('unet', 'noisy', 'hardened', 'nnunet')}
  batch_dice = loss == 'ce_dice'
  assert coupled == {
    'unet': batch_dice, 'noisy': batch_dice, 'hardened': batch_dice, 'nnunet': False,
  }  # fmt: skip
  assert 'coupled' not in config.arms.unet.defense


def test_a_hardened_network_is_that_of_the_target(config):
  arms = experiment.build(config).arms
  own = arms['hardened'].network
  assert own.task is None and not own.fields and own.variables is None
  config.synthesis.update({'target': 'nnunet', 'second': 'unet'})
  other = experiment.build(config).arms
  assert other['hardened'].network.task is other['nnunet'].network.task is not None
  assert other['hardened'].network.fields == other['nnunet'].network.fields != {}
  assert not other['hardened'].defense.coupled and other['hardened'].init_from == 'nnunet'


def _subjects(cells, *, count=12):
  """(arm, attack, xi, Dice of all organs, p, X) -> subjects with a little noise."""
  rng, lines = np.random.default_rng(0), []
  for arm, attack, xi, dice, p, x in cells:
    for group in range(count):
      own = dict(zip(ORGANS, np.broadcast_to(dice, 4) + rng.normal(0, 0.01, 4), strict=True))
      lines.append(
        {
          'arm': arm, 'seed': 0, 'attack': attack, 'eps': xi, 'group': group, 'index': group,
          **{f'DICE_{o}': d for o, d in own.items()}, 'DICE': np.mean(list(own.values())),
          'MOVED': np.mean(list(own.values())) + 0.01, 'p': p + rng.normal(0, 0.001), 'X': x,
        }
      )  # fmt: skip
  return pd.DataFrame(lines)


PAPER = [
  ('unet', 'none', 0.0, 0.9, 0.0, 0.0),
  ('unet', 'dv', 0.5, 0.85, 0.05, 0.5),
  ('unet', 'dv', 2.0, 0.4, 0.08, 2.0),
  ('unet', 'd', 2.0, (0.8, 0.7, 0.8, 0.8), 0.05, 1.0),
  ('unet', 'v', 2.0, (0.7, 0.8, 0.5, 0.5), 0.05, 1.0),
  ('unet', 'smooth', 2.0, 0.85, 0.08, 0.3),
  ('hardened', 'dv', 2.0, 0.7, 0.08, 2.0),
  ('hardened', 'dv_from_unet', 2.0, 0.8, 0.08, 1.0),
]


def _decide(subjects):
  own = synthesis_claims.of_paper(subjects, target='unet', levels=(0.5, 2.0), single=2.0)
  subjects = subjects.assign(moved_gain=subjects['MOVED'] - subjects['DICE'])
  more = synthesis_claims.beyond(
    subjects, target='unet', hardened='hardened', single=2.0, fresh=2.0
  )
  return claims.decide([*own, *more], subjects).set_index('statement')


def test_claims_hold_where_the_numbers_are_those_of_the_paper():
  decided = _decide(_subjects(PAPER))
  large = decided.index[decided.index.str.startswith('A very large xi')]
  assert decided.loc[large, 'verdict'].tolist() == ['not run']  # 3 was not trained
  said = 'no xi above 3 in config.synthesis.levels'
  assert decided.loc[large, 'numbers'].tolist() == [said]
  others = decided.drop(index=large)
  assert len(others) == 2 + 8 + 4 + 4 + 4
  assert (others['verdict'] == 'holds').all(), others[others['verdict'] != 'holds']


def test_claims_fail_where_the_numbers_say_the_opposite():
  cells = [(a, b, xi, 1.3 - np.asarray(dice) if b == 'dv' else dice, p, x)
           for a, b, xi, dice, p, x in PAPER]  # fmt: skip
  decided = _decide(_subjects(cells))['verdict']
  assert decided['Dice falls with xi (2 against 0.5)'] == 'fails'
  assert decided['At xi 2 Dice of the liver falls by 30 % or more'] == 'fails'
  assert decided['At xi 0.5 Dice of the liver falls by less than 30 %'] == 'fails'
  assert decided['Perceptibility grows with xi (2 against 0.5)'] == 'holds'


@pytest.mark.parametrize(
  ('x', 'stop', 'verdict'),
  [
    (1.5, 'X is 1.5, was at best 1.2 from 10', 'holds'),
    (10.0, '', 'fails'),
    (1.5, '', 'undecided'),  # far from xi, but the training went to its end
    (10.0, 'a value is not finite', 'undecided'),
  ],
)
def test_a_very_large_strength_collapses_where_training_ends_far_from_it(x, stop, verdict):
  subjects = _subjects(
    [*PAPER, ('unet', 'dv', 3.0, 0.3, 0.2, 3.0), ('unet', 'dv', 10.0, 0.3, 1, x)]
  )
  own = synthesis_claims.of_paper(
    subjects,
    target='unet',
    levels=(0.5, 2.0, 3.0, 10.0),
    single=2.0,
    stops={(10.0, 0): stop} if stop else {},
  )
  decided = claims.decide(own, subjects).set_index('statement')
  line = decided.loc['A very large xi (10) is not reached: training collapses']
  assert line['verdict'] == verdict
  assert (stop or 'went to its end') in line['numbers']
  # What the paper tables is not judged by a strength beyond its own.
  assert 'Dice falls with xi (3 against 0.5)' in decided.index


def test_lines_are_shares_of_the_clean_dice_of_the_same_subject():
  """Subjects whose clean Dice varies, each exactly at 0.69 of its own."""
  subjects = _subjects(PAPER)
  clean = subjects[subjects['attack'] == 'none'].set_index('group')
  wide = np.linspace(0.3, 1.0, len(clean))
  for organ in ORGANS:
    for attack, scale in (('none', 1.0), ('dv', 0.69)):
      here = (subjects['attack'] == attack) & (subjects['arm'] == 'unet')
      here &= subjects['eps'].isin([0.0, 2.0])
      subjects.loc[here, f'DICE_{organ}'] = scale * wide
  decided = _decide(subjects)['verdict']
  assert decided['At xi 2 Dice of the liver falls by 30 % or more'] == 'holds'


def test_the_report_finds_why_generators_ended_early():
  page = report.Page.__new__(report.Page)
  page.target, page.cases = 'unet', {'gen_2': (2.0, 'unet'), 'gen_2_nnunet': (2.0, 'nnunet')}
  page.looks = pd.DataFrame(
    {
      'arm': ['gen_2', 'gen_2', 'gen_2_nnunet'],
      'seed': [0, 0, 0],
      'stop': [np.nan, '|D| has run to its bound', 'a value is not finite'],
    }
  )
  assert page.stops() == {(2.0, 0): '|D| has run to its bound'}
  page.looks = pd.DataFrame()
  assert page.stops() == {}


def test_the_papers_table():
  table = published.table()
  assert set(ORGANS) | {'image', 'xi', 'p'} == set(table.columns)
  full = table[table['image'] == 'I_DV'].set_index('xi')
  assert full.loc[2.0, 'liver'] == 11.19 and full.loc[0.5, 'p'] == 0.061


def test_names_of_generators():
  assert synthesis_arms.generator_name(0.5, 'unet', 'unet') == 'gen_0.5'
  assert synthesis_arms.generator_name(2.0, 'nnunet', 'unet') == 'gen_2_nnunet'


def _stored(count=2, side=16):
  rng = np.random.default_rng(0)
  stored = {'image': rng.normal(size=(count, side, side))}
  for name in ('truth', 'clean', 'found0', 'found1'):
    stored[name] = rng.integers(0, 5, size=(count, side, side))
  for number in range(2):
    stored[f'attacked{number}'] = stored['image'] + 0.1 * number
    stored[f'V{number}'] = rng.normal(size=(count, side, side))
    stored[f'D{number}'] = rng.normal(size=(count, side, side, 2))
  return stored


def test_figures_are_pictures_and_show_what_they_are_given():
  stored, png = _stored(), b'\x89PNG'
  other = {**stored, 'D0': 0 * stored['D0'], 'V0': -stored['V0'], 'found1': stored['truth']}
  for draw in (figures.draws, figures.cases, figures.deformation):
    first = draw(stored)
    assert first.startswith(png) and draw(stored) == first and draw(other) != first
  table = pd.DataFrame({'xi': [0.5, 2.0], 'p': [0.1, 0.2], **{o: [80.0, 40.0] for o in ORGANS}})
  sweep = figures.sweep(table, dict.fromkeys(ORGANS, 0.9), published.table())
  assert sweep.startswith(png)
  curves = {f'generator/{name}': [0.1, 0.3] for name in ('X', 'counted', 'D', 'V', 'p')}
  log = pd.DataFrame(
    {'arm': 'gen_2', 'seed': 0, 'step': [1, 2], 'critic/gap': [0.1, 0.2], **curves}
  )
  looks = pd.DataFrame({'arm': ['gen_2'], 'seed': [0], 'step': [2], 'X': [0.4]})
  assert figures.training(log, looks, levels={'gen_2': 2.0}).startswith(png)
  assert figures.training(log, looks, levels={'gen_9': 2.0}) is None
