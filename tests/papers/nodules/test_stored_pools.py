import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.data import mixing, pipeline
from robustmed.papers.nodules import recipes, stored_pools
from robustmed.process import console
from support import lungs


def recipe(*, keep_every=1, calls=None):
  """Adds a number of the key to the patch; keeps every so manieth by a number in the patch."""

  def run(variables, image, keys):
    if calls is not None:
      jax.debug.callback(lambda *_: calls.append(1), image[0, 0, 0, 0, 0])
    drawn = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    made = image * variables['gain'] + drawn.reshape(-1, 1, 1, 1, 1)
    marked = jnp.round(image[:, 0, 0, 0, 0]).astype(jnp.int32)
    return {'image': made, 'keep': marked % keep_every == 0, 'value': drawn}

  return recipes.Recipe(run, {'gain': jnp.float32(1.0)}, 1, {'recipe': 'test', 'by': keep_every})


def source(size=5):
  split = lungs.patches(size, first=40)
  rows = [{**row, 'image': np.full(lungs.SHAPE, i, np.float32)} for i, row in enumerate(split)]
  return stored_pools.store.Split(rows, list(split.groups))


def generate(root, made=None, **more):
  options = {'count': 6, 'seed': 3, 'first': 1000, 'stopper': console.Stopper()}
  options |= {'source': source(), 'source_id': 'src', 'shard_size': 4, 'batch_size': 2, **more}
  return stored_pools.generate('toy', made or recipe(), root=root, **options)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('pool')
  return root, generate(root)


def folders(root):
  return sorted(path for path in (root / 'pool').iterdir() if not path.name.startswith('.'))


def test_candidates_begin_with_their_patch_and_keep_its_group(whole):
  _, pool = whole
  assert len(pool) == 6 and pool.groups == (20, 20, 21, 21, 22, 20)
  np.testing.assert_array_equal(pool.stack('index'), 1000 + np.arange(6))
  np.testing.assert_array_equal(pool.stack('origin'), [40, 41, 42, 43, 44, 40])
  drawn = pool.stack('value')
  assert len(set(drawn.tolist())) == 6
  expected = np.array([0, 1, 2, 3, 4, 0]) + drawn
  np.testing.assert_allclose(pool.stack('image')[:, 0, 0, 0, 0], expected, rtol=1e-6)
  assert pool[4]['name'] == 'toy_000004' and pool[4]['target'] == 1 and pool[0]['level'] == 0


def test_provenance_lies_beside_every_shard(whole):
  root, _ = whole
  facts = [json.loads((path / 'facts.json').read_text()) for path in folders(root)]
  assert len(facts) == 2
  told = [one['provenance'] for one in facts]
  assert sorted(one['candidates'] for one in told) == [[0, 4], [4, 4]]
  for one in told:
    assert one['recipe'] == 'test' and one['source'] == ['src', 5] and one['seed'] == 3
    assert one['made_by'] == [stored_pools.VERSION, stored_pools.robustmed.__version__]
  assert any(path.suffix.startswith('.array_record') for path in folders(root)[0].iterdir())


def test_a_pool_that_is_there_is_read_and_another_one_is_made(whole):
  root, pool = whole
  calls = []
  again = generate(root, recipe(calls=calls))
  assert not calls and len(folders(root)) == 2
  np.testing.assert_array_equal(again.stack('image'), pool.stack('image'))
  shorter = generate(root, recipe(calls=calls), count=5)  # the same shards
  assert not calls and len(shorter) == 5
  generate(root, seed=4, count=2)
  assert len(folders(root)) == 3


@pytest.mark.parametrize(('shard_size', 'batch_size'), [(6, 6), (4, 4)])
def test_neither_shards_nor_batches_change_a_pool(whole, tmp_path, shard_size, batch_size):
  other = generate(tmp_path, shard_size=shard_size, batch_size=batch_size)
  for feature in ('image', 'index', 'origin'):
    np.testing.assert_array_equal(other.stack(feature), whole[1].stack(feature))


class _Stopper(console.Stopper):
  """Asks for a stop before the shard of that number."""

  def __init__(self, shards):
    super().__init__()
    self.left = shards

  def requested(self):
    self.left -= 1
    return self.left < 0


