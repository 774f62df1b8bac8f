"""The code and commands of the README and of docs/attacks.md are what works."""

import ast
import inspect
import operator
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from robustmed import attacks
from support import onnx_models, runs

README = (runs.ROOT / 'README.md').read_text()


def test_the_snippet_for_notebooks_runs_as_printed():
  code = next(c for c in re.findall(r'```python\n(.*?)```', README, re.S) if 'attacks.pgd' in c)
  weights = jax.random.normal(jax.random.key(1), (16, 1))
  names = {
    'jax': jax,
    'x': jax.random.uniform(jax.random.key(2), (3, 4, 4, 1)),
    'target': jnp.array([[1.0], [0.0], [1.0]]),
    'my_network': lambda image: image.reshape(3, -1) @ weights,
    'my_loss': lambda output, target: jnp.sum(jnp.square(output - target), axis=-1),
  }
  exec(code, names)
  result = names['result']
  assert result.x.shape == (3, 4, 4, 1) and result.value.shape == (3,)
  assert (result.distance <= 0.07 + 1e-6).all() and (result.distance > 0.06).all()
  assert (np.asarray(result.value) > np.asarray(names['objective'](names['x']))).all()


def test_the_whole_table_runs_as_printed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code = next(c for c in re.findall(r'```python\n(.*?)```', README, re.S) if 'evaluate(' in c)
  weights = jax.random.normal(jax.random.key(1), (16, 1))
  names = {
    'attacks': attacks,
    'x': jax.random.uniform(jax.random.key(2), (5, 4, 4, 1)),
    'target': jnp.array([[1.0], [0.0], [1.0], [0.0], [1.0]]),
    'my_network': lambda image: image.reshape(len(image), -1) @ weights,
    'my_loss': lambda output, target: jnp.sum(jnp.square(output - target), axis=-1),
    'my_score': lambda output, target: -jnp.abs(output - target)[:, 0],
  }
  exec(code, names)
  means = names['table'].means
  assert list(means) == [0.0, 0.02, 0.07] and list(means.index) == ['none', 'pgd', 'apgd', 'worst']
  assert means.loc['worst', 0.07] < means.loc['worst', 0.02] < means.loc['none', 0.0]
  assert (tmp_path / 'attacked' / 'report.md').is_file()


ATTACKS = (runs.ROOT / 'docs' / 'attacks.md').read_text()


def _block(word):
  (found,) = [c for c in re.findall(r'```python\n(.*?)```', ATTACKS, re.S) if word in c]
  return found


def test_the_worst_of_several_attacks_runs_as_printed():
  weights = jax.random.normal(jax.random.key(1), (1, 3))
  image = jax.random.normal(jax.random.key(2), (4, 6, 6, 1))
  predict = lambda variables, image: {'head0': image @ variables}
  labels = jnp.argmax(image @ weights, axis=-1).astype(jnp.int32)
  names = {
    'predict': predict,
    'variables': weights,
    'batch': {'image': image, 'target': {'labels': labels}},
    'dice': lambda outputs, target: jnp.mean(
      (jnp.argmax(outputs['head0'], -1) == target['labels']).astype(jnp.float32), axis=(1, 2)
    ),
  }
  exec(_block('attacks.Ensemble'), names)
  found = names['found']
  assert found.each.shape == (2, 4) and (found.badness > -1).any()
  assert names['sweep'].levels[0][1].badness.mean() <= names['sweep'].levels[1][1].badness.mean()
  assert names['robust'].share == 1


def test_physical_changes_run_as_printed():
  image = jax.random.uniform(jax.random.key(2), (2, 12, 10, 1))
  names = {
    'attacks': attacks,
    'image': image,
    'key': jax.random.key(0),
    'objective': lambda x: jnp.sum(jnp.square(x - image), axis=(1, 2, 3)),
  }
  exec(_block('physical.compose'), names)
  assert names['attacked'].shape == image.shape
  assert (names['size'] <= 1 + 1e-6).all() and (names['size'] > 0.5).all()


def test_the_attack_on_a_file_runs_as_printed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  onnx.save(onnx_models.unet(), 'model.onnx')
  image = jax.random.uniform(jax.random.key(2), (2, 8, 8, 2))
  target = jnp.zeros((2, 8, 8), jnp.int32)
  loss = lambda outputs, target: -jnp.mean(jnp.log(outputs[..., 0]), axis=(1, 2))
  names = {'my_loss': loss, 'image': image, 'target': target}
  exec(_block("networks.load('model.onnx')"), names)
  before = loss(names['network'].predict(names['network'].variables, image), target)
  assert (names['result'].value > before).all() and (names['result'].distance <= 0.02 + 1e-6).all()


def test_the_trace_and_the_smallest_eps_run_as_printed():
  image = jax.random.uniform(jax.random.key(2), (3, 4, 4, 1))
  mean = lambda x: jnp.mean(x, axis=(1, 2, 3))
  names = {
    'attack': attacks.fgsm(),
    'objective': lambda x: -mean(x),
    'dice_of': lambda x: 0.5 + jnp.array([-0.1, 0.1, 0.3]) + mean(x) - mean(image),
    'image': image,
    'key': jax.random.key(0),
  }
  exec(_block('attacks.minimal_eps'), names)
  assert names['watched_dice'].shape == (21, 3)
  # Every pixel falls by eps, and the mean with it: broken before, at 0.1, not within 0.2.
  np.testing.assert_allclose(names['breaking'], [0, 0.1, np.inf], atol=3e-4)


def _dotted(node):
  """'attacks.pgd' of its syntax tree; '' of anything that is no chain of names."""
  if isinstance(node, ast.Name):
    return node.id
  base = _dotted(node.value) if isinstance(node, ast.Attribute) else ''
  return base and f'{base}.{node.attr}'


@pytest.mark.parametrize(
  'path',
  [runs.ROOT / 'README.md', *sorted((runs.ROOT / 'docs').glob('*.md'))],
  ids=lambda p: p.stem,
)
def test_what_blocks_of_code_import_from_the_package_exists(path):
  for code in re.findall(r'```python\n(.*?)```', path.read_text('utf-8'), re.S):
    tree, known = ast.parse(code), {}
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'robustmed':
        for alias in node.names:
          known[alias.name] = pkgutil.resolve_name(f'{node.module}.{alias.name}')
    for node in ast.walk(tree):
      first, _, rest = _dotted(node).partition('.')
      if isinstance(node, ast.Attribute) and first in known and inspect.ismodule(known[first]):
        assert operator.attrgetter(rest)(known[first]), f'{first}.{rest}'


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 180


def test_files_that_the_readme_names_exist():
  for name in re.findall(
    r'(?:configs|launch|notebooks|\.readme)/[\w./]+\.(?:py|sh|png|ipynb|sbatch|yaml)', README
  ):
    assert (runs.ROOT / name).is_file() or name.endswith('NAME.py'), name


def test_nothing_is_left_open():
  assert not re.findall(r'@[A-Z]+@', README)
