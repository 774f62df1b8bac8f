"""The study of gliomas without training: its networks, readings, arms, files and claims."""

import jax
import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.data.files import nifti
from robustmed.evaluation import claims, examples, trials
from robustmed.papers.brats import claims as brats_claims
from robustmed.papers.brats import evaluation, experiment, published, tables
from robustmed.runs import commandline, costs, description, preparation
from support import tumour_rows


def config(dimension=3, preset='smoke'):
  return commandline.load_config(f'configs/brats{dimension}d.py:{preset}')


@pytest.mark.parametrize(
  ('dimension', 'parameters', 'gmacs'), [(3, 8_269_676, 176.5), (2, 2_775_788, 1.09)]
)
def test_paper_presets_are_the_papers_networks(dimension, parameters, gmacs):
  chosen = config(dimension, 'paper')
  task = experiment.make_task(chosen)
  assert costs.parameter_count(task) == parameters
  assert costs.multiply_adds(task) / 1e9 == pytest.approx(gmacs, rel=5e-3)
  students = [name for name in chosen.arms if name.startswith('distil_')]
  assert students == ['distil_20', 'distil_100', 'distil_500', 'distil_5000']
  assert {'at_01', 'at_05', 'at_10', 'noise', 'pgd_05', 'wrong_labels'} <= set(chosen.arms)
  assert chosen.evaluate.levels == tuple(np.round(np.arange(1, 11) / 100, 2))


def _multiplied(preset='demo'):
  chosen = config(3, preset)
  with chosen.unlocked():
    chosen.reading.distillation = 'logit_gain'
  return experiment.build(chosen)


def _temperatures(exp):
  return [name.removeprefix('distil_') for name in exp.arms if name.startswith('distil_')]


def test_multiplied_logits_are_trained_once_for_all_temperatures():
  exp = _multiplied('paper')
  assert _temperatures(exp) == ['20', '100', '500', '5000']
  for kind, waits in (('teacher', ()), ('distil', ('teacher_20',))):
    first, *others = (f'{kind}_{number}' for number in _temperatures(exp))
    assert exp.arms[first].train['steps'] == exp.arms['std'].train['steps']
    assert exp.arms[first].needs == waits and exp.arms[first].prepared.variables is None
    for name in others:
      arm, gain = exp.arms[name], float(name.split('_')[1])
      assert arm.train['steps'] == 0 and arm.needs == (first,) and arm.prepared.defense is None
      assert arm.network.fields == {'logit_gain': gain}
      load = {first: {'params': {'w': 3}, 'fixed': {'logit_gain': 20.0}}}.get
      start = arm.prepared.variables(preparation.Finished(load, None, None, 0, None))
      own = {'params': {'w': 1}, 'fixed': {'logit_gain': gain}}
      assert start(own) == {'params': {'w': 3}, 'fixed': {'logit_gain': gain}}
  assert (
    description.describe(exp, config(3, 'paper'), light=True)['passes']['per_arm']['distil_5000']
    == 0
  )


@pytest.mark.slow
def test_networks_with_a_gain_share_all_programs():
  exp = _multiplied()
  for number in _temperatures(exp):
    task = exp.task_of(f'distil_{number}')
    assert task.predict is exp.task.predict and task.init is not exp.task.init
    variables = task.init(jax.random.key(0))
    assert float(variables['fixed']['logit_gain']) == float(number)
  assert exp.task_of('std').init is exp.task.init


@pytest.mark.parametrize('preset', ['demo', 'smoke', 'real', 'paper'])
@pytest.mark.parametrize('dimension', [2, 3])
def test_distillation_is_literal_and_compares_temperatures_alone(preset, dimension):
  chosen = config(dimension, preset)
  exp = experiment.build(chosen)
  assert chosen.reading.distillation == 'literal' and len(_temperatures(exp)) >= 1
  teachers = [exp.arms[f'teacher_{number}'] for number in _temperatures(exp)]
  students = [exp.arms[f'distil_{number}'] for number in _temperatures(exp)]
  assert {arm.key for arm in teachers} == {exp.arms['std'].key} == {0}
  assert {arm.key for arm in students} == {1}
  for number, teacher, student in zip(_temperatures(exp), teachers, students, strict=True):
    assert teacher.network.task is None and student.network.fields == {}
    assert student.prepared.variables is None
    assert student.needs == (f'teacher_{number}',) and teacher.evaluated == ()
    assert teacher.train == student.train == exp.arms['at_05'].train
    assert float(teacher.defense.init(1)['temperature']) == float(number)


