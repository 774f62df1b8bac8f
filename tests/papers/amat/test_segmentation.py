import nibabel as nib
import numpy as np
import pytest

from robustmed import errors
from robustmed.papers.amat import experiment, report, segmentation
from robustmed.runs import commandline, costs, description, preparation


def config(name='hippocampus', preset='smoke'):
  return commandline.load_config(f'configs/amat_{name}.py:{preset}')


@pytest.mark.parametrize(
  ('name', 'parameters', 'gmacs'),
  [
    ('heart', 29_966_112, 17.92),
    ('hippocampus', 1_928_256, 0.314),
    ('prostate', 29_967_840, 22.43),
  ],
)
def test_paper_presets_are_the_papers_networks(name, parameters, gmacs):
  task = segmentation.make_task(config(name, 'paper'))
  assert costs.parameter_count(task) == parameters
  assert costs.multiply_adds(task) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_smaller_images_keep_the_noise_per_element():
  paper, demo = config('heart', 'paper'), config('heart', 'demo')
  assert paper.noise.scale == 1 and demo.noise.scale == 0.25
  assert demo.evaluate.levels == tuple(level / 4 for level in paper.evaluate.levels)
  assert demo.arms.sat_25.defense.eps == 6.25 and paper.arms.sat_25.defense.eps == 25
  defense = demo.arms.amat.defense
  assert (defense.step, defense.max_margin) == (1.25, 6.25)


@pytest.mark.parametrize('preset', ['', 'smoke', 'real', 'paper', 'authors', 'smoke,authors'])
def test_margins_are_the_authors_by_default(preset):
  arms = experiment.read(config(preset=preset), segmentation).arms
  found = arms.amat.defense
  assert (found.criterion, tuple(found.terms), found.tested) == ('dice', ('_DICE_max',), 'any')
  assert found.when == 'epoch_end' and found.refine and found.max_margin > 0 and not found.strata
  assert arms.amat.thresholds.to_dict() == {
    'estimator': 'mean',
    'k': 0.0,
    'stratum': -1,
    'terms': ('DICE',),
  }


@pytest.mark.parametrize('preset', ['text', 'smoke,text', 'demo,text', 'real,text'])
def test_the_papers_text_is_one_switch_away(preset):
  chosen = config(preset=preset)
  assert chosen.preset == ('paper,text' if preset == 'text' else preset)
  found = experiment.read(chosen, segmentation).arms.amat.defense
  assert (found.criterion, tuple(found.terms), found.tested) == ('loss', ('total',), 'final')
  assert found.when == 'immediate' and found.refine and found.max_margin is None and found.strata


def test_presets_of_a_reading_are_of_the_size_they_name():
  full, small = config(preset='paper'), config(preset='smoke')
  for preset, like in (('authors', full), ('text', full), ('smoke,text', small)):
    chosen = config(preset=preset)
    assert chosen.train == like.train and chosen.data == like.data and chosen.model == like.model
  for preset, message in (
    ('smoke,txt', "unknown reading of a preset 'txt'; did you mean 'text'"),
    ('text,authors', "unknown preset 'text'"),
    ('smoke,text,text', 'unknown reading of a preset'),
  ):
    with pytest.raises(errors.UserError, match=message):
      config(preset=preset)


def test_short_presets_go_on_from_std_and_real_has_every_training_case():
  for preset in ('demo', 'real'):
    arms = experiment.build(config(preset=preset)).arms
    assert (
      arms['std'].init_from == '' and arms['sat_5'].init_from == 'std' == arms['amat'].init_from
    )
    assert arms['sat_5'].train['steps'] == arms['amat'].train['steps']
    if preset == 'demo':
      assert arms['amat'].train['steps'] < arms['std'].train['steps']
  assert config(preset='real').data.train_cases == 0
  assert all(not arm.get('init_from') for arm in config(preset='paper').arms.values())


@pytest.mark.parametrize('preset', ['demo', 'real'])
def test_short_trainings_have_the_recipe_that_does_not_hang_on_the_seed(preset):
  """The paper's own, SGD at 0.01, learned one class of the hippocampus from some seeds alone."""
  for name, arm in experiment.build(config(preset=preset)).arms.items():
    rule = arm.train['optimisers']['main']
    assert (rule['name'], rule['clip'], rule['schedule']) == ('adamw', 1.0, 'cosine'), name
    assert rule['warmup_share'] == 0.1 and rule['lr'] == (1e-2 if name == 'std' else 3e-3), name
  assert config(preset='paper').train.optimisers.main.name == 'sgd'


def test_real_slices_of_the_hippocampus_are_drawn_often_enough_to_reach_the_cap():
  chosen = config(preset='real')
  arm = chosen.arms.amat
  draws = arm.train.steps * chosen.train.batch_size / 5472  # all training cases
  assert draws >= 2 * (arm.defense.max_margin / arm.defense.step - 1)
  assert chosen.arms.sat_5.train.steps == arm.train.steps


def test_standard_and_adversarial_training_have_one_dice_for_the_batch():
  chosen = config()
  arms = experiment.read(chosen, segmentation).arms
  assert arms.std.defense.coupled and arms.sat_5.defense.coupled and arms.sat_15.defense.coupled
  assert 'coupled' not in arms.amat.defense
  assert any('STD and SAT: Dice summed' in note for note in segmentation.notes(chosen))
  built = experiment.build(chosen).arms
  assert built['sat_5'].defense.coupled and not built['amat'].defense.coupled
  with chosen.unlocked():
    chosen.reading.batch_dice = False
  arms = experiment.read(chosen, segmentation).arms
  assert 'coupled' not in arms.std.defense and 'coupled' not in arms.sat_5.defense


