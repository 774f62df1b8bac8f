"""Networks and data that fit each other where labels are of whole images: classes, landmarks."""

import pathlib
from collections.abc import Mapping
from typing import Any

from robustmed import errors, networks
from robustmed.audit import label_maps
from robustmed.data.labelled import study as studies
from robustmed.networks import description


def fields_of(
  fields: Mapping[str, Any], loaded: Mapping[str, tuple[str | None, networks.Network]]
) -> dict[str, Any]:
  """Returns the fields of the data, with the size of images that the networks are made for.

  loaded: name -> (path, network).
  """
  sides = {network.shape for _, network in loaded.values()}
  fixed = [side for side in sides if None not in side]
  if len(fixed) > 1:
    raise errors.UserError('config.networks: networks of unequal image sizes; audit them apart')
  size = fixed[0] if fixed else (fields['height'], fields['width'])
  return {**fields, 'height': size[0], 'width': size[1], 'axes': 0, 'intensity': 'stored'}


def described(
  part,
  path: str | None,
  network: networks.Network,
  found: studies.Study,
  flags: Mapping[str, Any],
  guesses: Mapping[str, Any],
) -> tuple[description.Description, tuple[str, ...]]:
  """Returns the description of a network and its lines; what does not fit is a `UserError`."""
  if network.axes != 2:
    raise errors.UserError(
      f'{network.name} takes images in 3D, those of {found.folder.root} are 2D'
    )
  grey = found.channels == 1 or (part.KIND == 'landmarks' and found.channels == 2)
  channels = found.channels if part.KIND == 'classification' else 3
  if not grey and network.channels != channels:
    raise errors.UserError(
      f'{path or network.name} takes {network.channels} channels, the images of '
      f'{found.folder.root} have {channels}'
    )
  guesses = {
    'input.normalise': f'scale:{label_maps.top(found):g}',
    **guesses,
    'output.kind': part.KIND,
    'input.window': (),
  }
  place = pathlib.Path(path) if path else None
  made = description.make(network, flags, path=place, guesses=guesses)
  for name, value in (('spacing', ()), ('window', ()), ('orientation', 'yx')):
    if getattr(made.input, name) != value:
      raise errors.UserError(
        f'input.{name} is for label maps; images with {found.folder.kind} are resized to one size'
      )
  if made.output.kind != part.KIND:
    raise errors.UserError(
      f'{found.folder.root} has {found.folder.kind}, output.kind is {made.output.kind}; '
      f'it must be {part.KIND}'
    )
  shape = network.output_shape(found.window)
  maps = [side for side in shape[:-1] if side > 1]
  if bool(maps) != (part.KIND == 'landmarks') or len(maps) not in (0, 2):
    wanted = 'a heat map for each landmark' if part.KIND == 'landmarks' else 'a number per class'
    raise errors.UserError(
      f'{network.name} gives {list(shape)} for an image, {found.folder.root} has '
      f'{found.folder.kind}, which need {wanted}'
    )
  names, origin = part.described(network, made.output.classes, shape[-1], found.classes)
  made = made._replace(output=made.output._replace(classes=names))
  if origin:
    made = made._replace(origin={**made.origin, 'output.classes': f'guess: {origin}'})
  return made, tuple(f'{network.name}: {line}' for line in made.lines)
