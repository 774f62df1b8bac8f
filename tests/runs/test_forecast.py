"""What a run still has to do, counted by hand, and when it is worth a word."""

import jax
import numpy as np
import pytest

from robustmed import data
from robustmed.evaluation import grid, trials
from robustmed.papers import quickstart
from robustmed.papers.amat import experiment
from robustmed.papers.spine import experiment as spine
from robustmed.papers.synthesis import experiment as synthesis
from robustmed.process import parallel
from robustmed.runs import commandline, costs, description, forecast
from support import toys

FIRST = trials.Trial(0)
STD, RAND, ADV = 3 * 8 * 1, 2 * 8 * 2, 2 * 8 * (2 + 2)  # steps x batch x (attack + passes)
CLEAN, PGD, FGSM = 10, 3 * 10, 10  # of ten test images, per level; noise has no gradient
GRID = CLEAN + 2 * PGD + 2 * FGSM


def _quickstart():
  config = commandline.load_config('configs/quickstart.py:smoke')
  return quickstart.build(config), config


def _models(*arms):
  return [grid.Model(arm, FIRST, dict) for arm in arms]


def test_the_quickstart_by_hand(tmp_path):
  exp, config = _quickstart()
  whole = description.describe(exp, config, light=True)['gradients']
  assert (whole['train'], whole['evaluate']) == (STD + RAND + ADV, 3 * GRID)
  assert whole['total'] == STD + RAND + ADV + 3 * GRID and whole['studies'] == 0
  left = lambda untrained, *arms: forecast.remaining_gradients(
    exp, untrained=untrained, models=_models(*arms), results=tmp_path
  )
  assert left(('std', 'rand', 'adv'), 'std', 'rand', 'adv') == whole['total']
  assert left(('adv', 'adv')) == 2 * ADV
  assert left((), 'rand') == GRID


def test_finished_cells_are_not_counted(tmp_path):
  exp, _ = _quickstart()
  left = lambda: forecast.remaining_gradients(
    exp, untrained=(), models=_models('std'), results=tmp_path
  )
  parts = tmp_path / 'parts'
  parts.mkdir()
  for attack, eps, more in (('none', 0.0, CLEAN), ('pgd_seg', 0.07, PGD), ('noise', 0.03, 0)):
    before = left()
    (parts / grid.Cell('std', FIRST, attack, eps).file).write_bytes(b'')
    assert before - left() == more
  (parts / grid.Cell('adv', FIRST, 'pgd_seg', 0.03).file).write_bytes(b'')
  assert left() == PGD + 2 * FGSM


def test_attacks_from_outside_are_counted(tmp_path):
  config = commandline.load_config('configs/spine.py:smoke')
  exp = spine.build(config)
  # four wanted examples, three steps, four attacks: as many for each of three networks
  assert sum(exp.study_cells('P10_std', FIRST, exp.arms).values()) == 4 * 3 * 4
  assert exp.study_cells('P10_adv_r', FIRST, exp.arms) == {}
  whole = description.describe(exp, config, light=True)['gradients']
  assert whole['studies'] == (4 + 1 + 4 + 4) * 3 * 4
  assert whole['total'] == whole['train'] + whole['evaluate'] + whole['studies']
  model = _models('P10_std_rec')  # meets clean images only in the grid: eight of them
  left = lambda: forecast.remaining_gradients(exp, untrained=(), models=model, results=tmp_path)
  assert left() == 8 + 4 * 3 * 4
  (tmp_path / 'ood_parts').mkdir()
  (tmp_path / 'ood_parts' / 'P10_std_rec.seed0.rec.20.parquet').write_bytes(b'')
  assert left() == 8 + 3 * 3 * 4
  few = description.describe(exp, config, ('P10_adv_rs',), light=True)['gradients']
  assert few['studies'] == 3 * 4  # not those of the arm that it needs


def test_whole_volumes_are_counted(tmp_path, monkeypatch):
  config = commandline.load_config('configs/amat_hippocampus.py:smoke')
  exp = experiment.build(config)
  grid_alone = forecast.remaining_gradients(
    exp._replace(studies=()), untrained=(), models=_models('amat'), results=tmp_path
  )
  monkeypatch.setattr(data, 'depths', lambda config: (9, 3, 8))
  # in batches of 8, all of them clean and the first in two steps
  assert exp.study_cells('amat', FIRST, exp.arms) == {
    'volume_parts/amat.seed0.csv': 16 + 8 + 8 + 2 * 16
  }
  left = lambda: forecast.remaining_gradients(
    exp, untrained=(), models=_models('amat'), results=tmp_path
  )
  assert left() == grid_alone + 64
  (tmp_path / 'volume_parts').mkdir()
  (tmp_path / 'volume_parts' / 'amat.seed0.csv').write_bytes(b'')
  assert left() == grid_alone
  cells = commandline.load_config('configs/amat_bccd.py:smoke')
  assert experiment.build(cells).study_cells('amat', FIRST, ()) == {}