def test_a_stopped_pool_goes_on_shard_by_shard(whole, tmp_path):
  with pytest.raises(console.Stopped):
    generate(tmp_path, stopper=_Stopper(1))
  before = folders(tmp_path)
  assert len(before) == 1
  stamp = (before[0] / 'facts.json').stat().st_mtime_ns
  pool = generate(tmp_path)
  assert len(folders(tmp_path)) == 2
  assert (before[0] / 'facts.json').stat().st_mtime_ns == stamp
  np.testing.assert_array_equal(pool.stack('image'), whole[1].stack('image'))


def test_what_is_not_kept_is_passed_over_and_keeps_its_number(tmp_path):
  pool = generate(tmp_path, recipe(keep_every=2), count=4)
  np.testing.assert_array_equal(pool.stack('origin'), [40, 42, 44, 40])
  np.testing.assert_array_equal(pool.stack('index') - 1000, [0, 2, 4, 5])


def test_what_is_not_kept_is_not_stored(tmp_path):
  pool = generate(tmp_path, recipe(keep_every=4), count=2, source=source(8))
  np.testing.assert_array_equal(pool.stack('origin'), [40, 44])
  read = lambda path, name: json.loads((path / name).read_text())
  kept = [read(path, 'facts.json')['keep'] for path in folders(tmp_path)]
  stored = [read(path, 'groups.json')['train'] for path in folders(tmp_path)]
  assert sorted(kept) == [[], [0], [0]]  # of shards of two candidates
  assert [len(groups) for groups in stored] == [1, 1, 1]  # a data set has one example at least


def test_a_disk_that_is_too_small_is_told_before(tmp_path, monkeypatch):
  calls = []
  pool = generate(tmp_path, count=4)
  free = stored_pools.size_of(4, lungs.SHAPE) - 1
  usage = collections.namedtuple('usage', 'total used free')(10, 9, free)
  monkeypatch.setattr(stored_pools.store.shutil, 'disk_usage', lambda folder: usage)
  assert len(generate(tmp_path, count=4)) == len(pool)  # what is there is read
  with pytest.raises(errors.UserError, match=r'pool toy: takes 0\.0 MB more, .* free; put'):
    generate(tmp_path / 'other', recipe(calls=calls), count=4)
  assert not calls and not (tmp_path / 'other').exists()
  assert 4 * 4 * 8**3 < stored_pools.size_of(4, lungs.SHAPE) < 2 * 4 * 4 * 8**3


def test_too_few_to_keep_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(stored_pools, 'PATIENCE', 4)
  with pytest.raises(errors.UserError, match='only 1 of 8 candidates can be kept, 2 are wanted'):
    generate(tmp_path, recipe(keep_every=99), count=2, source=source(8), shard_size=8, batch_size=8)


def test_a_pool_without_a_source_begins_with_blanks(tmp_path):
  pool = generate(tmp_path, source=None, source_id=None, image_shape=lungs.SHAPE, count=2)
  np.testing.assert_allclose(pool[1]['image'], np.full(lungs.SHAPE, pool[1]['value']))
  assert pool.groups == (0, 1) and pool[0]['origin'] == -1


def test_a_pool_can_be_drawn_together_with_real_patches(whole):
  real = lungs.patches(4)
  parts = {'real': real, 'pool': stored_pools.Filled(whole[1], real[0])}
  joined, sampling = mixing.mix(parts, {'real': 0.5, 'pool': 0.5})
  batches = pipeline.train_batches(
    joined, batch_size=4, seed=0, shard_index=0, shard_count=1, sampling=sampling
  )
  batch = next(batches)
  assert set(batch['target']) == {'soft', 'has_mask', 'target', 'centre'}
  made = batch['index'] >= 1000
  assert made.sum() == 2 and not batch['target']['soft'][made].any()
  assert (batch['target']['target'] == 1).all() and batch['target']['has_mask'][~made].all()


def test_patches_of_another_size_cannot_join(whole):
  like = {**lungs.example(0), 'image': np.zeros((4, 4, 4, 1))}
  with pytest.raises(errors.UserError, match='make the pool anew'):
    stored_pools.Filled(whole[1], like)[0]


@pytest.mark.parametrize(
  ('change', 'match'),
  [({'count': 0}, 'must be at least 1'), ({'source': source(0)}, 'no patches to begin with')],
)
def test_mistakes(tmp_path, change, match):
  with pytest.raises(errors.UserError, match=match):
    generate(tmp_path, **change)
