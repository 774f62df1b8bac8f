import pytest

from robustmed import errors
from robustmed.data import streams

FIELDS = {'seed': 3, 'noise': 0.1, 'train_images': 3, 'validation_images': 1, 'test_images': 2}


def _drawn(fields):
  draw = lambda rng, *, index, name: (index, name, int(rng.integers(2**31)))
  return {split: list(found) for split, found in streams.splits(fields, draw).items()}


def test_indices_count_through_the_splits_and_images_stay_when_there_are_more():
  few, more = _drawn(FIELDS), _drawn({**FIELDS, 'train_images': 5})
  assert list(few) == ['train', 'validation', 'test']
  assert [index for rows in few.values() for index, _, _ in rows] == [0, 1, 2, 3, 4, 5]
  assert few['test'][1][1] == 'phantom_test_0001'
  assert few['train'] == more['train'][:3]
  assert [row[1:] for row in few['test']] == [row[1:] for row in more['test']]
  assert len({number for rows in few.values() for _, _, number in rows}) == 6
  assert _drawn({**FIELDS, 'seed': 4})['test'][0][2] != few['test'][0][2]


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [({'test_images': 0}, 'test_images must be at least 1'), ({'noise': 1.5}, 'noise .* not 1.5')],
)
def test_fields_out_of_range(wrong, says):
  streams.check(FIELDS)
  with pytest.raises(errors.UserError, match=says):
    streams.check({**FIELDS, **wrong})
