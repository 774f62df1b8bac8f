"""The README's code and commands are what works."""

import re

import jax
import jax.numpy as jnp
import numpy as np

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


def test_files_that_the_readme_names_exist():
  for name in re.findall(
    r'(?:configs|launch|notebooks|\.readme)/[\w./]+\.(?:py|sh|png|ipynb|sbatch|yaml)', README
  ):
    assert (runs.ROOT / name).is_file() or name.endswith('NAME.py'), name


def test_nothing_is_left_open():
  assert not re.findall(r'@[A-Z]+@', README)
