"""What a network's file does not say, and where each answer comes from.

Sources in this order: a flag, the sidecar (NAME.json or network.json beside the file), the
network itself (`Network.stated`), a guess from the data and from shapes.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from robustmed import errors
from robustmed.networks import network as networks
from robustmed.networks import normalise
from robustmed.process import files
from robustmed.tasks import sliding

KINDS = ('segmentation', 'classification', 'landmarks')
ACTIVATIONS = ('none', 'softmax', 'sigmoid', 'regions')
FIELDS = {
  'input.channels': 0,
  'input.spacing': (),
  'input.orientation': '',
  'input.normalise': '',
  'input.window': (),
  'input.overlap': -1.0,
  'input.blend': '',
  'input.mirror': '',
  'output.kind': '',
  'output.classes': (),
  'output.activation': '',
}
_OPPOSITE = dict(zip('RLAPSI', 'LRPAIS'))
# Directions of the patient in any order.
PATIENT = frozenset(
  ''.join(several)
  for ends in itertools.product('RL', 'AP', 'SI')
  for several in itertools.permutations(ends)
)
_LARGEST = 1e9  # of numbers in a file
_OF_NETWORK = ('input.channels', 'output.activation')  # read off the graph
_TEXT = {'output.classes': 'a list of names', 'input.window': 'sides', 'input.spacing': 'numbers'}


class Input(NamedTuple):
  channels: int
  spacing: tuple[float, ...]  # to which images are resampled; () as stored
  # The network's order of the axes of [z, y, x] images, such as 'xyz'; a minus flips, as in 'z-yx'.
  orientation: str
  normalise: str  # see `normalise`
  window: tuple[int, ...]  # of sliding windows; () the whole image
  overlap: float  # of neighbouring windows
  blend: str  # of windows, see `sliding.BLENDS`
  mirror: str  # axes over whose mirror images outputs are averaged: none, or letters as 'yx'

  @property
  def letters(self) -> str:
    """The order of the axes without flips."""
    return self.orientation.replace('-', '')

  @property
  def flipped(self) -> tuple[int, ...]:
    """The axes of the network, counted from 0, along which it sees the image backwards."""
    found, place = [], 0
    for sign, letter in zip('+' + self.orientation, self.orientation):
      if letter != '-':
        found += [place] * (sign == '-')
        place += 1
    return tuple(found)


class Output(NamedTuple):
  kind: str
  classes: tuple[str, ...]  # a name for each channel
  # That the outputs have been through. regions: none, each is a region of its own, and later ones
  # are written over earlier ones where they are above 0.
  activation: str


class Description(NamedTuple):
  input: Input
  output: Output
  origin: Mapping[str, str]  # field -> where its value is from

  @property
  def lines(self) -> list[str]:
    """A line for every field: its value and where it is from."""
    shown = {f'input.{name}': value for name, value in self.input._asdict().items()}
    shown |= {f'output.{name}': value for name, value in self.output._asdict().items()}
    text = lambda value: ', '.join(map(str, value)) if isinstance(value, tuple) else str(value)
    empty = {'input.window': 'the whole image', 'input.spacing': 'as stored'}
    return [
      f'{name} = {text(value) or empty.get(name, "not given")} ({self.origin[name]})'
      for name, value in shown.items()
    ]


def make(
  network: networks.Network,
  flags: Mapping[str, Any],
  *,
  path: pathlib.Path | None = None,
  guesses: Mapping[str, Any] | None = None,
  affines: Sequence[Any] | None = None,
) -> Description:
  """Returns the description of a network.

  flags: 'input.normalise' -> value, where a value equal to that of `FIELDS` is left open. guesses:
  of what data and shapes suggest, for fields that nothing else gives. affines [4, 4] of the files:
  with them the orientation may be letters of the patient, see `order_of`.

  Raises:
    UserError: a field has no such value, or the network contradicts it.
  """
  check_kinds(flags, 'the configuration')
  known = [('flag', dict(flags))]
  beside, place = sidecar(path)
  known.append((place, beside))
  values, origin = {}, {}
  guessed = {**_guesses(network), **(guesses or {})}
  for name, unset in FIELDS.items():
    for where, table in known:
      if name in table and _plain(table[name]) != unset:
        values[name], origin[name] = _plain(table[name]), where
        break
    else:
      if name in network.stated:
        values[name], origin[name] = network.stated[name]
      else:
        values[name] = guessed[name]
        origin[name] = 'the network' if name in _OF_NETWORK else 'guess'
  if (letters := values['input.orientation'].upper()) in PATIENT and network.axes == 3:
    if affines is None:
      raise errors.UserError(f'input.orientation {letters} is for images with a place in a patient')
    values['input.orientation'] = order_of(letters, affines)
    origin['input.orientation'] += f': {letters}'
  if values['input.mirror'] == 'network':
    values['input.mirror'] = network.mirrored or 'none'
  _check(network, values)
  part = lambda start: {k.partition('.')[2]: v for k, v in values.items() if k.startswith(start)}
  return Description(Input(**part('input.')), Output(**part('output.')), origin)


def order_of(letters: str, affines: Sequence[Any]) -> str:
  """Returns 'x-yz' for 'LPS': axes of files whose affines are these, first the one that leads left.

  letters: where the axes of the network lead to, of R or L, A or P, S or I, as MONAI and nibabel
  name them.
  """
  codes = {''.join(nib.aff2axcodes(np.asarray(affine))) for affine in affines}
  if len(codes) > 1:
    raise errors.UserError(
      f'input.orientation {letters}: the axes of the files lead to {" and ".join(sorted(codes))}; '
      'store them alike'
    )
  places = {code: 'xyz'[n] for n, code in enumerate(codes.pop())}
  signed = lambda one: places[one] if one in places else '-' + places[_OPPOSITE[one]]
  return ''.join(signed(one) for one in letters)


def sidecar(path: pathlib.Path | None) -> tuple[dict[str, Any], str]:
  """Returns the fields in the JSON file beside a network or in its folder, and the file's name."""
  names = (f'{path.stem}.json', 'network.json') if path is not None else ()
  if path is not None and path.is_dir():
    path, names = path / 'network.json', names[1:]
  for name in names:
    place = path.with_name(name)
    if files.present(place):
      found = files.read_json(place)
      if not found:
        raise errors.UserError(f'{place} says nothing; remove it or restore it')
      if isinstance(found, dict) and 'module' in found:  # the card of a checkpoint has more
        found = {part: found[part] for part in ('input', 'output') if part in found}
      if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise errors.UserError(f'{place} must be {{"input": {{...}}, "output": {{...}}}}')
      flat = {f'{part}.{k}': v for part, fields in found.items() for k, v in fields.items()}
      check_kinds(flat, place)
      return flat, name
  return {}, 'network.json'


