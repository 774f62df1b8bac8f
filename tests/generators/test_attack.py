import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors, generators
from robustmed.evaluation import grid
from robustmed.generators import synthesis
from robustmed.training import checkpoints
from support import buckets, runs, synths

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)


def _attack(*levels, **more):
  variables = tuple(synths.variables(seed) for seed in range(len(levels) or 1))
  return generators.Synthesised(synths.model(), variables, levels or (2.0,), **more)


def _write_card(folder, xi, options):
  model = {'name': 'unet', 'generator': {**options, 'xi': xi}}
  card = {'arm': f'gen_{xi:g}', 'seed': 0, 'model': model, 'image_shape': [16, 16, 1]}
  checkpoints.write_card(folder, card)


def _save(folder, *, xi=2.0, seed=0, **options):
  options = {**synths.OPTIONS, **options}
  _write_card(folder, xi, options)
  checkpoints.save_variables(folder / 'variables', synths.variables(seed, **options))
  return folder


@pytest.fixture(scope='module')
def result():
  attack, image = _attack(), synths.batch()['image']
  bright = lambda image: image.mean((1, 2, 3))
  run = jax.jit(lambda x, eps, key: attack(bright, x, eps=eps, key=key, monitor=bright))
  return run(image, 2.0, KEY), image, run


def test_the_result_is_what_an_attack_returns(result):
  found, image, run = result
  assert found.x.shape == image.shape and found.x.dtype == image.dtype
  np.testing.assert_allclose(found.distance, np.abs(found.x - image).mean((1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(found.value, found.x.mean((1, 2, 3)), rtol=1e-5)
  np.testing.assert_array_equal(found.monitored, found.value)
  assert np.isnan(_attack()(None, image, eps=2.0, key=KEY).value).all()
  again = run(image, 2.0, KEY)
  np.testing.assert_array_equal(again.x, found.x)
  other = run(image, 2.0, jax.random.key(6))
  assert np.abs(other.x - found.x).max() > 1e-3


def test_one_key_or_one_per_example(result):
  found, image, run = result
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
  np.testing.assert_allclose(run(image, 2.0, keys).x, found.x, atol=1e-6)
  np.testing.assert_allclose(run(image[2:3], 2.0, keys[2:3]).x, found.x[2:3], atol=1e-5)


def test_eps_chooses_the_generator_of_the_nearest_strength():
  image = synths.batch()['image']
  weak, strong = (
    generators.Synthesised(synths.model(), (synths.variables(s),), (1.0,)) for s in (0, 1)
  )
  both = _attack(0.5, 2.0)
  at = lambda attack, eps: attack(None, image, eps=eps, key=KEY).x
  np.testing.assert_allclose(at(both, 0.7), at(weak, 9.0), atol=1e-6)
  np.testing.assert_allclose(at(both, 1.9), at(strong, 9.0), atol=1e-6)
  mixed = at(both, jnp.asarray([0.1, 3.0, 0.1, 3.0]))
  np.testing.assert_allclose(mixed[1], at(strong, 0)[1], atol=1e-6)
  np.testing.assert_allclose(mixed[2], at(weak, 0)[2], atol=1e-6)


def test_one_field_alone():
  image = synths.batch()['image']
  attack = _attack(parts='V')
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
  fields, _ = attack.model.draw(attack.variables[0], image, keys)
  np.testing.assert_allclose(
    attack(None, image, eps=2.0, key=KEY).x, image + fields.intensity, atol=1e-5
  )


def test_the_grid_takes_it_like_any_other_attack():
  task, batch = synths.task(), synths.batch()
  probes = {
    'gen': grid.Probe(_attack(), 'ce', (2.0,)),
    'noise': grid.Probe(attacks.noise(), 'ce', (0.1,)),
  }
  evaluator = grid.Evaluator(task, probes, key=KEY, main='gen')
  variables = task.init(jax.random.key(0))
  images, distance = evaluator.attack(variables, grid.device_batch(batch), 'gen', 2.0)
  columns = evaluator.score(variables, grid.device_batch(batch), images).columns
  assert np.all(distance > 0.05) and np.all(columns['DICE'] < 1)
  assert (probes['gen'].attack.num_gradients, probes['gen'].attack.num_forwards) == (0, 1)


def test_a_saved_generator_attacks_an_image_in_the_five_lines_of_the_documents(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  _save(tmp_path / 'runs' / 'synthesis' / 'checkpoints' / 'gen_2' / 'seed0')
  readme = (runs.ROOT / 'docs' / 'attacks.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
  (lines,) = [block for block in blocks if 'generators.load' in block]
  assert len(lines.strip().splitlines()) == 5
  scope = {'image': synths.batch(2)['image']}
  exec(lines, scope)
  want = _attack()(None, scope['image'], eps=2.0, key=jax.random.key(0))
  np.testing.assert_array_equal(scope['attacked'], want.x)
  assert (np.asarray(scope['changed']) > 0.05).all()


def test_several_are_loaded_as_one_attack_in_the_order_of_their_levels(tmp_path):
  folders = [_save(tmp_path / str(xi), xi=xi, seed=i) for i, xi in enumerate((2.0, 0.5))]
  attack = generators.load(*folders, parts='D')
  assert attack.levels == (0.5, 2.0) and attack.parts == 'D'
  jax.tree.map(np.testing.assert_array_equal, attack.variables[0], synths.variables(1))


def test_generators_lie_in_object_stores_too(monkeypatch):
  buckets.use(monkeypatch)
  folders = [f'gs://bucket/runs/x/checkpoints/gen_{xi:g}/seed0' for xi in (0.5, 2.0)]
  for folder, xi in zip(folders, (0.5, 2.0)):
    _write_card(folder, xi, synths.OPTIONS)
  load = lambda path, task: (str(path), tuple(task.image_shape))
  monkeypatch.setattr(checkpoints, 'load_variables', load)
  attack = generators.load(*folders)
  assert attack.levels == (0.5, 2.0)
  assert attack.variables == tuple((f'{folder}/variables', (16, 16, 1)) for folder in folders)


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(errors.UserError, match='at least one folder'):
    generators.load()
  with pytest.raises(errors.UserError, match=r'no network\.json'):
    generators.load(tmp_path)
  card = {'arm': 'unet', 'seed': 0, 'model': {'name': 'unet'}, 'image_shape': [16, 16, 1]}
  checkpoints.write_card(tmp_path / 'unet', card)
  with pytest.raises(errors.UserError, match="holds 'unet', which is not a generator"):
    generators.load(tmp_path / 'unet')
  one, other = _save(tmp_path / 'a'), _save(tmp_path / 'b', latent=3)
  with pytest.raises(errors.UserError, match='has other layers than'):
    generators.load(one, other)
  with pytest.raises(errors.UserError, match=r'needs images \[b, h, w, 1\]'):
    _attack()(None, np.zeros((16, 16), np.float32), eps=2.0, key=KEY)
  with pytest.raises(errors.UserError, match='choice of fields'):
    synthesis.compose(jnp.zeros((1, 4, 4, 1)), None, parts='')