def test_readings_reach_the_arms():
  chosen = config(3, 'demo')
  assert len(experiment.build(chosen).arms['at_05'].defense.phases) == 2
  with chosen.unlocked():
    chosen.reading.update({'updates': 'together', 'epochs': 'paper'})
  exp = experiment.build(chosen)
  assert len(exp.arms['at_05'].defense.phases) == 1
  std, other = exp.arms['std'].train, exp.arms['at_05'].train
  assert std['steps'] == other['steps'] // 4
  assert std['optimisers']['main']['lr'] == pytest.approx(other['optimisers']['main']['lr'] / 5)
  chosen.reading.updates = 'never'
  with pytest.raises(errors.UserError, match=r"unknown reading of updates 'never'.*in_turn"):
    experiment.build(chosen)


def test_slices_train_on_the_dice_of_the_batch_and_volumes_on_their_own():
  coupled = lambda dimension: {
    arm.defense.coupled for arm in experiment.build(config(dimension)).arms.values()
  }
  assert coupled(2) == {True} and coupled(3) == {False}


def test_attacks_that_are_not_there_are_left_out():
  def reduced(*kept):
    chosen = config()
    with chosen.unlocked():
      for name in set(chosen.evaluate.attacks) - {*kept}:
        del chosen.evaluate.attacks[name]
    exp = experiment.build(chosen)
    shown = evaluation.shown_attacks(exp, 'std', eps=0.03)
    assert evaluation.shown_attacks(exp, 'noise', eps=0.03) == shown[:1]
    return exp.grid.main, shown, len(experiment.study_cells(chosen, 'std', trials.Trial(0), ()))

  three = [('fgsm', 0.05), ('ifgsm', 0.05), ('tifgsm', 0.05)]
  assert reduced('fgsm', 'ifgsm', 'tifgsm') == ('fgsm', [('fgsm', 0.03), *three], 2)
  assert reduced('fgsm') == ('fgsm', [('fgsm', 0.03), three[0]], 0)
  assert reduced('tifgsm', 'noise') == ('tifgsm', [('tifgsm', 0.03), three[2]], 1)
  assert reduced('square') == ('square', [('square', 0.03)], 0)


def test_files_show_the_tables_level_or_the_largest():
  probe = experiment.build(config()).grid.probes['fgsm']
  assert evaluation.shown_eps(probe) == 0.05
  assert evaluation.shown_eps(probe._replace(levels=(0.01, 0.1))) == 0.1


def test_artefacts_can_be_switched_on():
  chosen = config()
  assert 'motion' not in experiment.build(chosen).grid.probes
  with chosen.unlocked():
    chosen.evaluate.corruptions = ('motion', 'rician')
  probes = experiment.build(chosen).grid.probes
  assert probes['motion'].objective == 'dice' and len(probes['rician'].levels) == 4
  chosen.evaluate.corruptions = ('rain',)
  with pytest.raises(errors.UserError, match=r"unknown corruption 'rain'.*motion"):
    experiment.build(chosen)


def test_wrong_labels_come_before_the_movements():
  chosen = config(2)
  rng = np.random.default_rng(0)
  labels = np.zeros((4, 16, 16), np.int32)
  labels[:, 5:9, 5:9] = 1
  batch = {
    'image': rng.uniform(0, 1, (4, 16, 16, 4)).astype(np.float32),
    'target': {'labels': labels},
    'index': np.arange(4, dtype=np.int32),
  }
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(4))
  spoil = experiment.make_augment(chosen, {'wrong_labels': 'dilate', 'wrong_share': 1.0})(None)
  plain = experiment.make_augment(chosen)(None)
  wrong, right = (np.asarray(f(keys, batch)['target']['labels']) for f in (spoil, plain))
  assert right.sum() == 4 * 16 and wrong.sum() == 4 * 36


def test_memory_of_a_step_counts_updates_in_turn_one_by_one():
  exp = experiment.build(config())
  assert description.device_bytes(exp, ('at_05',)) == description.device_bytes(exp, ('std',))


def test_two_series_of_real_data_make_a_network_of_two_channels(shared_data):
  chosen = config(2)
  with chosen.unlocked():
    chosen.data.update({'source': 'brats', 'dir': str(shared_data / 'brats2015_deepmedic')})
  assert experiment.make_task(chosen).image_shape == (16, 16, 2)