def test_generators_against_segmenters_are_counted():
  config = commandline.load_config('configs/synthesis.py:smoke')
  exp = synthesis.build(config)
  slices, both = 2 * 3, 2 * 2  # two subjects; clean and attacked for each of two other segmenters
  pgd = 2 * 2  # two steps, twice
  single, all_kinds = 1 + 1 + 1, 1 + 5 + 1  # the last: up to three draws of the generator
  assert exp.study_cells('unet', trials.Trial(1), exp.arms) == {
    'generators/gen_0.5.on_unet+nnunet+hardened.seed1.parquet': slices * (single + both),
    'generators/gen_2.on_unet+nnunet+hardened.seed1.parquet': slices * (all_kinds + both + pgd),
  }
  assert exp.study_cells('hardened', FIRST, exp.arms) == {
    'generators/gen_2_hardened.on_hardened.seed0.parquet': slices * (all_kinds + pgd)
  }
  assert list(exp.study_cells('nnunet', FIRST, exp.arms).values()) == [
    slices * (all_kinds + both + pgd)
  ]
  assert exp.study_cells('gen_2', FIRST, exp.arms) == {}
  whole = description.describe(exp, config, light=True)['gradients']
  assert whole['studies'] == slices * (7 + 15 + 15 + 11)
  few = lambda *arms: description.describe(exp, config, arms, light=True)['gradients']
  assert few('unet')['studies'] == 0 and few('unet')['evaluate'] > 0
  # the second segmenter is not there to meet the images, the first is needed
  assert few('unet', 'gen_0.5')['studies'] == slices * single


def test_the_forecast_counts_generators_that_are_there(tmp_path):
  exp = synthesis.build(commandline.load_config('configs/synthesis.py:smoke'))
  slices, single, both = 2 * 3, 3, 2
  left = lambda *untrained, finished=(): forecast.remaining_gradients(
    exp, untrained=untrained, models=_models('unet'), results=tmp_path, finished=finished
  )
  alone = left()
  assert left(finished=('gen_0.5',)) == alone + slices * single
  assert left(finished=('gen_0.5', 'nnunet')) == alone + slices * (single + both)
  training = exp.arms['gen_0.5']
  passes = training.defense.cost.passes * training.train['steps'] * training.train['batch_size']
  assert left('gen_0.5') == alone + passes + slices * single


def _say(monkeypatch, gradients, *, speed):
  asked = []
  monkeypatch.setattr(forecast, 'gradients_per_second', lambda *_: asked.append(1) or speed)
  monkeypatch.setattr(costs, 'multiply_adds', lambda task: 10_000_000)
  forecast.announce(gradients, task=None, evaluator=None, batches=None)
  return len(asked)


@pytest.mark.parametrize(
  'gradients, speed, calibrated, said',
  [
    (0, 1.0, 0, None),
    (600, 1.0, 0, None),  # 2e10 multiply-adds are nothing on any machine
    (7_000, 1000.0, 1, None),  # seven seconds
    (7_000, 10.0, 1, '7,000 gradient evaluations at 10/s here: about 11.7 min'),
  ],
)
def test_only_what_takes_over_a_minute_is_said(
  gradients, speed, calibrated, said, monkeypatch, capsys
):
  assert _say(monkeypatch, gradients, speed=speed) == calibrated
  err = capsys.readouterr().err
  assert said in err if said else err == ''


def test_the_rate_counts_examples():
  task = toys.task()
  attack = {'pgd': grid.Probe(None, 'bce', ())}
  evaluator = grid.Evaluator(task, attack, key=jax.random.key(0), main='pgd')
  calls, score = [], evaluator.score
  evaluator.score = lambda *args: calls.append(1) or score(*args)
  rate = forecast.gradients_per_second(task, evaluator, lambda: [parallel.pad(toys.batch(3), 4)])
  assert np.isfinite(rate) and 0 < rate <= 4 * len(calls)  # at least a second went by
