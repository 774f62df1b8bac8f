"""What an audit measures of landmarks by heat maps."""

import functools

from robustmed.audit import classes, label_maps
from robustmed.metrics import landmarks as metrics
from robustmed.networks import heads
from robustmed.own_data import landmarks
from robustmed.report import spec
from robustmed.tasks import heat_maps

KIND = 'landmarks'
METRIC, HIGHER_IS_BETTER, SHOWN = 'MRE', False, 'mean radial error'
_LAST = metrics.SDR_MM[-1]
BREAKING = f'SDR_{_LAST:g}mm'
BROKEN = (
  f'the share of landmarks within {_LAST:g} mm or pixels falls below {{share:g}} of its clean value'
)
ASKED = 'how far are its landmarks off?'
MEANS = 'Mean distance to the reference (mean radial error, 0 is perfect)'
POOR = None

subjects, case_of, host, pictures = (
  classes.subjects,
  classes.case_of,
  classes.host,
  classes.pictures,
)


def metrics_of(columns) -> list[str]:
  """Returns mean and largest error of an image, and the shares of landmarks within distances."""
  return [name for name in columns if name in (METRIC, 'MAX') or name.startswith('SDR_')]


def curves(rows, *, names, seed: int):
  del rows, names, seed
  return []


def make_task(study, one, *, units: str):
  """Returns the task of an audited network."""
  shape = (*study.window, 3)
  predict = heads.points(
    one.network,
    one.described,
    landmarks=study.classes,
    top=label_maps.top(study),
    grey=study.channels == 1,
  )
  return heat_maps.make(image_shape=shape, units=units), predict


def described(network, given, count, classes):
  """Returns names of the heat maps and where they are from."""
  return heads.landmark_names(network, given, count, classes)


def panels(made, probes) -> list[spec.Panel]:
  rest = [name for name in probes if name != 'pgd']
  unit = landmarks.unit_of(made)
  return [
    *landmarks.panels(made),
    *(spec.Panel(METRIC, name, False, f'mean radial error ({unit}), {name}') for name in rest),
  ]


def write_example(made, facts):
  return functools.partial(landmarks.write_example, made, facts)


def lattice_of(made, facts):
  return landmarks.lattice_of(made, facts)


def notes(made) -> list[str]:
  return [*landmarks.notes(made), label_maps.resized(made)]
