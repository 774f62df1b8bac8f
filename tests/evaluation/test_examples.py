"""The first examples of the data, whatever the batches and hosts."""

import numpy as np
import pytest

from robustmed.evaluation import examples
from robustmed.process import parallel


def _batches(size, count, hosts=1):
  """The batches of every host, the last ones padded with the last example."""
  places = np.arange(-(-count // (size * hosts)) * size * hosts).reshape(-1, hosts, size)
  made = lambda at: {
    'image': np.minimum(at, count - 1)[:, None] * np.ones((1, 2), np.float32),
    'target': {'label': np.minimum(at, count - 1)},
    'mask': at < count,
    'index': np.minimum(at, count - 1),
    'group': np.minimum(at, count - 1),
    'draw': at,
  }
  return [[made(at) for at in host] for host in places.swapaxes(0, 1)]


@pytest.mark.parametrize('size', [1, 2, 5])
def test_the_first_examples_do_not_depend_on_batches(size):
  (batches,) = _batches(size, 5)
  for count, want in ((3, 3), (9, 5)):
    found = examples.first(batches, count)
    np.testing.assert_array_equal(found['index'], np.arange(want))
    np.testing.assert_array_equal(found['image'][:, 1], np.arange(want))
    np.testing.assert_array_equal(found['target']['label'], np.arange(want))
    assert found['mask'].all()
  assert examples.first([], 3) is None


def test_every_host_has_the_same_examples(monkeypatch):
  hosts = _batches(2, 7, hosts=2)
  for own in hosts:
    step = iter(range(2))

    def gathered(table, step=step):
      number = next(step)
      one, two = (host[number] for host in hosts)
      both = [
        np.concatenate(pair)
        for name in sorted(set(one) - {'draw'})
        for pair in zip(*([x[name]['label'] if name == 'target' else x[name]] for x in (one, two)))
      ]
      return dict(zip(table, both))

    monkeypatch.setattr(parallel, 'gather_rows', gathered)
    found = examples.first(own, 6)
    np.testing.assert_array_equal(found['index'], np.arange(6))
    np.testing.assert_array_equal(found['image'][:, 0], np.arange(6))
