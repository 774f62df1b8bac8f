"""One forward pass for an objective and a monitor that ask the same network."""

import jax


class Shared:
  """`predict`, traced once per point although objective and monitor both call it.

      predict = attacks.Shared(lambda image: task.predict(variables, image))
      attack(lambda image: loss(predict(image)), x, monitor=lambda image: dice(predict(image)), ...)

  XLA merges most of two equal networks by itself, but not all of it inside a loop. What is
  remembered is the last traced image alone, so make a new `Shared` where the variables change.
  """

  def __init__(self, predict):
    self._predict = predict
    self._last = (None, None)

  def __call__(self, image):
    # Only a tracer is known to stand for one value for ever.
    if not isinstance(image, jax.core.Tracer):
      return self._predict(image)
    if self._last[0] is not image:
      self._last = (image, self._predict(image))
    return self._last[1]
