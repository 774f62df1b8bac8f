import numpy as np
import pytest

from robustmed.data import pipeline
from robustmed.data.decathlon import patches

GROUPS = [0, 0, 0, 1, 1, 2, 2, 2, 2]
PRESENT = [0, 1, 3, 2, 0, 0, 0, 0, 0]  # bits: case 2 has no foreground at all
SHAPES = {0: (9, 5), 1: (6, 8), 2: (12, 12)}


class Slices:
  """Slices whose pixels say where they come from."""

  def __len__(self):
    return len(GROUPS)

  def __getitem__(self, i):
    shape = SHAPES[GROUPS[i]]
    labels = np.zeros(shape, np.int8)
    if PRESENT[i] & 1:
      labels[0, 0] = 1
    if PRESENT[i] & 2:
      labels[-1, 2:4] = 2
    image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(*shape, 1)
    return {'image': image, 'labels': labels, 'index': i, 'group': GROUPS[i], 'name': str(i)}


def batches(count, *, batch_size, shard_count=1, seed=0, patch=(4, 4), loader=(7, 6)):
  sampling = patches.sampling(GROUPS, PRESENT, patch=patch, loader=loader)
  hosts = [
    pipeline.train_batches(
      Slices(),
      batch_size=batch_size // shard_count,
      seed=seed,
      shard_index=index,
      shard_count=shard_count,
      sampling=sampling,
    )
    for index in range(shard_count)
  ]
  return [[next(host) for host in hosts] for _ in range(count)]


@pytest.mark.parametrize(
  ('patch', 'loader'),
  [((56, 40), (65, 65)), ((320, 256), (376, 376)), ((320, 320), (376, 376))],
)
def test_loader_patches_of_the_published_networks(patch, loader):
  assert patches.loader_patch(patch) == loader


def test_long_patches_turn_by_15_degrees_only():
  cos, sin = np.cos(np.pi / 12), np.sin(np.pi / 12)
  want = int((100 * cos + 40 * sin) / 0.85), int(40 / 0.85)
  assert patches.loader_patch((100, 40)) == want
  assert patches.loader_patch((40, 100))[0] == int(max(40, 40 * cos + 100 * sin) / 0.85)


@pytest.mark.parametrize(('batch_size', 'forced'), [(40, 13), (366, 121), (32, 11), (1, 0)])
def test_the_last_third_of_a_batch_is_forced(batch_size, forced):
  flags = [patches.is_forced(draw, batch_size=batch_size) for draw in range(batch_size)]
  assert sum(flags) == forced and flags == sorted(flags)
  assert patches.is_forced(7 * batch_size + batch_size - 1, batch_size=batch_size) == (forced > 0)


def test_cases_are_uniform_and_forced_draws_show_foreground():
  drawn = batches(60, batch_size=15)
  group = np.concatenate([batch['group'] for (batch,) in drawn])
  np.testing.assert_allclose(np.bincount(group) / 900, [1 / 3] * 3, atol=0.06)
  index = np.stack([batch['index'] for (batch,) in drawn])
  free = np.bincount(index[:, :10].ravel(), minlength=9) / 600
  np.testing.assert_allclose(free, [1 / 9] * 3 + [1 / 6] * 2 + [1 / 12] * 4, atol=0.05)
  forced = np.bincount(index[:, 10:].ravel(), minlength=9) / 300
  # case 0: class 1 on slices 1 and 2, class 2 on slice 2; case 1: class 2 on slice 3
  want = [0, 1 / 12, 1 / 4, 1 / 3, 0] + [1 / 12] * 4
  np.testing.assert_allclose(forced, want, atol=0.07)
  for (batch,) in drawn:
    labels = batch['target']['labels']
    shown = (labels[10:] > 0).any(axis=(1, 2))
    np.testing.assert_array_equal(shown, batch['group'][10:] != 2)


def test_patches_are_parts_of_the_slice_padded_with_zero_and_minus_one():
  for (batch,) in batches(8, batch_size=12):
    assert batch['image'].shape == (12, 7, 6, 1) and batch['image'].dtype == np.float32
    assert batch['target']['labels'].shape == (12, 7, 6)
    assert batch['target']['labels'].dtype == np.int32
    for image, labels, index in zip(batch['image'], batch['target']['labels'], batch['index']):
      whole = Slices()[index]
      inside = labels >= 0
      np.testing.assert_array_equal(image[..., 0] > 0, inside)
      rows, columns = np.divmod(image[inside, 0].astype(int) - 1, whole['labels'].shape[1])
      np.testing.assert_array_equal(whole['labels'][rows, columns], labels[inside])
      there = np.argwhere(inside)
      assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(there)  # a rectangle, in order
      np.testing.assert_array_equal(rows - rows[0], there[:, 0] - there[0, 0])
      np.testing.assert_array_equal(columns - columns[0], there[:, 1] - there[0, 1])


@pytest.mark.parametrize('shard_count', [2, 3])
def test_depends_on_seed_and_draw_alone(shard_count):
  whole = batches(4, batch_size=12)
  parts = batches(4, batch_size=12, shard_count=shard_count)
  for (one,), hosts in zip(whole, parts):
    for name in ('image', 'index', 'draw'):
      np.testing.assert_array_equal(one[name], np.concatenate([host[name] for host in hosts]))
    labels = np.concatenate([host['target']['labels'] for host in hosts])
    np.testing.assert_array_equal(one['target']['labels'], labels)
  other = batches(1, batch_size=12, seed=1)[0][0]
  assert (other['index'] != whole[0][0]['index']).any()


def test_a_patch_lies_within_what_augmentation_may_use():
  starts = set()
  sampling = patches.sampling([0], [0], patch=(4, 4), loader=(6, 4))
  for draw in range(200):
    _, wish = sampling.choose(draw, seed=0, batch_size=4, size=1)
    labels = sampling.crop(Slices()[0] | {'labels': np.zeros((9, 5))}, wish)['labels']
    starts.add((int((labels >= 0).any(axis=1).argmax()), int((labels >= 0).any(axis=1).sum())))
  assert starts == {(1, 5), (0, 6), (0, 5)}  # at most one row beyond either edge


@pytest.mark.parametrize('shape', [(9, 5), (4, 4), (3, 8), (2, 2), (7, 7)])
def test_evaluation_sees_the_middle(shape):
  image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(*shape, 1)
  example = {'image': image, 'labels': np.ones(shape, np.int8), 'name': 'x'}
  got = patches.centred((4, 4))(example)
  assert got['name'] == 'x' and got['image'].shape == (4, 4, 1)
  for axis in (0, 1):
    kept = (got['labels'] == 1).any(axis=1 - axis)
    assert kept.sum() == min(4, shape[axis])
    before, after = kept.argmax(), 4 - kept.sum() - kept.argmax()
    assert 0 <= before - after <= 1
  assert (got['image'][got['labels'] < 0] == 0).all()
  lows = [max(0, (n - 4) // 2) for n in shape]
  first = got['image'][got['labels'] == 1][0, 0]
  assert first == image[lows[0], lows[1], 0]
