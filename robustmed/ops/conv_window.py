"""The geometry of a convolution over 1 to 3 axes, channels last."""

from typing import Any, NamedTuple


class Window(NamedTuple):
  """The geometry of one convolution; hashable, so it can be static under jit."""

  size: tuple[int, ...]  # input grid
  taps: tuple[int, ...]  # kernel grid
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]  # negative values crop
  dilation: tuple[int, ...]
  groups: int = 1
  precision: Any = None

  @property
  def out(self):
    """The output grid."""
    return tuple(
      max(0, (n + lo + hi - d * (k - 1) - 1) // s + 1)
      for n, k, s, (lo, hi), d in zip(*self[:5], strict=True)
    )

  def without_first(self, **changes):
    """Returns the same geometry without its first axis."""
    return self._replace(**{name: getattr(self, name)[1:] for name in self._fields[:5]}, **changes)


def spec(rank):
  """Returns the dimension_numbers of channels-last arrays over 1 to 3 axes."""
  spatial = 'DHW'[3 - rank :]
  return f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'


def _tap_range(window, axis):
  """Returns the range of taps of this axis that read the grid at some output position."""
  n, s, d = window.size[axis], window.strides[axis], window.dilation[axis]
  lo, m = window.padding[axis][0], window.out[axis]
  live = [t for t in range(window.taps[axis]) if any(0 <= o * s + t * d - lo < n for o in range(m))]
  return (live[0], live[-1] + 1) if live else (0, 1)


def trim(window):
  """Returns (window, tap ranges) without the taps that read only padding."""
  ranges = tuple(_tap_range(window, axis) for axis in range(len(window.size)))
  padding = tuple(
    (lo - start * d, hi - (k - stop) * d)
    for (lo, hi), (start, stop), d, k in zip(
      window.padding, ranges, window.dilation, window.taps, strict=True
    )
  )
  taps = tuple(stop - start for start, stop in ranges)
  return window._replace(taps=taps, padding=padding), ranges
