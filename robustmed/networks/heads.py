"""Outputs of networks that give one class or landmarks of an image, in the form of our tasks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.networks import description as descriptions
from robustmed.networks import network as networks
from robustmed.networks import normalise

_TINY = 1e-7


def stored_channels(image: jax.Array, channels: int, *, grey: bool) -> jax.Array:
  """Returns images with the channels of the network; of grey ones any number of equal channels."""
  if image.shape[-1] == channels:
    return image
  if not grey:
    raise errors.UserError(f'the network takes {channels} channels, images have {image.shape[-1]}')
  mean = jnp.mean(image, axis=-1, keepdims=True)
  return jnp.repeat(mean, channels, axis=-1)


def class_names(
  network: networks.Network, given: Sequence[str], count: int, classes: Sequence[str]
) -> tuple[tuple[str, ...], str]:
  """Returns a name for each of `count` outputs, and where the names are from.

  One output is that of the second of two classes. Further outputs than `classes` of the folder are
  allowed where `given` names them all.
  """
  outputs = 2 if count == 1 else count
  if given:
    missing = [name for name in classes if name not in given]
    if len(given) != outputs or missing:
      told = f'without {missing[0]!r}' if missing else f'for {outputs} classes'
      raise errors.UserError(
        f'output.classes names {", ".join(given)}, {told}; {network.name} has {count} outputs, the '
        f'folder {", ".join(classes)}'
      )
    return tuple(given), ''
  if outputs != len(classes):
    raise errors.UserError(
      f'{network.name} has {count} outputs, the folder {len(classes)} classes '
      f'({", ".join(classes)}); '
      "name the outputs: --config.output.classes=\"('benign','malignant')\""
    )
  return tuple(classes), 'the classes of the folder, in their order'


def landmark_names(
  network: networks.Network, given: Sequence[str], count: int, landmarks: Sequence[str]
) -> tuple[tuple[str, ...], str]:
  """Returns the name of each of `count` heat maps, and where the names are from."""
  if count != len(landmarks):
    raise errors.UserError(
      f'{network.name} has {count} heat maps, the folder {len(landmarks)} landmarks '
      f'({", ".join(landmarks)})'
    )
  if given and sorted(given) != sorted(landmarks):
    raise errors.UserError(
      f'output.classes names {", ".join(given)}, the folder {", ".join(landmarks)}'
    )
  return tuple(given or landmarks), '' if given else 'the landmarks of the folder, in their order'


def classifier(
  network: networks.Network,
  described: descriptions.Description,
  *,
  classes: Sequence[str],
  top: float,
  grey: bool,
) -> Callable[..., dict[str, jax.Array]]:
  """Returns (variables, image [b, h, w, c]) -> {'logits': [b, k]} of `classes`.

  Images are stored values divided by `top`; normalisation is inside. Outputs that the folder has no
  class for are together one more class.
  """
  scale = normalise.parse(described.input.normalise)
  given, names = described.output.activation, described.output.classes

  def predict(variables, image):
    image = stored_channels(scale(top * image), network.channels, grey=grey)
    found = network.predict(variables, image)
    raw = found.reshape(len(found), -1)
    if given == 'sigmoid':
      inside = jnp.clip(raw, _TINY, 1 - _TINY)
      raw = jnp.log(inside) - jnp.log1p(-inside)
    elif given == 'softmax':
      raw = jnp.log(jnp.maximum(raw, _TINY))
    if raw.shape[-1] == 1:
      raw = jnp.concatenate([jnp.zeros_like(raw), raw], axis=-1)
    logits = [raw[:, names.index(name)] for name in classes]
    rest = [raw[:, k] for k, name in enumerate(names) if name not in classes]
    if rest:
      logits.append(jax.nn.logsumexp(jnp.stack(rest, axis=-1), axis=-1))
    return {'logits': jnp.stack(logits, axis=-1)}

  return predict


def points(
  network: networks.Network,
  described: descriptions.Description,
  *,
  landmarks: Sequence[str],
  top: float,
  grey: bool,
) -> Callable[..., dict[str, jax.Array]]:
  """Returns (variables, image [b, h, w, c]) -> {'heat': [b, h', w', n]}; images as in
  `classifier`."""
  scale = normalise.parse(described.input.normalise)
  order = np.array([described.output.classes.index(name) for name in landmarks])

  def predict(variables, image):
    image = stored_channels(scale(top * image), network.channels, grey=grey)
    return {'heat': network.predict(variables, image)[..., order]}

  return predict
