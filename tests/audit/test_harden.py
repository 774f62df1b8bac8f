"""How a loaded network is trained on; the whole run is a program test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, defenses, errors, networks, types
from robustmed.attacks import space as spaces
from robustmed.audit import harden
from robustmed.data import pipeline
from robustmed.networks import checkpoint
from robustmed.runs import commandline
from robustmed.tasks import networks as linen
from support import audited, folders, nnunet_folders, runs

ORGAN = {'background': 0, 'organ': 1, 'lesion': 2}


def config_of(tmp_path, shape=(6, 8, 11), **fields):
  config = commandline.load_config(f'{runs.ROOT}/configs/harden.py:smoke')
  config.data.cache_dir = str(tmp_path / 'cache')
  config.data.dir = str(folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=shape))
  config.network = str(audited.brightness(tmp_path / 'net.onnx', **fields))
  return config


def test_arms_go_on_from_the_network_as_it_came(tmp_path):
  exp = harden.build(config_of(tmp_path))
  assert list(exp.arms) == ['loaded', 'std', 'noise', 'adv', 'amat']
  assert all(arm.init_from == 'loaded' for name, arm in exp.arms.items() if name != 'loaded')
  assert exp.arms['amat'].prepared.needs == ('loaded',)
  assert exp.task.image_shape == (8, 12, 1) and exp.data.sizes()['train'] > 0
  source = exp.data.load()
  example = source.train[0]
  drawn = source.sampling.crop(example, source.sampling.choose(0, seed=0, batch_size=1, size=1)[1])
  assert drawn['image'].shape == (8, 12, 1) and drawn['level'].shape == (2, 1)
  # What is padded is a mirror image and does not count.
  np.testing.assert_array_equal(drawn['image'][:, 0], drawn['image'][:, 1])
  assert not drawn['counted'][:, 0].any() and drawn['counted'].sum() == 8 * 11
  variables = exp.arms['adv'].network.variables or exp.arms['loaded'].network.variables
  outputs = exp.task.predict(variables(), jnp.asarray(drawn['image'])[None])
  assert outputs['head0'].shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'harden.freeze': '.'}, 'no weights to train'),
    ({'harden.eps': -1.0}, r'harden\.eps must be a number above 0'),
    ({'seeds': 2}, 'every arm is trained once'),
    ({'data.patch': (8, 7)}, r'data\.patch \(8, 7\) must be multiples of'),
    ({'augment.name': 'nnunet'}, 'augmentation'),
    ({'networks': 'TWICE'}, 'one network is hardened at a time'),
  ],
)
def test_mistakes(changes, said, tmp_path):
  config = config_of(tmp_path)
  for name, value in changes.items():
    other = audited.brightness(tmp_path / 'other.onnx')
    value = f'{config.network},{other}' if value == 'TWICE' else value
    config.update_from_flattened_dict({name: value})
  with pytest.raises(errors.UserError, match=said):
    harden.build(config)


def test_nothing_to_train_on(tmp_path):
  config = config_of(tmp_path)
  config.data.split = 'all'
  exp = harden.build(config)
  with pytest.raises(errors.UserError, match='all cases are test cases, so adv, std cannot be'):
    exp.data.check(['adv', 'std'], {'adv', 'std'}, None)


def test_patches_are_windows_or_whole_images(tmp_path):
  assert harden.build(config_of(tmp_path, axes=3, shape=(6, 8, 11))).task.image_shape[:3] == (
    6,
    8,
    12,
  )
  fixed = config_of(tmp_path)
  fixed.network = str(audited.brightness(tmp_path / 'fixed.onnx', shape=[4, 6]))
  assert harden.build(fixed).task.image_shape == (4, 6, 1)
  given = config_of(tmp_path)
  given.data.patch = (4, 8)
  assert harden.build(given).task.image_shape == (4, 8, 1)


@pytest.mark.slow
def test_a_results_folder_of_nnunet_is_trained_on(tmp_path):
  config = config_of(tmp_path)
  config.network = str(nnunet_folders.write(tmp_path, rank=2, folds=2))
  exp = harden.build(config)
  assert exp.task.image_shape == (8, 12, 1)  # the patch of the plans
  source = exp.data.load()
  batch = next(
    pipeline.train_batches(
      source.train, batch_size=2, seed=0, shard_index=0, shard_count=1, sampling=source.sampling
    )
  )
  variables = exp.task.init(jax.random.key(0))
  rest = {name: part for name, part in variables.items() if name != 'params'}

  def loss(params):
    outputs, _ = exp.task.forward({'params': params, **rest}, batch['image'], None)
    return sum(term.sum() for term in exp.task.losses(outputs, batch).values())

  slopes = jax.jit(jax.grad(loss))(variables['params'])
  assert all(np.isfinite(leaf).all() for leaf in slopes.values())
  assert np.mean([bool((leaf != 0).any()) for leaf in slopes.values()]) > 0.7


@pytest.mark.slow
def test_a_checkpoint_of_a_training_is_a_network(tmp_path):
  card = {
    'arm': 'std',
    'module': {
      'name': 'unet',
      'width': 0.05,
      'poolings': 2,
      'dtype': 'float32',
      'num_classes': 2,
      'channels': 1,
    },
    'input': {'spacing': [], 'normalise': 'case'},
    'output': {'kind': 'segmentation', 'classes': ['background', 'organ']},
  }
  module = checkpoint.module_of(card['module'])
  image = jax.random.normal(jax.random.key(0), (1, 8, 12, 1))
  bound = linen.bind(module, image_shape=image.shape[1:])
  variables = bound.init(jax.random.key(1))
  folder = tmp_path / 'adv_seed0'
  checkpoint.write(card, variables, folder)
  network = networks.load(folder)
  assert network.multiple() == 4 and network.axes == 2 and network.format == 'checkpoint'
  assert network.stated['input.normalise'] == ('case', 'the network')
  np.testing.assert_array_equal(
    jax.jit(network.predict)(network.variables, image),
    bound.predict(variables, image)['head0'],
  )
  assert all(not name.startswith('params/') for name in network.frozen)
  other = tmp_path / 'other'
  (other / 'variables').mkdir(parents=True)
  (other / 'network.json').write_text('{"arm": "std", "seed": 0}')
  with pytest.raises(errors.UserError, match='does not say how its network is made'):
    networks.load(other)
  (other / 'network.json').write_text(json.dumps(card))
  with pytest.raises(errors.UserError, match='cannot be read'):
    networks.load(other)


@pytest.fixture
def scaled():
  """A task on x in [0, 100] whose eps is in tenths; its prediction is the image times w."""
  objective = lambda outputs, batch: outputs.sum((1, 2))
  space = spaces.Space(
    encode=lambda batch: batch['image'] / batch['target']['scale'][:, None, None],
    decode=lambda x, batch: jnp.clip(x * batch['target']['scale'][:, None, None], 0, 100),
  )
  task = types.Task(
    init=lambda key: {'params': {'w': jnp.ones(())}},
    predict=lambda variables, image: variables['params']['w'] * image,
    forward=lambda variables, image, key: (variables['params']['w'] * image, {}),
    losses=lambda outputs, batch: {'loss': objective(outputs, batch)},
    objectives={'loss': objective},
    metrics=lambda outputs, batch: {},
    image_shape=(3, 1),
    space=space,
  )
  batch = {
    'image': jnp.full((2, 3, 1), 50.0),
    'target': {'scale': jnp.array([10.0, 100.0])},
    'index': jnp.arange(2),
    'draw': jnp.arange(2),
    'mask': jnp.ones(2, bool),
  }
  return task, batch


def _image(task, defense, batch, memory):
  context = types.LossContext(
    state={},
    memory=memory,
    batch=batch,
    keys=jax.random.split(jax.random.key(0), 2),
    key=jax.random.key(1),
    progress=jnp.zeros(()),
  )
  made = defense.phases[0].prepare({'w': jnp.ones(())}, context)
  return [np.asarray(image) for image, _ in made], made


def test_attacks_of_a_training_are_in_the_units_of_levels(scaled):
  task, batch = scaled
  attack = attacks.fgsm()
  defense = defenses.DEFENSES['adversarial'](task, attack=attack, objectives={'loss': 0.5}, eps=0.6)
  (clean, attacked), _ = _image(task, defense, batch, defense.init(2))
  np.testing.assert_array_equal(clean, batch['image'])
  np.testing.assert_allclose(attacked[0], 56, rtol=1e-6)
  np.testing.assert_allclose(attacked[1], 100, rtol=1e-6)  # 110, but for the border


def test_margins_and_noise_are_in_the_units_of_levels(scaled):
  task, batch = scaled
  attack = attacks.make('pgd', norm='linf', num_steps=2, random_start=False)
  defense = defenses.DEFENSES['amat'](
    task, attack=attack, step=0.2, thresholds=(1e9,), terms=('total',), when='immediate'
  )
  (_, attacked), made = _image(task, defense, batch, defense.init(2))
  np.testing.assert_allclose(attacked[:, 0, 0], [52, 70], rtol=1e-5)
  np.testing.assert_allclose(made[1][1]['distance'], 0.2, rtol=1e-5)
  assert made[1][1]['passed'].all()
  noisy = defenses.DEFENSES['noise'](task, eps=0.3)
  (_, moved), _ = _image(task, noisy, batch, ())
  change = np.abs(moved - 50).max(axis=(1, 2))
  assert 0 < change[0] <= 3 < change[1] <= 30
  with pytest.raises(errors.UserError, match='without a space'):
    defenses.DEFENSES['noise'](task, eps=0.3, mode='only')
