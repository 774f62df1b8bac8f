"""Changes that a scanner or a body makes: few parameters in a unit box, and a decoder to images.

Each entry of `TRANSFORMS` is searched by the same loop as pixels are: `space_of(transform)` is a
`Space` whose x are the parameters, 0 for the untouched image, so that eps is the largest parameter
in the unit that the transform names, and linf is the norm. All are differentiable and work on
images [b, *spatial, c] with any number of spatial axes.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import objectives
from robustmed.attacks.space import Space
from robustmed.ops import corruptions, warp
from robustmed.types import Array, Attack, AttackResult, Batch, PyTree, Task

_INJECTIVE = {2: 0.48, 3: 0.40}  # Choi and Lee 2000: largest displacement in control spacings


class Transform(NamedTuple):
  """apply: (parameters [b, *shape], image) -> image, exactly the image at 0.

  displacement: (parameters) -> [b, *spatial, axes] in pixels, of a transform that moves structures:
  the value at p is read at p + displacement(p), also for labels, see `follow`.
  """

  shape: tuple[int, ...]
  apply: Callable[[Array, Array], Array]
  unit: str  # of the parameters, in words
  displacement: Callable[[Array], Array] | None = None


def bias_field(image_shape: Sequence[int], *, waves: int = 3) -> Transform:
  """Returns multiplication by exp(field), the field a sum of cosines that stays within +-eps.

  waves: cosines per axis, the first one constant. For images whose background is 0.
  """
  spatial = tuple(image_shape[:-1])
  basis = [np.cos(np.pi * np.arange(waves)[:, None] * (np.arange(n) + 0.5) / n) for n in spatial]
  # the sum of all |basis functions| is largest at a corner; that they share eps keeps the bound
  most = math.prod(float(np.abs(one).sum(0).max()) for one in basis)

  def apply(z, image):
    field = z / most
    for one in basis:  # contracts the first axis of coefficients, appends one of places
      field = jnp.tensordot(field, jnp.asarray(one, z.dtype), ((1,), (0,)))
    return image * jnp.exp(field)[..., None]

  shape = (waves,) * len(spatial)
  return Transform(shape, apply, 'largest logarithm of the field (0.1 is about 10 %)')


def gamma(image_shape: Sequence[int], *, bounds: tuple[float, float] = (0.0, 1.0)) -> Transform:
  """Returns v ** exp(z) of the intensities v, scaled to [0, 1] by `bounds`; outside they stay."""
  del image_shape
  low, high = bounds

  def apply(z, image):
    v = (image - low) / (high - low)
    inside = (v > 0) & (v < 1)
    safe = jnp.where(inside, v, 0.5)
    # v ** g - v = v (exp((g - 1) log v) - 1), exactly 0 at g = 1
    change = safe * jnp.expm1(jnp.expm1(_like(z, image)) * jnp.log(safe))
    return image + jnp.where(inside, change * (high - low), 0)

  return Transform((1,), apply, 'logarithm of the exponent')


def offset(image_shape: Sequence[int]) -> Transform:
  """Returns the image plus one number, such as a shift of all HU."""
  del image_shape
  return Transform(
    (1,), lambda z, image: image + _like(z, image), 'units of the image, added everywhere'
  )


def scale(image_shape: Sequence[int], *, centre: float = 0.0) -> Transform:
  """Returns centre + (1 + z) (image - centre)."""
  del image_shape
  return Transform(
    (1,),
    lambda z, image: image + _like(z, image) * (image - centre),
    f'share by which the distance to {centre:g} changes',
  )


def blur(image_shape: Sequence[int]) -> Transform:
  """Returns a convolution with a Gaussian, the deviation |z| of each axis a parameter.

  Borders wrap around, as in k-space.
  """
  axes = tuple(range(1, len(image_shape)))

  def apply(z, image):
    exponent = 0.0
    for axis in axes:
      size = image.shape[axis]
      square = jnp.square(jnp.fft.fftfreq(size).astype(image.dtype)).reshape(
        tuple(size if k == axis else 1 for k in range(image.ndim))
      )
      exponent += square * _like(jnp.square(z[:, axis - 1 : axis]), image)
    lost = jnp.expm1(-2 * jnp.pi**2 * exponent)
    change = jnp.fft.ifftn(jnp.fft.fftn(image, axes=axes) * lost, axes=axes)
    return image + change.real.astype(image.dtype)

  return Transform((len(axes),), apply, 'standard deviation in pixels')


def motion(image_shape: Sequence[int]) -> Transform:
  """Returns the image of a head that moves from line to line of k-space; a shift per line and axis.

  As `ops.corruptions.motion`, whose drawn path is replaced by the parameters. The central lines
  have no shift.
  """
  if len(image_shape) < 3:
    raise errors.UserError(f'motion needs at least two spatial axes, not shape {image_shape}')
  lines = image_shape[-3]

  def apply(z, image):
    moved = jax.vmap(lambda one, shifts: corruptions.moved(one, shifts[..., None]))(
      image, corruptions.still(z)
    )
    return jnp.where(
      jnp.all(z == 0, axis=(1, 2)).reshape(-1, *(1,) * (image.ndim - 1)), image, moved
    )

  return Transform((2, lines), apply, 'shift in shares of the side')


def deformation(
  image_shape: Sequence[int], *, spacing: Sequence[float] = (), grid: int = 8
) -> Transform:
  """Returns a warp by a cubic B-spline, whose control points are `grid` pixels apart.

  Parameters are displacements in millimetres along each axis; spacing () is one millimetre a pixel.
  No displacement along an axis exceeds eps. Below 0.48 (2D) or 0.40 (3D) of the distance of control
  points the map is one to one (Choi and Lee 2000), so that nothing folds: see `largest`.
  """
  spatial = tuple(image_shape[:-1])
  spacing = tuple(spacing) or (1.0,) * len(spatial)
  if len(spacing) != len(spatial):
    raise errors.UserError(f'the spacing {spacing} does not fit images of {spatial}')
  weights = [_splines(size, grid) for size in spatial]
  counts = tuple(len(one) for one in weights)

  def displacement(z):
    field = z
    for (
      one
    ) in weights:  # [b, n1, n2, .., axes] -> [b, n2, .., axes, s1] -> ... [b, axes, s1, s2 ..]
      field = jnp.tensordot(field, jnp.asarray(one, z.dtype), ((1,), (0,)))
    pixels = jnp.asarray(spacing, z.dtype).reshape((1,) * (field.ndim - 1) + (-1,))
    return jnp.moveaxis(field, 1, -1) / pixels

  def apply(z, image):
    return warp.displace(image, displacement(z), padding='edge')

  return Transform((*counts, len(spatial)), apply, 'mm along each axis', displacement)


def largest(image_shape: Sequence[int], *, spacing: Sequence[float] = (), grid: int = 8) -> float:
  """Returns the eps of `deformation` in millimetres below which no image folds."""
  rank = len(image_shape) - 1
  return _INJECTIVE[rank] * grid * min(tuple(spacing) or (1.0,))


def jacobian(transform: Transform, parameters: Array) -> Array:
  """Returns the determinants [b, *spatial] of p -> p + displacement(p), by central differences."""
  field = transform.displacement(parameters)
  rank = field.shape[-1]
  identity = jnp.eye(rank, dtype=field.dtype).reshape((1,) * (field.ndim - 1) + (rank, rank))
  slopes = [jnp.gradient(field, axis=axis + 1) for axis in range(rank)]
  return jnp.linalg.det(jnp.stack(slopes, axis=-1) + identity)


def follow(transform: Transform, parameters: Array, labels: Array) -> Array:
  """Returns labels [b, *spatial] moved along with the image; unmoved where nothing moves."""
  if transform.displacement is None:
    return labels
  return warp.nearest(labels, transform.displacement(parameters))


def compose(parts: Sequence[tuple[Transform, float]]) -> Transform:
  """Returns several transforms, one after the other, searched together.

  parts: (transform, its largest parameter). The joint parameters are shares of these sizes, so that
  eps = 1 allows each its size.
  """
  if not parts:
    raise errors.UserError('a composition needs at least one transform')
  sizes = [math.prod(one.shape) for one, _ in parts]
  ends = np.cumsum(sizes)[:-1].tolist()
  moving = [one for one, _ in parts if one.displacement is not None]
  if len(moving) > 1:
    raise errors.UserError('a composition has at most one transform that moves structures')

  def split(z):
    pieces = jnp.split(z, ends, axis=1)
    return [size * piece.reshape(len(z), *one.shape) for piece, (one, size) in zip(pieces, parts)]

  def apply(z, image):
    for (one, _), piece in zip(parts, split(z)):
      image = one.apply(piece, image)
    return image

  def displacement(z):
    return next(
      one.displacement(piece)
      for (one, _), piece in zip(parts, split(z))
      if one.displacement is not None
    )

  units = '; '.join(f'{size:g} {one.unit}' for one, size in parts)
  return Transform((sum(sizes),), apply, f'share of: {units}', displacement if moving else None)


def space_of(transform: Transform) -> Space:
  """Returns the space of an attack that searches the parameters of a transform."""
  zeros = lambda batch: jnp.zeros((len(batch['image']), *transform.shape), batch['image'].dtype)
  return Space(zeros, lambda z, batch: transform.apply(z, batch['image']))


def search(
  attack: Attack,
  predict: Callable[[Array], PyTree],
  objective: Callable[..., Array],
  batch: Batch,
  *,
  transform: Transform,
  eps: float,
  key: Array,
  follows: bool,
  badness: Callable[..., Array] | None = None,
) -> tuple[AttackResult, Batch]:
  """Returns the result of an attack on the parameters, and the batch with what it makes of it.

  The batch has the attacked image and, with `follows`, target['labels'] moved along, and with them
  target['counted'], the pixels that count, where there is one: then the network is to label the
  moved anatomy, else that of the untouched image. objective and badness, the monitor:
  (outputs, batch) -> [b].
  """

  if follows and 'labels' not in batch['target']:
    raise errors.UserError("follows=True moves target['labels'], which the batch lacks")

  def moved(parameters):
    seen = {**batch, 'image': transform.apply(parameters, batch['image'])}
    if follows:
      target = batch['target']
      moving = {name: target[name] for name in ('labels', 'counted') if name in target}
      moving = {name: follow(transform, parameters, value) for name, value in moving.items()}
      seen['target'] = {**target, **moving}
    return seen

  def of(value):
    def climbed(parameters, **told):
      seen = moved(parameters)
      return value(predict(seen['image']), seen, **told)

    if objectives.takes_progress(value):
      return lambda parameters, progress: climbed(parameters, progress=progress)
    return lambda parameters: climbed(parameters)

  zeros = jnp.zeros((len(batch['image']), *transform.shape), batch['image'].dtype)
  monitor = None if badness is None else of(badness)
  result = attack(of(objective), zeros, eps=eps, key=key, monitor=monitor)
  return result, moved(result.x)


TRANSFORMS = {
  'bias_field': bias_field,
  'gamma': gamma,
  'offset': offset,
  'scale': scale,
  'blur': blur,
  'motion': motion,
  'deformation': deformation,
}


def make(name: str, image_shape: Sequence[int], **options) -> Transform:
  """Returns the transform `name` for images of a shape; an unknown one is a `UserError`."""
  return errors.lookup(TRANSFORMS, name, kind='transform')(image_shape, **options)


def space_from(settings: Mapping[str, Any] | None, task: Task) -> Space | None:
  """Returns the space of a configuration's {'name': transform, its options}, or None for None."""
  if settings is None:
    return None
  options = dict(settings)
  name = options.pop('name', None)
  known = inspect.signature(errors.lookup(TRANSFORMS, name, kind='transform')).parameters
  for option in options:
    errors.lookup(known, option, kind=f'option of the transform {name}')
  return space_of(make(name, task.image_shape, **options))


def _like(z, image):
  """One number per example, which broadcasts against the image."""
  return z.reshape(-1, *(1,) * (image.ndim - 1))


def _splines(size: int, grid: int) -> np.ndarray:
  """Returns the weights [points, size] of cubic B-splines whose centres are `grid` pixels apart.

  They are not negative and sum to 1 at every pixel.
  """
  if grid < 2:
    raise errors.UserError(f'control points must be at least 2 pixels apart, not {grid}')
  count = math.ceil((size - 1) / grid) + 3
  distance = np.abs(np.arange(size)[None] / grid - (np.arange(count)[:, None] - 1))
  near = (4 - 6 * distance**2 + 3 * distance**3) / 6
  far = np.maximum(2 - distance, 0) ** 3 / 6
  return np.where(distance < 1, near, far)