def check_kinds(fields: Mapping[str, Any], place: pathlib.Path | str) -> None:
  """Raises a `UserError` unless fields of a file, or flags, are known, of their defaults' kinds."""
  for key, value in fields.items():
    default = errors.lookup(FIELDS, key, kind=f'field of {place}')
    listed = isinstance(default, tuple)
    items = value if listed and isinstance(value, list | tuple) else [value]
    kinds = {'output.classes': str}.get(key, (int, float)) if listed else type(default)
    kinds = (int, float) if kinds is float else kinds
    good = isinstance(value, list | tuple) or not listed
    for item in items:
      good = good and isinstance(item, kinds) and not isinstance(item, bool)
      good = good and (isinstance(item, str) or abs(item) < _LARGEST)
    if not good:
      raise errors.UserError(f'{place}: {key} must be like {default!r}, not {str(value)[:80]!r}')


def _plain(value):
  return tuple(value) if isinstance(value, list | tuple) else value


def _guesses(network) -> dict[str, Any]:
  fixed = tuple(size for size in network.shape if size is not None)
  return {
    'input.channels': network.channels,
    'input.spacing': (),
    'input.orientation': 'zyx'[-network.axes :],
    'input.normalise': 'zscore',
    'input.window': fixed if len(fixed) == network.axes else (),
    'input.overlap': 0.5,
    'input.blend': 'gaussian',
    'input.mirror': 'none',
    'output.kind': 'segmentation',
    'output.classes': (),
    'output.activation': network.activation,
  }


def _check(network, values) -> None:
  errors.lookup(dict.fromkeys(KINDS), values['output.kind'], kind='output.kind')
  errors.lookup(dict.fromkeys(ACTIVATIONS), values['output.activation'], kind='output.activation')
  errors.lookup(sliding.BLENDS, values['input.blend'], kind='input.blend')
  normalise.parse(values['input.normalise'], channels=network.channels)
  for name, axes in (('input.window', network.axes), ('input.spacing', network.axes)):
    value = values[name]
    numbers = isinstance(value, tuple) and all(isinstance(n, int | float) and n > 0 for n in value)
    if not numbers or len(value) not in (0, axes):
      raise errors.UserError(f'{name} must be {axes} positive {_TEXT[name]}, not {value!r}')
  if values['input.channels'] != network.channels:
    raise errors.UserError(
      f'{network.name} takes {network.channels} channels, input.channels is '
      f'{values["input.channels"]}'
    )
  axes = 'zyx'[-network.axes :]
  order = values['input.orientation']
  if sorted(order.replace('-', '')) != sorted(axes) or '--' in order or order.endswith('-'):
    patient = ', or of the patient as RAS' if network.axes == 3 else ''
    raise errors.UserError(
      f'input.orientation must be the letters of {axes} in an order, a minus before those that are '
      f'flipped{patient}, not {order!r}'
    )
  mirror = values['input.mirror']
  if mirror != 'none' and (not mirror or not set(mirror) <= set(axes)):
    raise errors.UserError(
      f'input.mirror must be none, network or some letters of {axes}, not {mirror!r}'
    )
  if not 0 <= values['input.overlap'] < 1:
    raise errors.UserError(f'input.overlap must be in [0, 1), not {values["input.overlap"]}')
  window = values['input.window']
  clash = [n for n, size in zip(window, network.shape) if size is not None and n != size]
  if clash:
    raise errors.UserError(
      f'{network.name} is made for images of {network.shape}, input.window is {window}; export it '
      'with dynamic axes'
    )
