"""Networks on the user's own labelled images: trained, attacked, reported, without any code."""

import functools

import ml_collections

from robustmed import data, errors
from robustmed.data.labelled import study
from robustmed.own_data import choices, classes, landmarks, objects, report, segmentation
from robustmed.process import console
from robustmed.runs import experiment

# What differs between kinds of labels.
PARTS = {
  'segmentation': segmentation,
  'landmarks': landmarks,
  'boxes': objects,
  'classes': classes,
}


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of configs/train.py; looks into the folder of config.data.dir, if there is one,
  and prints what it chose."""
  chosen = choices.make(config)
  if chosen.fields.get('dir'):
    for line in chosen.lines:
      console.say(line)
  kind = chosen.study.folder.kind
  part = errors.lookup(PARTS, kind, kind='kind of labels that networks are trained on')
  task = part.make_task(config, chosen)
  made = choices.read(config, chosen, task)
  facts = study.facts_of(chosen.study)
  return experiment.Experiment(
    task=task,
    arms=experiment.make_arms(task, made),
    data=experiment.Data(
      sizes=lambda: data.sizes(chosen.fields),
      load=lambda: part.load(made, chosen),
      augment=part.make_augment(made, chosen),
      groups=lambda: data.groups(chosen.fields),
      check=functools.partial(_check, chosen),
    ),
    grid=experiment.Grid(
      experiment.make_probes(task, made, main='pgd'),
      'pgd',
      checks={
        'metric': part.METRIC,
        'higher_is_better': part.HIGHER_IS_BETTER,
        'main': 'pgd',
        'one_step': 'one_step',
        'noise': 'noise',
        'undefended': 'std',
      },
      subjects=functools.partial(part.cases, chosen),
    ),
    report=lambda folder: report.spec_of(made, chosen, part, task),
    claims=lambda: report.claims_of(made, part),
    artifacts=experiment.Artifacts(
      functools.partial(part.write_example, chosen, facts),
      part.pictures,
      part.lattice_of(chosen, facts),
    ),
    described=(
      functools.partial(part.described, made, chosen) if hasattr(part, 'described') else dict
    ),
  )


def _check(chosen: choices.Choices, arms, untrained, workdir) -> None:
  """Raises a `UserError` if there are networks to train and nothing to train them on."""
  del arms, workdir
  if untrained and not data.sizes(chosen.fields)['train']:
    raise errors.UserError(
      f'{chosen.study.folder.root}: all cases are test cases, so {", ".join(sorted(untrained))} '
      'cannot be trained; name a trained network with --checkpoint, or set data.split to fraction'
    )
