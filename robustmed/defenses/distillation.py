"""Defensive distillation: a network learns the soft outputs of an equal one.

Papernot et al. 2016, 'Distillation as a Defense to Adversarial Perturbations against Deep Neural
Networks', and Liu et al. 2021 for segmentation: softmax at temperature T in both trainings, at 1
afterwards. Networks trained so tend to have logits that are about T times larger, and therefore
gradients of exactly 0: read results together with attacks on scaled logits (Carlini and Wagner
2016).
"""

from typing import Any

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.defenses import weighted

STAGES = ('teacher', 'student')


def make(
  task: types.Task,
  *,
  temperature: float,
  stage: str = 'student',
  teacher: Any = None,
  coupled: bool = False,
  full_gradient: bool = True,
  rise: float = 0.0,
) -> types.Defense:
  """The task's loss with all logits divided by `temperature`.

  stage 'teacher' learns the true targets. 'student' learns the soft targets that the network with
  the variables `teacher` gives to each training image, augmented as it is, in inference mode at the
  same temperature; they are computed within the step and stored nowhere. Memory: {'temperature':
  T}, of students also {'teacher': variables}. `teacher=()` is one to come: costs are known,
  training is not possible.

  The loss is the printed one, its gradient by the weights is about 1/T of what it is at T = 1. With
  `full_gradient` it is multiplied by T. To Adam that is an epsilon of 1/T and nothing else; without
  it two thirds of a student's gradients at T = 5000 lie below an epsilon of 1e-8.

  With `rise` > 0 the temperature climbs from 1 to T, by equal factors, over this share of the
  training, for runs too short for logits to grow to T times their size from a flat softmax. 0 is
  the papers'.
  """
  errors.lookup(dict.fromkeys(STAGES), stage, kind='stage of distillation')
  if task.soften is None:
    raise errors.UserError('this task has no softened outputs; distillation needs them')
  if not temperature > 0:
    raise errors.UserError(f'distillation: temperature must be above 0, not {temperature}')

  if not 0 <= rise <= 1:
    raise errors.UserError(f'distillation: rise must be in [0, 1], not {rise}')

  # Held as memory, so that arms that differ in nothing but their temperature share programs.
  held = lambda: {'temperature': jnp.float32(temperature)}

  def at(context):
    held = jax.lax.stop_gradient(context.memory['temperature'])
    return held ** jnp.minimum(context.progress / rise, 1.0) if rise else held

  def learn(params, context):
    heated = _heated(task, at(context))
    values, aux = weighted.phase(heated, [weighted.CLEAN], coupled=coupled).loss(params, context)
    if full_gradient:
      still = jax.lax.stop_gradient(values)
      values = still + at(context) * (values - still)
    return values, aux

  phase = weighted.phase(task, [weighted.CLEAN], coupled=coupled)
  if stage == 'teacher':
    if teacher is not None:
      raise errors.UserError('distillation: the teacher has no teacher of its own')
    return types.Defense(
      phases=(phase._replace(loss=learn),), init=lambda num_examples: held(), coupled=coupled
    )
  if teacher is None:
    raise errors.UserError(
      "distillation needs a teacher: name its arm in the arm's teacher_from, or set stage='teacher'"
    )

  def loss(params, context):
    batch = context.batch
    outputs = task.predict(context.memory['teacher'], batch['image'])
    soft = jax.lax.stop_gradient(task.soften(outputs, at(context))[1])
    batch = {**batch, 'target': {**batch['target'], **soft}}
    return learn(params, context._replace(batch=batch))

  def init(num_examples):
    del num_examples
    if not jax.tree.leaves(teacher):
      raise ValueError('distillation without teacher')
    return {'teacher': jax.tree.map(jnp.asarray, teacher), **held()}

  return types.Defense(
    phases=(phase._replace(loss=loss),),
    init=init,
    cost=types.Cost(forwards=1, passes=1),
    coupled=coupled,
  )


def _heated(task: types.Task, temperature: jax.Array) -> types.Task:
  """The task with its training losses on logits divided by the temperature."""

  def at_temperature(losses):
    return losses and (lambda outputs, batch: losses(task.soften(outputs, temperature)[0], batch))

  return task._replace(losses=at_temperature(task.losses), coupled=at_temperature(task.coupled))
