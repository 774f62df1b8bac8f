import numpy as np
import pytest

from robustmed import errors
from robustmed.papers.two_moons import moons

FIELDS = {
  **moons.FIELDS,
  'replicates': 3,
  'points': 60,
  'kept': 10,
  'test_points': 30,
  'far_points': 100,
}


@pytest.fixture(scope='module')
def splits():
  return moons.splits(FIELDS, seed=5)


def test_sizes_kinds_and_labels(splits):
  assert {name: len(split) for name, split in splits.items()} == moons.sizes(FIELDS)
  train, test = splits['train'], splits['test']
  kind, label = train.stack('kind'), train.stack('label')[:, 0]
  for replicate in range(3):
    own = np.array(train.groups) == replicate
    counts = np.bincount(kind[own], minlength=6)
    assert counts.tolist() == [60, 50, 10, 0, 0, 0]
  np.testing.assert_array_equal(label, kind != moons.NEGATIVE)
  assert (test.stack('label')[test.stack('kind') == moons.FAR] == 0).all()
  assert (test.stack('label')[test.stack('kind') == moons.TAIL] == 1).all()
  np.testing.assert_array_equal(train.stack('image')[:, 2], train.groups)
  index = np.concatenate([train.stack('index'), test.stack('index')])
  assert len(set(index)) == len(index)


def test_replicates_and_seeds_have_points_of_their_own_and_repeat(splits):
  image = splits['train'].stack('image')
  groups = np.array(splits['train'].groups)
  assert not np.intersect1d(image[groups == 0, 0], image[groups == 1, 0]).size
  again = moons.splits(FIELDS, seed=5)['train'].stack('image')
  np.testing.assert_array_equal(image, again)
  assert (moons.splits(FIELDS, seed=6)['train'].stack('image') != again)[:, :2].all()


def test_the_points_lie_about_their_arcs(splits):
  for split, kinds in (('train', (0, 1, 2)), ('test', (moons.TEST, moons.TAIL))):
    known = np.isin(splits[split].stack('kind'), kinds)
    away = moons.distance(splits[split].stack('image')[known, :2].astype(float))
    assert away.max() < 5 * 0.15 and 0.05 < away.mean() < 0.2
  # by hand: the positive arc is the lower half of the unit circle about (1, 0.5)
  by_hand = moons.distance(np.array([[0.0, 0.0], [0.0, 3.0]]))
  np.testing.assert_allclose(by_hand, [np.sqrt(1.25) - 1, 2.0], atol=1e-3)


def test_far_is_far_and_within_the_box(splits):
  xy = splits['test'].stack('image')[splits['test'].stack('kind') == moons.FAR, :2]
  assert len(xy) == 300 and moons.distance(xy.astype(float)).min() > 0.999
  low, high = np.array(moons.FIELDS['box']).T
  assert (xy >= low).all() and (xy <= high).all()
  assert np.ptp(xy, axis=0).min() > 5


def test_the_kept_positives_thin_out_along_the_arc():
  fields = {**FIELDS, 'replicates': 20, 'points': 500, 'kept': 20}
  train = moons.splits(fields, seed=0)['train']
  kind, xy = train.stack('kind'), train.stack('image')[:, :2]
  # the positive arc is (1 - cos, 0.5 - sin): x is 0 at its beginning and 2 at its end
  halves = [(xy[kind == which, 0] > 1).mean() for which in (moons.KEPT, moons.DROPPED)]
  expected = (np.exp(-2) - np.exp(-4)) / (1 - np.exp(-4))
  assert halves[0] == pytest.approx(expected, abs=0.06) and halves[1] > 0.5


def test_the_tail_is_the_second_half_of_the_arc(splits):
  test = splits['test']
  xy, kind = test.stack('image')[:, :2], test.stack('kind')
  assert xy[kind == moons.TAIL, 0].mean() > 1.3
  assert 0.3 < (kind == moons.TAIL).sum() / 90 < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
  ('field', 'value', 'match'),
  [
    ('kept', 61, 'kept=61 is above the points=60'),
    ('replicates', 0, 'replicates must be at least 1'),
    ('box', ((1.0, -1.0), (0.0, 1.0)), r'box must be \(low, high\)'),
    ('far', 50.0, 'no point of the box is that far'),
  ],
)
def test_mistakes(field, value, match):
  with pytest.raises(errors.UserError, match=match):
    moons.splits({**FIELDS, field: value}, seed=0)
