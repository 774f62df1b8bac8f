import nibabel as nib
import numpy as np
import pytest

from robustmed import errors
from robustmed.papers.amat import experiment, segmentation
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


def test_readings_reach_the_defense():
  chosen = config()
  with chosen.unlocked():
    chosen.reading.update({'criterion': 'dice', 'test': 'any', 'cap': False, 'deviations': 2.0})
    chosen.reading.batch_dice = False
  arms = experiment.read(chosen, segmentation).arms
  found = arms.amat.defense
  assert (found.criterion, tuple(found.terms), found.tested) == ('dice', ('_DICE_max',), 'any')
  assert found.max_margin is None and arms.amat.thresholds.k == 2.0
  assert 'coupled' not in arms.std.defense
  assert experiment.read(config(), segmentation).arms.std.defense.coupled
  chosen.reading.criterion = 'luck'
  with pytest.raises(errors.UserError, match=r"unknown criterion.*'luck'.*dice.*loss"):
    experiment.build(chosen)


def test_a_dice_threshold_looks_at_slices_that_show_every_class():
  chosen = config()
  source = segmentation.load(chosen)
  complete = [int(one['index']) for one in source.train if one['present'].all()]
  assert 0 < len(complete) < len(source.train)
  task = segmentation.make_task(chosen)._replace(predict=lambda variables, image: image)
  shown = lambda outputs, batch: batch['target']['present'].astype(np.float32)

  def looked_at(criterion):
    with chosen.unlocked():
      chosen.reading.criterion = criterion
    view = segmentation.clean_view(chosen)
    return preparation.clean_values(task, {}, shown, source, batch_size=8, view=view)

  index, group, values = looked_at('dice')
  assert index.tolist() == complete and (values == 1).all()
  owner = {int(one['index']): int(one['group']) for one in source.train}
  assert group.tolist() == [owner[number] for number in complete]
  assert len(looked_at('loss')[0]) == len(source.train)


@pytest.mark.parametrize('criterion', ['loss', 'dice'])
def test_the_largest_clean_value_has_no_deviations_and_other_estimators_are_unknown(criterion):
  chosen = config()
  with chosen.unlocked():
    chosen.reading.update({'criterion': criterion, 'estimator': 'max', 'deviations': 2.0})
  assert experiment.read(chosen, segmentation).arms.amat.thresholds.to_dict() == {
    'estimator': 'max'
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
  assert plan['gradients']['per_arm']['amat'] > plan['gradients']['per_arm']['sat_5']


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
