"""Attacks on networks that compute in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, models, tasks

NUMBER, SIDE, EPS, STEPS = 64, 16, 0.1, 10


def _batch():
  rng = np.random.default_rng(0)
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  circle = np.stack([8 + 4 * np.cos(angle), 8 + 3 * np.sin(angle)], axis=-1)
  labels = np.zeros((NUMBER, SIDE, SIDE), np.int32)
  labels[:, 5:11, 4:12] = 1
  return {
    'image': rng.uniform(0, 1, (NUMBER, SIDE, SIDE, 1)).astype(np.float32),
    'target': {
      'contour': np.stack([circle] * NUMBER).astype(np.float32),
      'mask': (labels[..., None] == 1).astype(np.float32),
      'labels': labels,
      'label': np.arange(NUMBER) % 2,
    },
    'mask': np.ones(NUMBER, bool),
  }


def _segmentation(dtype):
  module = models.MODELS['nnunet'](strides=(2,), width=1 / 8, num_classes=2, dtype=dtype)
  return tasks.TASKS['segmentation'](module, image_shape=(SIDE, SIDE, 1), classes=('organ',)), 'ce'


def _classes(dtype):
  module = models.MODELS['resnet'](width=1 / 16, blocks=1, num_classes=2, dtype=dtype)
  return tasks.TASKS['classes'](module, image_shape=(SIDE, SIDE, 1), classes=('a', 'b')), 'ce'


def _shape(dtype):
  module = models.MODELS['disk_shape_lite'](side=SIDE, width=1 / 4, dtype=dtype)
  return tasks.TASKS['shape'](module, side=SIDE), 'seg'


def _losses(task, name, variables, batch):
  """image -> losses [b], compiled."""
  value = task.objectives[name]
  return jax.jit(
    lambda image: value(task.predict(variables, image), {**batch, 'image': image}), inline=True
  )


def _attacked(task, name, steps, variables, batch):
  attack = attacks.pgd(num_steps=steps, relative_step=0.25, bounds=(0, 1))
  run = jax.jit(functools.partial(attack, _losses(task, name, variables, batch), eps=EPS))
  found = run(batch['image'], key=jax.random.key(1))
  assert found.x.dtype == jnp.float32
  return found.x


def _weaker(candidate, reference, clean):
  """Whether losses after one attack lie below those of another, by more than chance and 1 %."""
  difference = np.float64(candidate) - reference
  noise = difference.std(ddof=1) / np.sqrt(NUMBER)
  return difference.mean() < -(2 * noise + 0.01 * np.mean(np.float64(reference) - clean))


@pytest.mark.slow
@pytest.mark.parametrize('make', [_segmentation, _classes, _shape])
def test_an_attack_in_bfloat16_is_no_weaker_when_scored_in_float32(make):
  batch, (exact, name), (coarse, _) = _batch(), make(None), make(jnp.bfloat16)
  variables = exact.init(jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  scored = _losses(exact, name, variables, batch)
  clean = scored(batch['image'])
  reference = scored(_attacked(exact, name, STEPS, variables, batch))
  assert np.mean(reference) > np.mean(clean)
  found = _attacked(coarse, name, STEPS, variables, batch)
  assert not _weaker(scored(found), reference, clean)
  assert _weaker(scored(_attacked(exact, name, 2, variables, batch)), reference, clean)
