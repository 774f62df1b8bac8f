"""What the disk-shape experiments share."""

import jax
import numpy as np
import pytest

from robustmed import data, errors, papers
from robustmed.papers.spine import disks
from robustmed.runs import commandline, preparation


def _start(**changes):
  """The configuration of a smoke run and the arms of its experiment."""
  config = commandline.load_config('configs/quickstart.py:smoke')
  config.update(changes)
  return config, papers.find('quickstart').build(config).arms


@pytest.mark.slow
@pytest.mark.parametrize('model', ['disk_shape', 'disk_shape_lite'])
def test_the_contour_starts_at_the_mean_of_the_training_contours(model, tmp_path):
  config, arms = _start()
  config.model.name = model
  source = data.load(disks.source_config(config))
  finished = preparation.Finished(lambda arm: None, source, config, 0, tmp_path)
  task = disks.make_task(config)
  variables = task.init(jax.random.key(0))
  changed = arms['std'].prepared.variables(finished)(variables)
  outputs = task.predict(changed, source.test.stack('image'))
  mean = source.train.stack('contour').mean(0)
  np.testing.assert_allclose(outputs['contour'], np.broadcast_to(mean, outputs['contour'].shape))
  before = task.predict(variables, source.test.stack('image'))
  np.testing.assert_array_equal(outputs['segmentation'], before['segmentation'])
  with pytest.raises(errors.UserError, match='mean_contour=False'):
    arms['std'].prepared.variables(finished)({'params': {}})


def test_arms_that_go_on_from_another_keep_its_contour():
  _, arms = _start()
  assert arms['std'].prepared.variables and not arms['adv'].prepared.variables
  _, arms = _start(mean_contour=False)
  assert arms['std'].prepared.variables is None
