"""What a network from elsewhere is."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors, types

PyTree = Any
_ATTEMPTS = (33, 34, 36, 40, 48, 96, 192)  # multiples of 1, 2, 4, ..., 64 and of no more


class Export(NamedTuple):
  """How trained variables are written in the format in which the network came."""

  suffix: str  # of the file or folder
  write: Callable[[PyTree, pathlib.Path], None]  # whole or not at all
  loading: str  # lines of Python that load FILE


class Network(NamedTuple):
  """A pure function of its variables and of images with channels last.

  stated: fields of the description that the file itself gives, 'input.spacing' -> (value, where).
  frozen: the leaves that training leaves alone, by `name_of`, and why.
  """

  name: str
  variables: PyTree
  predict: Callable[[PyTree, jax.Array], jax.Array]  # image [b, *spatial, c] -> [b, ..., k]
  channels: int
  shape: tuple[int | None, ...]  # of images; None where any size may fit
  digest: str  # sha256 of the file, or of the weights
  format: str
  activation: str = 'none'  # that the outputs have been through, see `description.Output`
  stated: Mapping[str, tuple[Any, str]] = {}
  frozen: Mapping[str, str] = {}
  export: Export | None = None  # None: as tensors by name, see `training.export_of`
  values: tuple[int, ...] = ()  # that each output channel has in label maps; () not known
  slice_axis: int = -1  # across the slices that a network in 2D was trained on, of [z, y, x]
  mirrored: str = ''  # axes whose mirror images the network's own prediction averages
  notes: tuple[str, ...] = ()  # what its user should know, a line each

  def __repr__(self) -> str:
    sides = ', '.join('any' if side is None else str(side) for side in self.shape)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables))
    told = ''.join(f', {name}={value!r}' for name, (value, _) in self.stated.items())
    return (
      f'Network({self.name!r}, {self.format}, images [b, {sides}, {self.channels}], '
      f'{count:,} parameters{told})'
    )

  @property
  def axes(self) -> int:
    """The number of spatial axes."""
    return len(self.shape)

  def output_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the outputs for one image, without the batch; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *spatial, self.channels), jnp.float32)
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), self.variables
    )
    return jax.eval_shape(self.predict, shapes, image).shape[1:]

  def multiple(self) -> int:
    """Returns the number that sides of images must be multiples of; found by trying shapes.

    Raises:
      UserError: no shape gives outputs on the grid of the image.
    """
    said = 'no size of images that was tried fits'
    for power, side in enumerate(_ATTEMPTS):
      try:
        found = self.output_shape((side,) * self.axes)
      except (errors.UserError, TypeError, ValueError) as error:
        said = str(error)
        continue
      if found[:-1] == (side,) * self.axes:
        return 2**power
      said = f'images of {(side,) * self.axes} give outputs of {found}'
    raise errors.UserError(
      f'{self.name} gives no label map on the grid of its image ({said}); only networks that '
      'segment can be audited'
    )


def from_function(
  apply: Callable[[PyTree, jax.Array], jax.Array],
  variables: PyTree,
  *,
  channels: int,
  shape: tuple[int | None, ...] = (None, None),
  name: str = 'network',
  activation: str = 'none',
  stated: Mapping[str, tuple[Any, str]] | None = None,
) -> Network:
  """Returns `apply(variables, image)` as a network; image is [b, *spatial, c], outputs likewise.

  linen: `lambda v, x: module.apply(v, x, train=False)`, variables as `init` returns them. nnx:
  `graph, state = nnx.split(module)`, `lambda s, x: nnx.merge(graph, s)(x)`. equinox: `arrays,
  rest = eqx.partition(module, eqx.is_array)`, `lambda a, x: jax.vmap(eqx.combine(a, rest))(x)`,
  with channels moved to the front inside. shape: the sides of images, None where any fits.
  """
  return Network(
    name=name,
    variables=variables,
    predict=apply,
    channels=channels,
    shape=tuple(shape),
    digest=digest_of(variables),
    format='function',
    activation=activation,
    stated=dict(stated or {}),
  )


def digest_of(variables: PyTree) -> str:
  """Returns the sha256 of weights with their names, types and shapes."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    array = np.ascontiguousarray(np.asarray(leaf))
    found.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    found.update(array.tobytes())
  return found.hexdigest()


def name_of(path: tuple) -> str:
  """Returns the name of a leaf at a path of `jax.tree_util`, its keys joined by '/'."""
  return '/'.join(str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path)


def as_task(network: Network, task: types.Task, predict) -> types.Task:
  """Returns the task with `predict(variables, image)` of the network in place of its own.

  variables: {'params': those of the network}. There is no training mode: `forward` is `predict`.
  """
  return task._replace(
    init=lambda key: {'params': jax.tree.map(jnp.asarray, network.variables)},
    predict=jax.jit(lambda variables, image: predict(variables['params'], image)),
    forward=lambda variables, image, key: (predict(variables['params'], image), {}),
  )
