"""One forward pass for an objective and a monitor that call the same network."""

import jax


class Shared:
  """Calls `predict` once per traced image, although objective and monitor both call it.

      predict = attacks.Shared(lambda image: task.predict(variables, image))
      attack(lambda image: loss(predict(image)), x, monitor=lambda image: dice(predict(image)), ...)

  XLA merges most of two equal networks by itself, but not all of it inside a loop. Only the result
  for the last traced image is cached, so make a new `Shared` where the variables change.
  """

  def __init__(self, predict):
    self._predict = predict
    self._last = (None, None)

  def __call__(self, image):
    # Only tracers are immutable: a NumPy array may be changed in place.
    if not isinstance(image, jax.core.Tracer):
      return self._predict(image)
    if self._last[0] is not image:
      self._last = (image, self._predict(image))
    return self._last[1]
