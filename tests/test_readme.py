"""The code and commands of the README and of docs/attacks.md are what works."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import attacks
from support import runs

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


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 180


def test_files_that_the_readme_names_exist():
  for name in re.findall(
    r'(?:configs|launch|notebooks|\.readme)/[\w./]+\.(?:py|sh|png|ipynb|sbatch|yaml)', README
  ):
    assert (runs.ROOT / name).is_file() or name.endswith('NAME.py'), name


def test_nothing_is_left_open():
  assert not re.findall(r'@[A-Z]+@', README)