def test_readings_reach_the_defense():
  chosen = config()
  with chosen.unlocked():
    chosen.reading.update({'test': 'final', 'cap': False, 'deviations': 2.0})
  arms = experiment.read(chosen, segmentation).arms
  found = arms.amat.defense
  assert found.tested == 'final' and found.max_margin is None and arms.amat.thresholds.k == 2.0
  chosen.reading.criterion = 'luck'
  with pytest.raises(errors.UserError, match=r"unknown criterion.*'luck'.*dice.*loss"):
    experiment.build(chosen)


def test_strata_of_training_slices_are_the_classes_that_they_show():
  chosen = config()
  source = segmentation.load(chosen)
  task = segmentation.make_task(chosen)._replace(predict=lambda variables, image: image)
  shown = lambda outputs, batch: batch['target']['present'].astype(np.float32)
  found = preparation.clean_values(task, {}, shown, source, batch_size=8)
  slices = sorted(source.train, key=lambda one: one['index'])
  assert found.index.tolist() == [int(one['index']) for one in slices]
  assert found.group.tolist() == [int(one['group']) for one in slices]
  np.testing.assert_array_equal(found.stratum, found.values @ [1, 2])
  assert {0, 3} <= set(found.stratum.tolist())


def test_stored_clean_values_are_those_that_claims_are_about():
  stored = {'values': np.ones((3, 1)), 'group': np.arange(3), 'stratum': np.array([0, 3, 3])}
  names = segmentation.make_task(config()).strata.names
  of = lambda preset, kept: report._clean(config(preset=preset), segmentation, kept, strata=names)
  dice, loss = of('smoke', stored), of('smoke,text', stored)
  assert (dice.what, loss.what) == ('Dice', 'losses') and len(dice.values) == 3
  assert list(dice.kinds()) == [''] and list(loss.kinds()) == ['no class', 'anterior and posterior']
  assert of('smoke', {'values': np.ones((3, 1))}).groups is None  # of an earlier version
  assert len(of('smoke', None).values) == 0


def test_configurations_without_the_field_of_strata_are_read_as_they_were():
  chosen = config()
  with chosen.unlocked():
    del chosen.reading.strata
  arms = experiment.read(chosen, segmentation).arms
  assert arms.amat.thresholds.stratum == -1  # V of the Dice was of complete slices
  with chosen.unlocked():
    chosen.reading.criterion = 'loss'
  arms = experiment.read(chosen, segmentation).arms
  assert not arms.amat.defense.strata and 'stratum' not in arms.amat.thresholds


@pytest.mark.parametrize('criterion', ['loss', 'dice'])
def test_the_largest_clean_value_has_no_deviations_and_other_estimators_are_unknown(criterion):
  chosen = config()
  with chosen.unlocked():
    chosen.reading.update({'criterion': criterion, 'estimator': 'max', 'deviations': 2.0})
  more = {'stratum': -1, 'terms': ('DICE',)} if criterion == 'dice' else {}
  assert experiment.read(chosen, segmentation).arms.amat.thresholds.to_dict() == {
    'estimator': 'max',
    **more,
  }
  experiment.build(chosen)
  with chosen.unlocked():
    chosen.reading.estimator = 'median'
  with pytest.raises(errors.UserError, match=r"unknown estimator of thresholds 'median'"):
    experiment.build(chosen)


def test_amat_costs_sat_and_one_forward_pass():
  chosen = config()
  exp = experiment.build(chosen)
  sat, ours = (exp.arms[name].defense.cost for name in ('sat_5', 'amat'))
  assert ours.gradients == sat.gradients and ours.passes == sat.passes
  assert ours.forwards == sat.forwards + 1
  plan = description.describe(exp, chosen, light=True)
  assert plan['passes']['per_arm']['amat'] > plan['passes']['per_arm']['sat_5']


def test_a_centred_patch_goes_back_to_its_place():
  cut = np.arange(1, 13).reshape(3, 4)
  wide = segmentation._paste(cut, (5, 6))
  np.testing.assert_array_equal(wide[1:4, 1:5], cut)
  assert wide.sum() == cut.sum()
  narrow = segmentation._paste(cut, (2, 3))
  # the patch began (2 - 3) // 2 = -1 rows and (3 - 4) // 2 = -1 columns before the slice
  np.testing.assert_array_equal(narrow, cut[1:3, 1:4])


def test_scores_of_whole_volumes():
  chosen = config()
  truth = np.zeros((4, 8, 8), int)
  truth[1:3, 2:6, 2:6] = 1
  predicted = truth.copy()
  predicted[1:3, 2:4, 2:6] = 0
  one, two = segmentation._scores(predicted, truth, (1.0, 1.0, 1.0), chosen)
  assert one['Dice'] == pytest.approx(2 * 16 / (16 + 32)) and one['class'] == 'anterior'
  assert 0 < one['HD95_mm'] <= 2
  assert (two['Dice'], two['HD95_mm'], two['NSD']) == (1.0, 0.0, 1.0)  # nowhere, and not found


def test_worst_examples_are_nifti_slices(tmp_path):
  image = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
  labels = np.array([[-1, 0, 1, 2]] * 6)
  spacing = np.array([3.0, 0.5, 0.7])
  example = {'group': 3, 'index': 17, 'target': {'labels': labels, 'spacing': spacing}}
  segmentation.write_example(tmp_path, image, example)
  found = nib.load(tmp_path / 'case_003_000017.nii.gz')
  np.testing.assert_array_equal(found.get_fdata(), image.transpose(1, 0, 2)[:, :, None, :])
  assert found.header.get_zooms()[:3] == pytest.approx((0.7, 0.5, 3.0))
  mask = nib.load(tmp_path / 'case_003_000017_label.nii.gz').get_fdata()
  np.testing.assert_array_equal(mask[:, :, 0], np.maximum(labels, 0).T)
