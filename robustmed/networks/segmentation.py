"""Outputs of a network that segments as logits of the classes of a folder."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from robustmed import errors
from robustmed.networks import description as descriptions
from robustmed.networks import network as networks
from robustmed.networks import normalise
from robustmed.tasks import sliding

_TINY = 1e-7
CROPPED = 'nnunet'  # the blend of windows that are laid over the box of what is not 0


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


def matched_names(
  names: Sequence[str],
  channel_values: Sequence[int],
  *,
  classes: Sequence[str],
  values: Sequence[int],
) -> tuple[str, ...]:
  """Returns the names of channels in the spelling of the folder's classes.

  Capitals are ignored. Where names of the folder are still missing and the network says which value
  of label maps each channel has, channels take the name that the folder has for their value.
  """
  spelled = {name.casefold(): name for name in classes}
  found = tuple(spelled.get(name.casefold(), name) for name in names)
  if len(channel_values) == len(names) and not set(classes[1:]) <= set(found):
    by_value = dict(zip(values, classes))
    return tuple(by_value.get(v, name) for v, name in zip(channel_values, names))
  return found


def logits(
  outputs: jax.Array, *, names: Sequence[str], classes: Sequence[str], activation: str
) -> jax.Array:
  """Returns [b, *spatial, classes] logits from outputs [b, *spatial, channels].

  With a channel for the background the channels exclude each other; those that the folder has no
  label for are background. Without it each is a class of its own against the background, whose
  logit is 0: the largest above 0 wins. activation 'regions': channels may overlap, and the last
  one above 0 wins, as label maps of nnU-Net are written.
  """
  exclusive = classes[0] in names
  if activation == 'regions':
    raw = _over_each_other(outputs)
  elif activation == 'none':
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
    for k, name in enumerate(names):  # labels that the folder does not have are background
      first = first if name in classes[1:] else jnp.maximum(first, raw[..., k])
  return jnp.stack([first, *chosen], axis=-1)


def _over_each_other(outputs):
  """Returns logits of which at most one is above 0: the last one of the given that is."""
  found, later = [], None
  for k in reversed(range(outputs.shape[-1])):
    mine = outputs[..., k]
    found.append(mine if later is None else jnp.minimum(mine, -later))
    later = mine if later is None else jnp.maximum(later, mine)
  return jnp.stack(found[::-1], axis=-1)


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
  scale = normalise.parse(seen.normalise, channels=network.channels)
  axes = 'zyx'[-network.axes :]
  order = [axes.index(letter) for letter in seen.letters]
  back = [order.index(axis) for axis in range(len(order))]
  turn = lambda array, by: array.transpose(0, *(1 + n for n in by), array.ndim - 1)
  flip = lambda array: jnp.flip(array, [1 + n for n in seen.flipped]) if seen.flipped else array
  window = tuple(seen.window)
  mirrored = [n for n, letter in enumerate(seen.letters) if letter in seen.mirror]
  mirrored = [] if seen.mirror == 'none' else mirrored

  def predict(variables, image):
    inside = flip(turn(normalise.box(image), order))
    image = flip(turn(scale(image), order))
    run = functools.partial(network.predict, variables)
    options = {'step': 1 - seen.overlap, 'mirrored': mirrored, 'blend': seen.blend}
    if window and seen.blend == CROPPED:
      found = sliding.averaged_in_boxes(run, image, inside, patch=window, **options)
    elif mirrored or (window and window != image.shape[1:-1]):
      found = sliding.averaged(run, image, patch=window or image.shape[1:-1], **options)
    else:
      found = run(image)
    found = logits(found, names=given.classes, classes=classes, activation=given.activation)
    return {'head0': turn(flip(found), back)}

  return predict
