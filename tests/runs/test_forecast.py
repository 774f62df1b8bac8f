"""What a run still has to do, counted by hand, and when it is worth a word."""

import time

import pytest

from robustmed import data, types
from robustmed.data import pipeline
from robustmed.evaluation import grid, trials
from robustmed.papers import quickstart
from robustmed.papers.amat import experiment
from robustmed.papers.nodules import experiment as nodules
from robustmed.papers.spine import experiment as spine
from robustmed.papers.synthesis import experiment as synthesis
from robustmed.process import parallel
from robustmed.runs import commandline, costs, description, forecast
from support import toys

FIRST = trials.Trial(0)
STD, RAND, ADV = 3 * 8 * 1, 2 * 8 * 2, 2 * 8 * (2 + 2)  # steps x batch x (attack + passes)
IMAGES = 16  # ten in two batches of eight
# Every image is scored, after an attack too; noise is a forward pass.
CLEAN, PGD, FGSM, NOISE = IMAGES, IMAGES * (3 + 1), IMAGES * (1 + 1), IMAGES * (1 + 1)
PICTURES = IMAGES * (3 + 2)  # of two images, in one batch or in both
GRID = CLEAN + 2 * PGD + 2 * FGSM + 2 * NOISE


def _quickstart():
  config = commandline.load_config('configs/quickstart.py:smoke')
  return quickstart.build(config), config


def _models(*arms):
  return [grid.Model(arm, FIRST, dict) for arm in arms]


def test_the_quickstart_by_hand(tmp_path):
  exp, config = _quickstart()
  whole = description.describe(exp, config, light=True)['passes']
  assert (whole['train'], whole['evaluate']) == (STD + RAND + ADV, 3 * GRID)
  assert whole['total'] == STD + RAND + ADV + 3 * (GRID + PICTURES)
  assert whole['studies'] == 3 * PICTURES and sum(whole['by_kind'].values()) == whole['total']
  assert whole['by_kind']['forwards'] == 3 * 2 * IMAGES
  assert whole['by_kind']['passes'] == STD + RAND + 2 * 8 * 2
  left = lambda untrained, *arms: (
    forecast.remaining(
      exp, config, untrained=untrained, models=_models(*arms), results=tmp_path
    ).passes
  )
  assert left(('std', 'rand', 'adv'), 'std', 'rand', 'adv') == whole['total']
  assert left(('adv', 'adv')) == 2 * ADV
  assert left((), 'rand') == GRID + PICTURES


def test_finished_cells_are_not_counted(tmp_path):
  exp, config = _quickstart()
  left = lambda: (
    forecast.remaining(exp, config, untrained=(), models=_models('std'), results=tmp_path).passes
  )
  parts = tmp_path / 'parts'
  parts.mkdir()
  for attack, eps, more in (('none', 0.0, CLEAN), ('pgd_seg', 0.07, PGD), ('noise', 0.03, NOISE)):
    before = left()
    (parts / grid.Cell('std', FIRST, attack, eps).file).write_bytes(b'')
    assert before - left() == more
  (parts / grid.Cell('adv', FIRST, 'pgd_seg', 0.03).file).write_bytes(b'')
  assert left() == PGD + 2 * FGSM + NOISE + PICTURES
  (tmp_path / 'examples.npz').write_bytes(b'')
  assert left() == PGD + 2 * FGSM + NOISE


def _passes(cells):
  """{file: passes of the arm's own network}."""
  return {file: sum(cost[:3]) for file, cost in cells.items()}


def test_attacks_from_outside_are_counted(tmp_path):
  config = commandline.load_config('configs/spine.py:smoke')
  exp = spine.build(config)
  cells = _passes(exp.study_cells('P10_std', FIRST, exp.arms))
  # four wanted examples: what is wanted, three steps and the end, then both outputs
  each, plain = 4 * (1 + 3 + 1 + 2), 4 * 2
  assert cells['ood_parts/P10_std.seed0.ood.10.parquet'] == each
  assert cells['ood_parts/P10_std.seed0.ind.0.parquet'] == plain
  assert sum(cells.values()) == 4 * each + 3 * plain  # four attacks from images of two kinds
  assert exp.study_cells('P10_adv_r', FIRST, exp.arms) == {}
  model = _models('P10_std_rec')  # meets clean images only in the grid: eight of them
  left = lambda: (
    forecast.remaining(exp, config, untrained=(), models=model, results=tmp_path).passes
  )
  before = left()
  assert before == 8 + 4 * each + 3 * plain
  (tmp_path / 'ood_parts').mkdir()
  (tmp_path / 'ood_parts' / 'P10_std_rec.seed0.rec.20.parquet').write_bytes(b'')
  assert left() == before - each
  few = description.describe(exp, config, ('P10_adv_rs',), light=True)['passes']
  own = sum(_passes(exp.study_cells('P10_adv_rs', FIRST, ())).values())
  assert few['studies'] > own == each + 2 * plain  # pictures too, not those of the arm it needs


