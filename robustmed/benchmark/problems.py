"""The attacks that the benchmark times: a network of a paper, a batch and an objective."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import attacks
from robustmed.models import brats_unet, disk_shape, landmark_unet, nnunet, yolo
from robustmed.tasks import brats, landmarks, objects, segmentation, shape

LEVELS = (0.01, 0.03, 0.05, 0.07, 0.1, 0.2)  # of the sweep that must compile once
HIPPO_LEVELS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0)


class Problem(NamedTuple):
  """A network, a batch and what attacks it.

  objective: (variables, image, target) -> [b]; attack: number of steps -> attack.
  """

  variables: Any
  image: jax.Array
  target: Any
  objective: Callable[..., jax.Array]
  attack: Callable[[int], attacks.LoopAttack]
  levels: tuple[float, ...] = LEVELS


def spine(batch, width, dtype=None):
  """PGD-20 Linf 0.07 on the disk-shape network (Chen et al. 2021), training objective."""
  module = disk_shape.DiskShapeNet(side=128, width=width, dtype=dtype)
  task = shape.make(module, side=128)
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.uniform(keys[0], (batch, 128, 128, 1))
  mask = (jax.random.uniform(keys[1], image.shape) > 0.5).astype(jnp.float32)

  def objective(variables, image, target):
    outputs = task.predict(variables, image)
    return task.objectives['train_seg'](outputs, {'image': image, 'target': target})

  attack = lambda steps: attacks.pgd(
    norm='linf', num_steps=steps, step_size=0.01, bounds=(0.0, 1.0), score_last=False
  )
  return Problem(task.init(keys[2]), image, {'mask': mask}, objective, attack)


def hippo(batch, width, dtype=None):
  """PGD-20 L2 10 on nnU-Net 2D for the hippocampus (Ma & Liang 2022), CE + Dice of the top head."""
  module = nnunet.NnUNet(num_classes=3, strides=(2, 2, 2), width=width, dtype=dtype)
  task = segmentation.make(module, image_shape=(56, 40, 1), classes=('anterior', 'posterior'))
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.normal(keys[0], (batch, 56, 40, 1))
  labels = jax.random.randint(keys[1], (batch, 56, 40), 0, 3)

  def objective(variables, image, target):
    outputs = task.predict(variables, image)
    return task.objectives['head0'](outputs, {'image': image, 'target': target})

  attack = lambda steps: attacks.pgd(
    norm='l2', num_steps=steps, relative_step=0.2, score_last=False
  )
  return Problem(task.init(keys[2]), image, {'labels': labels}, objective, attack, HIPPO_LEVELS)


def brats3d(batch, width, size, dtype=None):
  """FGSM on the 3D residual U-Net (Liu et al. 2021), four series of size^3, soft Dice."""
  module = brats_unet.BratsUNet(width=width, dtype=dtype)
  task = brats.make(module, image_shape=(size, size, size, 4))
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.uniform(keys[0], (batch, *task.image_shape))
  labels = jax.random.randint(keys[1], image.shape[:-1], 0, 4)

  def objective(variables, image, target):
    outputs = task.predict(variables, image)
    return task.objectives['dice'](outputs, {'image': image, 'target': target})

  attack = lambda steps: attacks.ifgsm(num_steps=steps, bounds=(0.0, 1.0), score_last=False)
  return Problem(task.init(keys[2]), image, {'labels': labels}, objective, attack)


def ceph(batch, width, dtype=None):
  """PGD-20 L2 on the landmark U-Net (Ma & Liang 2022), 3x160x128, Dice of its 19 heat maps."""
  module = landmark_unet.LandmarkUNet(width=width, dtype=dtype)
  task = landmarks.make(module, image_shape=(160, 128, 3))
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.uniform(keys[0], (batch, *task.image_shape), minval=-1.0)
  places = jax.random.uniform(keys[1], (batch, 19, 2), minval=10.0, maxval=118.0)
  target = {'landmarks': places, 'scale': jnp.ones((batch, 2))}

  def objective(variables, image, target):
    outputs = task.predict(variables, image)
    return task.objectives['heat'](outputs, {'image': image, 'target': target})

  attack = lambda steps: attacks.pgd(
    norm='l2', num_steps=steps, relative_step=0.2, score_last=False
  )
  return Problem(task.init(keys[2]), image, target, objective, attack, HIPPO_LEVELS)


def bccd(batch, width, dtype=None):
  """PGD-20 L2 on YOLOv5s (Ma & Liang 2022), 3x256x320, objects invented everywhere."""
  module = yolo.Yolo(width=width, dtype=dtype)
  task = objects.make(module, image_shape=(256, 320, 3), classes=('a', 'b', 'c'), train_size=320)
  keys = jax.random.split(jax.random.key(0), 2)
  image = jax.random.uniform(keys[0], (batch, *task.image_shape))

  def objective(variables, image, target):
    outputs = task.predict(variables, image)
    return task.objectives['plant'](outputs, {'image': image, 'target': target})

  attack = lambda steps: attacks.pgd(
    norm='l2', num_steps=steps, relative_step=0.2, score_last=False
  )
  return Problem(task.init(keys[1]), image, {}, objective, attack, HIPPO_LEVELS)
