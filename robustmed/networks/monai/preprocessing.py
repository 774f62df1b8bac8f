"""What the dictionary transforms of a MONAI bundle say of its input, in names of `normalise`."""

from typing import Any, NamedTuple

from robustmed.networks import description
from robustmed.networks.monai import config as configs

_SILENT = {
  *('LoadImage', 'EnsureChannelFirst', 'AddChannel', 'AsChannelFirst', 'EnsureType', 'ToTensor'),
  *('CastToType', 'ToDevice', 'Lambda', 'SelectItems', 'DeleteItems', 'Identity'),
}
_DENSE = ('CropForeground', 'SpatialPad', 'DivisiblePad', 'BorderPad')


class Said(NamedTuple):
  """Fields of `Network.stated` without their source, and lines on what is not applied."""

  fields: dict[str, Any]
  notes: list[str]


def read(config: configs.Config, *, axes: int, channels: int) -> Said:
  """Returns what the key 'preprocessing' says of images with so many axes."""
  found = config.found('preprocessing')
  steps = config.found('preprocessing::transforms') if isinstance(found, dict) else found
  fields: dict[str, Any] = {}
  unknown, scalings = [], []
  for step in steps if isinstance(steps, list) else []:
    if not isinstance(step, dict) or step.get('_disabled_') is True:
      continue
    name = str(step.get('_target_', '')).rsplit('.', 1)[-1]
    kind = name.removesuffix('Dict').removesuffix('d')
    try:
      read_one = lambda key, unset=None: config.literal(step.get(key, unset), f'{name}.{key}')  # noqa: B023
      if kind == 'LoadImage':
        fields['input.orientation'] = 'xyz'[:axes]
      elif kind == 'Orientation':
        letters = read_one('axcodes')
        if axes == 3 and letters in description.PATIENT:
          fields['input.orientation'] = letters
        else:
          unknown.append(name)
      elif kind == 'Spacing':
        fields['input.spacing'] = tuple(float(v) for v in read_one('pixdim')[:axes][::-1])
      elif kind in _SCALINGS:
        apart = channels == 1 or kind not in _BY_CHANNEL or read_one('channel_wise', False)
        scalings.append((name, _SCALINGS[kind](read_one) if apart else ''))
      elif kind in _DENSE:
        unknown.append(f'{name} (whole images are read)')
      elif kind not in _SILENT:
        unknown.append(name)
    except (configs.Unknown, TypeError, ValueError) as error:
      unknown.append(f'{name} ({error})' if isinstance(error, configs.Unknown) else name)
  if len(scalings) == 1 and scalings[0][1]:
    fields['input.normalise'] = scalings[0][1]
  else:
    unknown += [name for name, _ in scalings]
    if not scalings:
      fields['input.normalise'] = 'none'
  if any(name in _INTENSITY for name in (text.split(' ')[0] for text in unknown)):
    fields.pop('input.normalise', None)
  notes = [f'preprocessing of the bundle that is not applied: {", ".join(unknown)}'] * bool(unknown)
  if 'input.normalise' not in fields:
    notes.append('its intensities are not understood: set input.normalise')
  return Said(fields, notes)


def _range(read):
  low, high = float(read('a_min')), float(read('a_max'))
  start, end = read('b_min'), read('b_max')
  if start is None or end is None or high <= low or end <= start:
    return ''
  scale = (high - low) / (float(end) - float(start))
  mean = low - float(start) * scale
  if not read('clip', False):
    return f'standard:{mean:.9g}:{scale:.9g}'
  if (start, end) == (0, 1):
    return f'window:{low:.9g}:{high:.9g}'
  return f'ct:{low:.9g}:{high:.9g}:{mean:.9g}:{scale:.9g}'


def _normalise(read):
  mean, scale = read('subtrahend'), read('divisor')
  text = lambda value: ','.join(f'{v:.9g}' for v in (value if isinstance(value, list) else [value]))
  if mean is not None and scale is not None and not read('nonzero', False):
    return f'standard:{text(mean)}:{text(scale)}'
  if mean is not None or scale is not None:
    return ''
  return 'present' if read('nonzero', False) else 'zscore'


def _scale(read):
  plain = (read('minv', 0.0), read('maxv', 1.0)) == (0, 1) and read('factor') is None
  return 'minmax' if plain else ''


_SCALINGS = {
  'ScaleIntensityRange': _range,
  'NormalizeIntensity': _normalise,
  'ScaleIntensity': _scale,
}
_BY_CHANNEL = ('NormalizeIntensity', 'ScaleIntensity')  # else over all channels together
_INTENSITY = {
  *('ScaleIntensityRangePercentilesd', 'ScaleIntensityRanged', 'NormalizeIntensityd'),
  *('ScaleIntensityd', 'ThresholdIntensityd', 'ClipIntensityPercentilesd', 'AdjustContrastd'),
}
