"""Every data source, real or synthetic, through the same suite."""

import jax
import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data import pipeline, store
from support.raw_folders import CONFIGS, FILES

TWINS = {
  **dict.fromkeys(FILES, 'phantom_lumbar_disks'),
  'abdomen': 'phantom_abdomen',
  'bccd': 'phantom_bccd',
  'brats': 'phantom_brats',
  'ceph': 'phantom_ceph',
  'labelled': 'phantom_labelled',
  'luna16': 'phantom_nodules',
  'msd': 'phantom_hippocampus',
}


def config_of(name, tmp_path_factory):
  folder = tmp_path_factory.mktemp(name)
  files = FILES[name](folder) if name in FILES else {}
  return {**CONFIGS[name], **files, 'cache_dir': str(folder / 'cache')}


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
  return {name: config_of(name, tmp_path_factory) for name in data.SOURCES}


@pytest.fixture(scope='module')
def sources(configs):
  return {name: data.load(config) for name, config in configs.items()}


def test_every_source_is_tested_and_real_ones_have_twins():
  assert set(CONFIGS) == set(data.SOURCES)
  real = {name for name in data.SOURCES if not name.startswith('phantom_')}
  assert real == set(FILES) == set(TWINS)
  assert set(TWINS.values()) <= set(data.SOURCES)


@pytest.mark.parametrize('name', data.SOURCES)
class TestSource:
  def test_table_entry(self, name):
    module = data.SOURCES[name]
    assert issubclass(module.Builder, store.Builder)
    assert module.Builder.name == name
    assert all(isinstance(value, str | int | float | tuple) for value in module.DEFAULTS.values())

  def test_sizes_before_and_after(self, name, configs, sources):
    assert data.sizes(configs[name]) == sources[name].info['sizes']
    assert all(count > 0 for count in data.sizes({'name': name}).values())

  def test_examples(self, name, sources):
    source = sources[name]
    seen = set()
    splits = [split for split in (source.train, source.validation, source.test) if split]
    for split in splits:
      assert len(split) > 0
      for example, group in zip(split, split.groups):
        assert example['image'].dtype == np.float32 and example['image'].ndim in (3, 4)
        assert example['group'] == group
        assert isinstance(example['name'], str)
        for value in example.values():
          value = np.asarray(value)
          assert value.dtype.kind != 'f' or np.isfinite(value).all()
        seen.add(int(example['index']))
    assert seen == set(range(sum(len(split) for split in splits)))

  def test_the_groups_of_the_test_split_are_counted_without_it(self, name, configs, sources):
    assert data.groups(configs[name]) == len(set(sources[name].test.groups))
    assert data.groups({'name': name}) > 1  # nominal

  def test_no_group_on_both_sides(self, name, sources):
    assert not set(sources[name].train.groups) & set(sources[name].test.groups)

  def test_loading_again_gives_the_same(self, name, configs, sources):
    again = data.load(configs[name])
    assert again.info == sources[name].info
    jax.tree.map(np.testing.assert_array_equal, again.test[0], sources[name].test[0])

  def test_batches(self, name, sources):
    split, host = sources[name].train, {'batch_size': 3, 'shard_index': 0, 'shard_count': 1}
    one = next(pipeline.train_batches(split, seed=0, sampling=sources[name].sampling, **host))
    evaluation = list(pipeline.eval_batches(split, crop=sources[name].crop, **host))
    for batch in (one, *evaluation):
      assert set(batch) == {'image', 'target', 'mask', 'index', 'group', 'draw'}
      assert {len(leaf) for leaf in jax.tree.leaves(batch)} == {3}
      assert jax.tree.structure(batch) == jax.tree.structure(one)
    assert sum(int(batch['mask'].sum()) for batch in evaluation) == len(split)

  def test_the_fields_state_the_shapes_of_batches(self, name, configs, sources):
    if 'labelled' in name:
      pytest.skip('the shapes of a labelled folder are those of its files')
    source, host = sources[name], {'batch_size': 3, 'shard_index': 0, 'shard_count': 1}
    drawn = next(pipeline.train_batches(source.train, seed=0, sampling=source.sampling, **host))
    evaluated = pipeline.eval_batches(source.test, crop=source.crop, **host)[0]
    for batch, stated in zip((drawn, evaluated), data.shapes(configs[name]), strict=True):
      kept = {**{key: batch[key] for key in ('image', 'index', 'group')}, **batch['target']}
      on_device = jax.dtypes.canonicalize_dtype
      shapes = {key: (leaf.shape[1:], on_device(leaf.dtype)) for key, leaf in kept.items()}
      assert shapes == {key: (leaf.shape, leaf.dtype) for key, leaf in stated.items()}
    assert data.shapes({'name': name})  # without a folder


@pytest.mark.parametrize('name', FILES)
class TestFolder:
  def test_no_folder_named_says_what_to_put_there(self, name):
    with pytest.raises(
      errors.UserError, match=r'data field dir is empty: name the folder .*; .{40}'
    ):
      data.load({'name': name})

  def test_absent_folder(self, name, tmp_path):
    with pytest.raises(errors.UserError, match=r'no folder .*/gone: '):
      data.load({'name': name, 'dir': str(tmp_path / 'gone')})

  def test_empty_folder(self, name, tmp_path):
    with pytest.raises(errors.UserError, match=f'{tmp_path}.*(put|unpack) '):
      data.load({'name': name, 'dir': str(tmp_path)})

  def test_a_damaged_file_gives_one_line_with_its_name(self, name, tmp_path):
    config = {**CONFIGS[name], **FILES[name](tmp_path), 'cache_dir': str(tmp_path / 'cache')}
    victim = sorted(path for path in (tmp_path / 'raw').rglob('*') if path.is_file())[-1]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(errors.UserError, match=victim.name) as caught:
      data.load(config)
    assert '\n' not in str(caught.value)
    cache = tmp_path / 'cache' / name
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(('real', 'twin'), TWINS.items())
def test_twins_have_the_same_features(real, twin, sources):
  describe = lambda example: {key: (np.shape(v), type(v)) for key, v in example.items()}
  assert describe(sources[real].train[0]) == describe(sources[twin].train[0])


def test_the_phantom_of_a_labelled_folder_is_what_its_files_hold(sources):
  real, twin = sources['labelled'], sources['phantom_labelled']
  for ours, theirs in zip((*real.train, *real.test), (*twin.train, *twin.test), strict=True):
    np.testing.assert_array_equal(ours['image'], theirs['image'])
    np.testing.assert_array_equal(ours['labels'], theirs['labels'])
  for ours, theirs in zip(real.info['cases'], twin.info['cases'], strict=True):
    for name in ('name', 'shape', 'affine', 'spacing', 'dtype', 'group'):
      assert ours[name] == theirs[name]


def test_phantom_survives_the_way_through_the_files_of_the_real_source(sources):
  for split in ('train', 'test'):
    real = getattr(sources['lumbar_disks'], split)
    twin = getattr(sources['phantom_lumbar_disks'], split)
    np.testing.assert_allclose(real.stack('image'), twin.stack('image'), atol=1e-6)
    np.testing.assert_array_equal(real.stack('contour'), twin.stack('contour'))
    np.testing.assert_array_equal(real.stack('mask'), twin.stack('mask'))
    assert real.groups == twin.groups
