"""Margins of slices that show different classes, with a network that is right in every pixel."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from robustmed import data, errors, types
from robustmed.papers.amat import experiment, segmentation
from robustmed.runs import commandline, preparation
from robustmed.runs import experiment as experiments

KINDS = ((), (1,), (2,), (1, 2))  # the classes that a slice shows
EACH = 8  # slices of every kind
SHAPE = (24, 16)


class Split(list):
  def stack(self, feature):
    return np.stack([example[feature] for example in self])


def slices():
  """Slices whose pixels are label + certainty, [0.2, 0.5), of the network below."""
  found = []
  for kind, shown in enumerate(KINDS):
    for i in range(EACH):
      labels = np.zeros(SHAPE, np.int32)
      for k in shown:
        labels[4 : 8 + i, 8 * k - 6 : 8 * k - 2] = k
      image = labels + 0.2 + 0.3 * i / EACH
      number = kind * EACH + i
      found.append(
        {
          'image': image[..., None].astype(np.float32),
          'labels': labels,
          'present': np.isin([1, 2], shown),
          'index': number,
          'group': i,
          'name': str(number),
        }
      )
  return Split(found)


def predict(variables, image):
  del variables
  label = jnp.floor(image)
  certainty = 3 + 10 * jnp.mean(image - label, axis=(1, 2))  # 5 to 8
  logits = certainty[:, None, None] * (label == jnp.arange(3).reshape(1, 1, 1, 3)).astype(
    jnp.float32
  )
  return {'head0': logits}


def without_posterior(variables, image):
  """A network that is right but for the second class, which it takes for background."""
  return predict(variables, jnp.where(image > 2, image - 2, image))


def task(predict=predict):
  own = segmentation.make_task(commandline.load_config('configs/amat_hippocampus.py:smoke'))
  return own._replace(
    predict=predict, forward=lambda variables, image, key: (predict(variables, image), {})
  )


def defense(folder, task=task, **reading):
  """The amat arm with thresholds from the network, and margins too small to change anything."""
  chosen = commandline.load_config('configs/amat_hippocampus.py:smoke')
  with chosen.unlocked():
    chosen.reading.update(reading)
  arm = experiment.read(chosen, segmentation).arms.amat.to_dict()
  prepare = preparation.with_thresholds(
    task(),
    {**arm['defense'], 'step': 1e-3},
    make=experiments.make_defense,
    arm='std',
    options=arm['thresholds'],
  )
  config = ml_collections.ConfigDict({'evaluate': {'batch_size': 8}})
  source = data.Source(slices(), Split())
  return prepare(preparation.Finished(lambda arm: {'params': {}}, source, config, 0, folder))


def grown(made):
  """Which slices pass the test of their margin, [kinds, EACH]."""
  found = slices()
  number = len(found)
  batch = {
    'image': jnp.asarray(found.stack('image')),
    'target': {name: jnp.asarray(found.stack(name)) for name in ('labels', 'present')},
    'index': jnp.arange(number),
    'draw': jnp.arange(number),
    'mask': jnp.ones(number, bool),
  }
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch['draw'])
  context = types.LossContext({}, made.init(number), batch, keys, jax.random.key(1), jnp.float32(0))
  aux = made.phases[0].loss({}, context)[1]
  return np.asarray(aux['passed']).reshape(len(KINDS), EACH) > 0.5


@pytest.mark.slow
def test_with_the_loss_margins_of_empty_slices_grow_like_those_of_others(tmp_path):
  shares = grown(defense(tmp_path, criterion='loss', test='final')).mean(axis=1)
  # half of each kind has a loss below the mean of its kind, about
  assert ((shares >= 0.25) & (shares <= 0.75)).all(), shares
  with np.load(tmp_path / 'thresholds.npz') as stored:
    assert stored['xi'].shape == (4, 1) and (np.diff(stored['xi'][[3, 1, 0], 0]) > 0.2).all()
    np.testing.assert_array_equal(stored['stratum'], np.repeat(range(4), EACH))
    for place, limit in enumerate(stored['xi'][:, 0]):
      values = stored['values'][stored['stratum'] == place]
      np.testing.assert_allclose(limit, values.mean(), rtol=1e-12)


def test_to_the_letter_empty_slices_never_grow_and_complete_ones_do(tmp_path):
  found = grown(defense(tmp_path, criterion='loss', test='final', strata=False))
  assert not found[0].any() and found[3].all()


def test_with_the_dice_slices_with_any_class_grow(tmp_path):
  """The threshold is that of slices with every class; an empty slice has a Dice of 0."""
  found = grown(defense(tmp_path))
  assert found.mean(axis=1).tolist() == [0, 1, 1, 1]
  with np.load(tmp_path / 'thresholds.npz') as stored:
    assert stored['xi'].tolist() == [1] and (stored['stratum'] == 3).all()
    np.testing.assert_array_equal(stored['index'], range(3 * EACH, 4 * EACH))


def test_the_threshold_is_of_all_classes_and_the_test_of_the_best(tmp_path):
  """As in the authors' code, where a network without attack passes with the better class."""
  found = grown(defense(tmp_path, lambda: task(without_posterior)))
  assert found.mean(axis=1).tolist() == [0, 1, 0, 1]
  with np.load(tmp_path / 'thresholds.npz') as stored:
    np.testing.assert_allclose(stored['xi'], [0.5], rtol=1e-6)
    np.testing.assert_allclose(stored['values'], np.full((EACH, 1), 0.5), rtol=1e-6)


def test_other_values_for_thresholds_are_as_many_as_those_tested():
  own, options = task(), {'terms': ('DICE', '_DICE_max')}
  arm = {'criterion': 'dice', 'terms': ('_DICE_max',)}
  with pytest.raises(errors.UserError, match='thresholds of 2 values do not fit the 1'):
    preparation.with_thresholds(own, arm, make=None, arm='std', options=options)


def test_no_slice_with_every_class_is_one_line(tmp_path, monkeypatch):
  few = Split(slices()[: 3 * EACH])
  monkeypatch.setitem(globals(), 'slices', lambda: few)
  with pytest.raises(
    errors.UserError, match="no training example is of the stratum 'anterior and post"
  ):
    defense(tmp_path)