def test_whole_volumes_are_counted(tmp_path, monkeypatch):
  config = commandline.load_config('configs/amat_hippocampus.py:smoke')
  exp = experiment.build(config)
  left = lambda exp: (
    forecast.remaining(exp, config, untrained=(), models=_models('amat'), results=tmp_path).passes
  )
  monkeypatch.setattr(data, 'depths', lambda config: (9, 3, 8))
  # in batches of 8, all of them clean and the first in two steps, which is scored again
  volumes = 16 + 8 + 8 + (2 + 1) * 16
  cells = exp.study_cells('amat', FIRST, exp.arms)
  assert _passes(cells) == {'volume_parts/amat.seed0.csv': volumes}
  assert left(exp) == left(exp._replace(studies=())) + volumes
  (tmp_path / 'volume_parts').mkdir()
  (tmp_path / 'volume_parts' / 'amat.seed0.csv').write_bytes(b'')
  assert left(exp) == left(exp._replace(studies=()))
  cells = commandline.load_config('configs/amat_bccd.py:smoke')
  # a batch of the three images is attacked in two steps for the worst one, and scored twice
  worst = experiment.build(cells).study_cells('amat', FIRST, ())
  assert _passes(worst) == {'worst.npz': (2 + 2) * 3}


def test_what_arms_take_from_others_is_counted(tmp_path):
  config = commandline.load_config('configs/amat_hippocampus.py:smoke')
  exp = experiment.build(config)
  left = lambda *arms: forecast.remaining(exp, config, untrained=arms, models=(), results=tmp_path)
  sat, amat = left('sat_5').by_kind(), left('amat').by_kind()
  slices = exp.data.sizes()['train']  # of the thresholds; then the attacks' last points
  assert amat['forwards'] == sat['forwards'] + slices + 4 * 8
  assert (amat['gradients'], amat['passes']) == (sat['gradients'], sat['passes'])
  config = commandline.load_config('configs/nodules.py:smoke')
  exp = nodules.build(config)
  first = left('perturb').by_kind()
  # four patches of each of two pools, two steps each; segmenting arms are not attacked
  assert first['gradients'] == 2 * 4 * 2


def test_generators_against_segmenters_are_counted():
  config = commandline.load_config('configs/synthesis.py:smoke')
  exp = synthesis.build(config)
  pgd = 2 * 2 + 1  # two steps, twice, and the outputs before
  single, every = 2 * (1 + 1), 2 * (1 + 5)  # looks at both images
  slices = costs.padded(2 * 3, config.evaluate.batch_size)
  assert _passes(exp.study_cells('unet', trials.Trial(1), exp.arms)) == {
    'generators/gen_0.5.on_unet+nnunet+hardened.seed1.parquet': slices * single,
    'generators/gen_2.on_unet+nnunet+hardened.seed1.parquet': slices * (every + pgd),
  }
  (cost,) = exp.study_cells('hardened', FIRST, exp.arms).values()
  ((_, drawn),) = cost.others
  assert sum(cost[:3]) == slices * (every + pgd) and drawn.forwards == slices * (1 + 2)
  (cost,) = exp.study_cells('nnunet', FIRST, exp.arms).values()
  assert [its.forwards for _, its in cost.others] == [slices * 3, slices * 4, slices * 4]
  assert exp.study_cells('gen_2', FIRST, exp.arms) == {}
  few = lambda *arms: description.describe(exp, config, arms, light=True)['passes']
  # the second segmenter is not there to meet the images, the first is needed
  beside = few('unet', 'gen_0.5')['studies'] - few('unet')['studies']
  assert beside == slices * (single + 1)


def test_the_forecast_counts_generators_that_are_there(tmp_path):
  config = commandline.load_config('configs/synthesis.py:smoke')
  exp = synthesis.build(config)
  slices, single, both = costs.padded(2 * 3, 8), 2 * (1 + 1) + 1, 2 * 2
  left = lambda *untrained, finished=(): (
    forecast.remaining(
      exp,
      config,
      untrained=untrained,
      models=_models('unet'),
      results=tmp_path,
      finished=finished,
    ).passes
  )
  alone = left()
  assert left(finished=('gen_0.5',)) == alone + slices * single
  assert left(finished=('gen_0.5', 'nnunet')) == alone + slices * (single + both)
  # four steps on four slices: the generator drawn for the critic and trained, three looks of the
  # critic, two of the segmenter; two validations of three slices, each drawn and segmented twice
  training = 4 * 4 * (2 + 3 + 2) + 2 * 3 * (1 + 2)
  assert left('gen_0.5') == alone + training + slices * single


