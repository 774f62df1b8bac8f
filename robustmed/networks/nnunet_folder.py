"""Results folders of nnU-Net v2 as a network of stored images.

`predict` is one window with the mean over the folds; normalisation, windows, mirror images and the
order of axes are stated, so they are part of what is attacked. What `nnUNetv2_predict` does
otherwise is in the notes.
"""

import functools
import hashlib
import pathlib

import jax
import numpy as np

from robustmed import errors
from robustmed.models import weights
from robustmed.networks import network as networks
from robustmed.networks import nnunet_files, nnunet_network, nnunet_plans, nnunet_predict

_PLANS = 'plans.json'
_NORMALISE = {
  'NoNormalization': 'none',
  'RescaleTo01Normalization': 'minmax',
  'RGBTo01Normalization': 'scale:255',
}
_LOADING = """import safetensors.torch
tensors = safetensors.torch.load_file('FILE')  # of several folds, names begin with 'fold_0.'
network.load_state_dict(tensors, strict=False)  # repeated names are the same tensors"""
# Of which nnunetv2 takes the statistics over a whole volume.
_BY_IMAGE = ('ZScoreNormalization', 'RescaleTo01Normalization')


def matches(path: pathlib.Path) -> bool:
  """Returns whether a folder is a results folder, one fold of it, or holds such folders."""
  if not path.is_dir():
    return False
  return nnunet_plans.is_results(path) or any(_inner(path)) or any(path.glob('fold_*/*.pth'))


def load(path: pathlib.Path) -> networks.Network:
  """Returns the network of a results folder; several configurations in it are a `UserError`."""
  several = [] if nnunet_plans.is_results(path) else _inner(path)
  if several:
    raise errors.UserError(
      f'{path}: holds results folders of nnU-Net; give one: {", ".join(map(str, several))}'
    )
  return of(nnunet_predict.load(path))


def of(loaded: nnunet_predict.NnUNet) -> networks.Network:
  """Returns a loaded nnU-Net as a network of images as they are stored, [b, *spatial, c]."""
  plan = loaded.plan
  rank = len(plan.patch)
  axes = plan.forward[3 - rank :]  # of [z, y, x], in the order of the plan
  if rank == 3:
    letters = ''.join('zyx'[axis] for axis in axes)
    order = axes
  else:
    order = tuple(sorted(axes).index(axis) for axis in axes)  # rows and columns of a slice
    letters = ''.join('yx'[axis] for axis in order)
  spacing = tuple(plan.spacing[order.index(axis)] for axis in range(rank))
  mirrored = ''.join(letters[axis] for axis in plan.mirrored)
  off = f'none of {mirrored}, which input.mirror=network adds: {2 ** len(mirrored)} times the work'
  return networks.Network(
    name=plan.folder.name,
    variables=loaded.variables,
    predict=loaded.apply,
    channels=len(plan.channels),
    shape=(None,) * rank,
    digest=_digest(plan),
    format=f'nnU-Net v2, {plan.configuration}, folds: '
    + ', '.join(fold.path.parent.name.removeprefix('fold_') for fold in plan.folds),
    activation='regions' if plan.labels.regions else 'none',
    stated={
      'input.spacing': (spacing, _PLANS),
      'input.orientation': (letters, _PLANS),
      'input.normalise': (normalisation(plan), _PLANS),
      'input.window': (plan.patch, _PLANS),
      'input.overlap': (0.5, 'nnU-Net'),
      'input.blend': ('nnunet', 'nnU-Net'),
      'input.mirror': ('none', off if mirrored else 'checkpoint'),
      'output.classes': (plan.labels.names, 'dataset.json'),
    },
    frozen=_frozen(loaded.variables),
    export=networks.Export('.safetensors', functools.partial(_write, plan), _LOADING),
    values=plan.labels.values,
    slice_axis=plan.forward[0] if rank == 2 else -1,
    mirrored=mirrored,
    notes=(f'differs from nnUNetv2_predict: {"; ".join(_differences(plan))}',),
  )


def normalisation(plan: nnunet_plans.Plan) -> str:
  """Returns the plan's normalisation in the names of `normalise`."""
  if _by_case(plan):
    return 'case_zscore'
  found = []
  for how in plan.normalisations:
    if how.name == 'ZScoreNormalization':
      found.append('inside' if how.masked else 'zscore')
    elif how.name == 'CTNormalization':
      known = how.properties
      keys = ('percentile_00_5', 'percentile_99_5', 'mean')
      numbers = [*(known[key] for key in keys), max(known['std'], 1e-8)]
      found.append(':'.join(['ct', *(f'{number:.9g}' for number in numbers)]))
    else:
      found.append(_NORMALISE[how.name])
  return 'nonzero:' + (found[0] if len(set(found)) == 1 else '|'.join(found))


def _by_case(plan) -> bool:
  """Whether statistics of the whole volume are all that the normalisation of a slice needs."""
  plain = all(how.name == 'ZScoreNormalization' and not how.masked for how in plan.normalisations)
  return len(plan.patch) == 2 and plain


def _differences(plan) -> list[str]:
  found = []
  if plan.resample_image.name != 'no_resampling_hack':
    found.append(
      'images are resampled linearly and before they are normalised, and label maps are not '
      'resampled back'
    )
  if _by_case(plan):
    found.append('volumes are not cropped, and zeros do not count where they are a quarter or more')
  if (
    len(plan.patch) == 2
    and not _by_case(plan)
    and any(how.name in _BY_IMAGE for how in plan.normalisations)
  ):
    found.append('each slice is normalised by itself, not its volume')
  if plan.reader in nnunet_files.TURNED:
    found.append('images are not turned to RAS')
  return found


def _frozen(variables) -> dict[str, str]:
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  names = [networks.name_of(path) for path, _ in leaves]
  return {name: 'running statistics' for name in names if not name.startswith('params/')}


def _write(plan, variables, path) -> None:
  """Writes the state dict of every fold, whole or not at all."""
  found = {}
  for place, fold in enumerate(plan.folds):
    start = '' if len(plan.folds) == 1 else f'{fold.path.parent.name}.'
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[place], variables)  # noqa: B023
    found |= {f'{start}{name}': value for name, value in nnunet_network.state(one).items()}
  weights.write(path, found)


def _inner(path) -> list[pathlib.Path]:
  return sorted(p.parent for p in path.glob('*/plans.json') if nnunet_plans.is_results(p.parent))


def _digest(plan) -> str:
  """Returns the sha256 of the checkpoints and of what the plans make of them."""
  found = hashlib.sha256(repr(plan._replace(folder='', folds=())).encode())
  for fold in plan.folds:
    with fold.path.open('rb') as file:
      found.update(hashlib.file_digest(file, 'sha256').digest())
  return found.hexdigest()
