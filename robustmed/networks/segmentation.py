"""Outputs of a network that segments as logits of the classes of a folder."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from robustmed import errors
from robustmed.networks import description as descriptions
from robustmed.networks import network as networks
from robustmed.networks import normalise
from robustmed.tasks import sliding

_TINY = 1e-7


def channel_names(
  network: networks.Network, given: Sequence[str], count: int, classes: Sequence[str]
) -> tuple[tuple[str, ...], str]:
  """Returns a name for each of `count` output channels, and where the names are from.

  classes: those of the folder, the background first.
  """
  shown = ', '.join(classes)
  if given:
    if len(given) != count:
      raise errors.UserError(
        f'{network.name} has {count} output channels, output.classes names {len(given)}: '
        f'{", ".join(given)}'
      )
    missing = [name for name in classes[1:] if name not in given]
    if missing:
      raise errors.UserError(
        f'the folder has the label {missing[0]!r}, which {network.name} does not know '
        f'(output.classes: {", ".join(given)})'
      )
    return tuple(given), ''
  if count == len(classes):
    return tuple(classes), 'the labels of the folder, in their order'
  if count == len(classes) - 1:
    return tuple(classes[1:]), 'the labels of the folder without the background'
  raise errors.UserError(
    f'{network.name} has {count} output channels, the folder {len(classes)} labels ({shown}); '
    "name the channels: --config.output.classes=\"('background','liver')\""
  )


def logits(
  outputs: jax.Array, *, names: Sequence[str], classes: Sequence[str], activation: str
) -> jax.Array:
  """Returns [b, *spatial, classes] logits from outputs [b, *spatial, channels].

  With a channel for the background the channels exclude each other; those that the folder has no
  label for are background. Without it each is a class of its own against the background, whose
  logit is 0: the largest above 0 wins.
  """
  exclusive = classes[0] in names
  if activation == 'none':
    raw = outputs
  elif exclusive:
    raw = jnp.log(jnp.maximum(outputs, _TINY))
  else:
    inside = jnp.clip(outputs, _TINY, 1 - _TINY)
    raw = jnp.log(inside) - jnp.log1p(-inside)
  chosen = [raw[..., names.index(name)] for name in classes[1:]]
  if exclusive:
    rest = [k for k, name in enumerate(names) if name not in classes[1:]]
    first = raw[..., rest[0]]
    if len(rest) > 1:
      first = jax.nn.logsumexp(jnp.stack([raw[..., k] for k in rest], axis=-1), axis=-1)
  else:
    first = jnp.zeros_like(raw[..., 0])
  return jnp.stack([first, *chosen], axis=-1)


def predictor(
  network: networks.Network,
  described: descriptions.Description,
  *,
  classes: Sequence[str],
) -> Callable[..., dict[str, jax.Array]]:
  """Returns (variables, stored image [b, *spatial, c]) -> {'head0': logits of `classes`}.

  Normalisation, the order of axes and sliding windows are inside, so gradients are those of the
  stored image.
  """
  seen, given = described.input, described.output
  scale = normalise.parse(seen.normalise)
  axes = 'zyx'[-network.axes :]
  order = [axes.index(letter) for letter in seen.orientation]
  back = [order.index(axis) for axis in range(len(order))]
  turn = lambda array, by: array.transpose(0, *(1 + n for n in by), array.ndim - 1)
  window = tuple(seen.window)

  def whole(variables, image):
    found = network.predict(variables, image)
    return logits(found, names=given.classes, classes=classes, activation=given.activation)

  def predict(variables, image):
    image = turn(scale(image), order)
    if window and window != image.shape[1:-1]:
      found = sliding.probabilities(
        lambda part: whole(variables, part),
        image,
        patch=window,
        step=1 - seen.overlap,
        mirror=False,
      )
      found = jnp.log(jnp.maximum(found, 1e-30))
    else:
      found = whole(variables, image)
    return {'head0': turn(found, back)}

  return predict