def _work(gradients, *, speeds, monkeypatch, sizes=None):
  """Work of networks {name: gradients} with multiply-adds `sizes`; what was measured."""
  asked = []
  made = {name: types.Task(*[name] * 6, image_shape=(4,)) for name in gradients}
  monkeypatch.setattr(
    forecast,
    'gradients_per_second',
    lambda task, *_, **__: asked.append(task.init) or speeds[task.init],
  )
  monkeypatch.setattr(costs, 'multiply_adds', lambda task: (sizes or {}).get(task.init, 10_000_000))
  work = costs.Work()
  for name, count in gradients.items():
    work.add(made[name], types.Cost(gradients=count, passes=0))
  return work, asked


@pytest.mark.parametrize(
  'gradients, speed, calibrated, said',
  [
    (0, 1.0, 0, None),
    (600, 1.0, 0, None),  # 6e10 multiply-adds are nothing on any machine
    (7_000, 1000.0, 1, None),  # seven seconds
    (
      7_000,
      10.0,
      1,
      '7,000 passes through networks (7,000 input gradients, 0 forward, 0 training)',
    ),
  ],
)
def test_only_what_takes_over_a_minute_is_said(
  gradients, speed, calibrated, said, monkeypatch, capsys
):
  work, asked = _work({'a': gradients}, speeds={'a': speed}, monkeypatch=monkeypatch)
  forecast.announce(work)
  assert len(asked) == calibrated
  err = capsys.readouterr().err
  assert said in err and 'about 11.7 min here' in err if said else err == ''


def test_every_network_has_its_own_speed(monkeypatch):
  sizes = {'large': 100, 'small': 10, 'same': 10, 'tiny': 1}
  counts = {'large': 1000, 'small': 5000, 'same': 100, 'tiny': 500}
  speeds = {'large': 10.0, 'small': 50.0}
  work, asked = _work(counts, speeds=speeds, sizes=sizes, monkeypatch=monkeypatch)
  # the tiny one does too little to be measured: it is as fast an operation as the first
  assert forecast.seconds(work) == pytest.approx(100 + 100 + 2 + 500 / 1000)
  assert asked == ['large', 'small']


def test_kinds_of_passes_have_their_weights():
  work = costs.Work().add(toys.task(), types.Cost(2, 3, 4), 10)
  assert work.by_kind() == {'gradients': 20, 'forwards': 30, 'passes': 40} and work.passes == 90
  each = costs.multiply_adds(next(iter(work.parts.values())).task)
  assert work.multiply_adds() == 10 * (2 * 2 + 3 + 3 * 4) * each


def test_the_rate_counts_examples():
  task, shapes = toys.task(), []
  inner = task.predict
  predict = lambda variables, image: shapes.append(image.shape) or inner(variables, image)
  task = task._replace(predict=predict)
  assert 0 < forecast.gradients_per_second(task, 3) < float('inf')
  assert shapes == [(2, *task.image_shape)]  # four on two devices
  losses = []
  value = task.objectives['bce']
  counted = lambda outputs, batch: losses.append(len(batch['mask'])) or value(outputs, batch)
  task = task._replace(objectives={'bce': counted})
  rate = lambda **more: forecast.gradients_per_second(task, 3, **more)
  assert rate(objective='bce', sample=toys.batch(6)) > 0 and losses == [3]
  assert rate(objective='dice', sample=toys.batch(6)) > 0 and losses == [3]


def test_training_passes_have_their_own_speed(monkeypatch):
  work, _ = _work({'a': 100}, speeds={'a': 10.0}, monkeypatch=monkeypatch)
  (part,) = work.parts.values()
  learning = {id(part.task.predict): lambda: 0.5}  # 0.15 if counted as three forward passes
  few = work.add(part.task, types.Cost(passes=390))
  assert forecast.seconds(few, learning=learning) == pytest.approx(10 + 390 * 0.15)
  many = work.add(part.task, types.Cost(passes=20))
  assert forecast.seconds(many, learning=learning) == pytest.approx(10 + 410 * 0.5)


def test_hosts_of_unequal_speed_time_equally_many_calls(monkeypatch):
  # Each call may meet those of other hosts: one that calls more often waits for ever.
  def calls(pause, said=None):
    told, made = [], []
    say = lambda value: told.append(value) or (value if said is None else said[len(told) - 1])
    monkeypatch.setattr(parallel, 'broadcast_from_writer', say)
    seconds = forecast._seconds_of(lambda: made.append(time.sleep(pause)))
    return len(made), seconds, told

  monkeypatch.setattr(forecast, 'MEASURED', 0.05)
  first, wanted, told = calls(0.002)
  assert first > 8 and calls(0.02, told)[:2] == (first, wanted)


def test_a_training_pass_is_measured_by_an_arm_that_does_not_attack():
  exp, _ = _quickstart()
  asked = []

  def sample(arm):
    asked.append(arm.name)
    source = exp.data.load()
    batches = pipeline.train_batches(
      source.train, batch_size=8, seed=0, shard_index=0, shard_count=1, sampling=source.sampling
    )
    return next(batches), exp.data.augment(source)

  (measure,) = forecast.learning(exp, sample).values()
  assert 0 < measure() < 10 and asked == ['std']