def test_a_prediction_goes_back_to_the_grid_of_its_file(tmp_path):
  affine = np.diag([-1.5, -1.0, 2.0, 1.0])
  box = np.array([[1, 5], [2, 8], [0, 4]])
  truth = np.random.default_rng(0).integers(0, 4, (16, 16, 16))
  target = {'affine': affine, 'grid': np.array([6, 9, 7]), 'box': box}
  logits = 5.0 * np.eye(4)[truth]
  image = np.repeat(truth[..., None] / 4, 2, axis=-1)

  def example(cut, **more):
    fields = {'image': image[cut], 'group': 3, 'target': {**target, **more}}
    return examples.Example(fields, image[cut], {'head0': logits[cut]}, {'head0': logits[cut]})

  whole = [example(slice(None))]
  order = np.random.default_rng(1).permutation(16)
  parts = [example(place, position=place) for place in order]
  for name, found in (('whole', whole), ('slices', parts)):
    evaluation.write_case(tmp_path, name, found)
  for kind in ('clean', 'adversarial', 'prediction', 'prediction_clean'):
    axes = 4 if kind in ('clean', 'adversarial') else 3
    one, two = (
      nifti.read(tmp_path / f'{name}_{kind}.nii.gz', axes=axes) for name in ('whole', 'slices')
    )
    np.testing.assert_array_equal(one.array, two.array)
    np.testing.assert_array_equal(one.affine, affine)
    assert one.array.shape[:3] == (6, 9, 7) and one.array.dtype == np.float32
  labels = nifti.read(tmp_path / 'whole_prediction.nii.gz').array
  assert set(np.unique(labels)) <= {0, 1, 2, 4} and (labels == 4).any()
  want = nifti.restore(np.array([0, 1, 2, 4])[truth], nifti.Geometry(affine, target['grid'], box))
  np.testing.assert_array_equal(labels, want)


def test_published_tables():
  table = published.defenses(3)
  cell = lambda frame, arm, eps: frame[
    (frame['arm'] == arm) & (frame['metric'] == 'dice_wt') & (frame['eps'] == eps)
  ].iloc[0]
  assert cell(table, 'std', 0.05)['mean'] == 0.676 and np.isnan(cell(table, 'std', 0.05)['p'])
  best = cell(table, 'distil_5000', 0.1)
  assert (best['mean'], best['std'], best['star'], best['p']) == (0.758, 0.182, 1, 1.678e-7)
  assert cell(published.defenses(2), 'at_10', 0.05)['mean'] == 0.749
  assert len(table) == 3 * 3 * 8
  attacks = published.attacks().set_index(['attack', 'metric'])
  assert attacks.loc[('ifgsm', 'psnr'), 'mean'] == 27.93
  assert attacks.loc[('tifgsm', 'dice_et'), 'star'] == 1 and attacks['mean'].isna().sum() == 3


def decide(frame, **fields):
  options = {
    'dimension': 3,
    'arms': list(tumour_rows.DICE),
    'training': tumour_rows.log(),
    'other': None,
    **fields,
  }
  made = brats_claims.of_paper(frame, adaptive=tumour_rows.ATTACKS[1:], **options)
  return claims.decide(made, frame).set_index('statement')


def _seeds(frame, count):
  return pd.concat([frame.assign(seed=seed) for seed in range(count)], ignore_index=True)


@pytest.mark.slow
def test_what_grows_with_temperature_takes_three_trainings():
  frame = tumour_rows.rows()
  for count, verdict in ((1, 'undecided'), (2, 'undecided'), (3, 'holds')):
    found = decide(_seeds(frame, count))
    grows = found[found.index.str.startswith('Robustness to FGSM grows with T')]
    assert len(grows) == 3 and set(grows['verdict']) == {verdict}, count
    said = grows['numbers'].str.contains('too few trainings: . of at least 3 trainings')
    assert said.all() if count < 3 else not said.any()
  backwards = {**tumour_rows.DICE, 'distil_5000': tumour_rows.DICE['std']}
  found = decide(_seeds(tumour_rows.rows(backwards), 3))
  grows = found[found.index.str.startswith('Robustness to FGSM grows with T')]
  assert set(grows['verdict']) == {'fails'}


def test_claims_hold_where_the_numbers_are_the_papers():
  other = _seeds(tumour_rows.rows({'std': (0.78, 0.5, 0.3, 0.4, 0.5)}), 3)
  log = _seeds(tumour_rows.log(at=0.8), 3)
  found = decide(_seeds(tumour_rows.rows(), 3), other=other, training=log)
  cost = 'Adversarial training is cheaper than distillation (seconds per step)'
  assert found.loc[cost, 'verdict'] == 'measured'  # fewer than five trainings of each
  waiting = found.drop(cost)[found.drop(cost)['verdict'] != 'holds']
  curves = waiting.index.str.startswith('Dice falls with the iterations')
  assert curves.sum() == 6 and waiting[curves]['numbers'].str.startswith('no curves').all()
  assert waiting[~curves].index.tolist() == ['A larger training eps is not always better']
  assert waiting[~curves]['numbers'].item() == (
    'fewer than three training levels of adversarial training'
  )
  assert 'i-FGSM lowers core Dice more than ti-FGSM' in found.index
  left = 'Of the gain of distil_5000 under FGSM less than a third is left under the worst attack'
  assert found.loc[left, 'verdict'] == 'holds'


def test_claims_that_cannot_be_decided_say_why():
  found = decide(tumour_rows.rows(), training=None)
  lost = found[found['verdict'] == 'not run']['numbers']
  assert any('config.report.other' in text for text in lost)
  assert any('no training log' in text for text in lost)
  few = decide(tumour_rows.rows(subjects=2))
  assert 'holds' not in set(few['verdict'])


def test_what_cannot_be_tested_is_not_counted_before_the_run():
  missing = brats_claims.Missing('no training log')
  assert claims.reach([claims.Claim('', '', missing)], 57).tested == 0


def test_costs_are_compared_with_both_trainings_of_a_student():
  dear = decide(tumour_rows.rows(), training=tumour_rows.log(at=1.2))
  statement = 'Adversarial training is cheaper than distillation (seconds per step)'
  assert dear.loc[statement, 'verdict'] == 'measured'
  assert dear.loc[statement, 'numbers'].startswith('1.333 (1.333 to 1.333 over ')
  ratio = brats_claims.cost_ratios(
    tumour_rows.log(at=0.8), brats_claims.arms_of(list(tumour_rows.DICE))
  )['ratio']
  np.testing.assert_allclose(ratio, 0.8 / 0.9)


def test_more_budgets_make_the_claim_about_them_testable():
  more = {
    **tumour_rows.DICE,
    'at_01': tumour_rows.DICE['noise'],
    'at_10': tumour_rows.DICE['noise'],
  }
  found = decide(tumour_rows.rows(more), arms=list(more))
  named = [text for text in found.index if text.startswith('A larger training eps')]
  assert [text.rsplit(': ', 1)[1] for text in named] == ['at_05 above at_10']
  assert set(found.loc[named, 'verdict']) == {'holds'}


def test_tables_carry_the_papers_numbers_and_their_family():
  frame = tumour_rows.rows()
  first = tables.attacks(frame, eps=0.05)
  assert first['attack'].tolist()[:4] == ['No attack', 'No attack (paper)', 'FGSM', 'FGSM (paper)']
  assert first.loc[3, 'core'] == '0.561 ± 0.077*' and first.loc[2, 'whole tumour'].endswith('*')
  arms = {name: name for name in tumour_rows.DICE}
  table, tests = tables.defenses(frame, arms=arms, dimension=3, levels=(0.05, 0.1))
  assert len(tests) == 4 * 3 * 3 and set(tests['family']) == {
    '3 defenses of the paper x 3 regions x 3 levels: 27 tests',
    '1 defense beside them x 3 regions x 3 levels: 9 tests',
  }
  paper = table[table['defense'] == 'distil_5000 (paper)'].iloc[0]
  assert paper['Dice 0.05'] == '0.809 ± 0.161*' and paper['p (Holm) 0'] == '0.871 (raw)'
  assert 'noise (paper)' not in set(table['defense'])
  strong = tables.stronger(frame, arms=arms, eps=0.05, metric='dice_wt').set_index('arm')
  assert strong.loc['distil_5000', 'lowest per subject'] == pytest.approx(0.40, abs=0.03)
  assert np.isnan(strong.loc['std', 'noise'])
  against = tables.rivals(
    frame, distilled=['distil_100', 'distil_5000'], trained=['at_05'], levels=(0.0, 0.05)
  )
  assert len(against) == 3 * 2 * 3 and (against['p_holm'] <= against['p_bonferroni'] + 1e-12).all()
  signs = tables.diagnostics(frame, arms=arms, eps=0.05).set_index('arm')
  assert signs.loc['distil_100', 'zero gradients'] == pytest.approx(0.9)
  assert signs.loc['std', 'RMSE of FGSM at 0.05'] == pytest.approx(0.04)
  assert tables.artefacts(frame, arms=arms, metric='dice_wt').empty


def test_another_run_that_is_not_there_is_told_before_the_training(tmp_path):
  chosen = config()
  with chosen.unlocked():
    chosen.report.other = str(tmp_path)
  with pytest.raises(errors.UserError, match=r'config\.report\.other: no results in'):
    experiment.build(chosen)
