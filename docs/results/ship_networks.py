"""Puts the trained hippocampus networks of a run into the package, see robustmed.networks.shipped.

  python docs/results/ship_networks.py --config configs/amat_hippocampus.py:real \\
      --config.data.dir=Task04_Hippocampus --workdir runs/amat_real [--arms std,amat]

The flags are those of the run. Nothing is trained or evaluated: the scores of the cards are those
of its results/summary.csv, and an arm without scores is refused.
"""

import pathlib
import sys

import ml_collections
import pandas as pd
import run_tables  # beside this file

import robustmed
from robustmed import errors, papers
from robustmed.data.decathlon import msd, volumes
from robustmed.evaluation import grid, trials
from robustmed.models import nnunet_planner
from robustmed.networks import checkpoint, shipped
from robustmed.papers.amat import segmentation
from robustmed.process import files
from robustmed.report import inputs
from robustmed.runs import commandline, networks

DATA = (
  'Hippocampus of the Medical Segmentation Decathlon (Task04), slices across the first axis of '
  '[z, y, x]; Antonelli et al., Nature Communications 2022'
)
LICENCE = 'CC-BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), as the images'
PAPER = (
  'Ma & Liang 2022, Adaptive Adversarial Training to Improve Adversarial Robustness of DNNs for '
  'Medical Image Segmentation and Detection'
)
USE = 'For research on robustness; not for diagnosis.'


def main(words: list[str], folder: pathlib.Path = shipped.FOLDER) -> list[str]:
  """Writes one folder per arm and returns their names."""
  command = commandline.parse(words)
  config, workdir = command.config, command.workdir
  exp = papers.find(config.experiment).build(config)
  made = networks.Networks(exp, config, workdir)
  arms = command.arms or tuple(exp.arms)
  if unknown := [arm for arm in arms if arm not in exp.arms]:
    raise errors.UserError(f'no arm {unknown[0]}; there are {", ".join(exp.arms)}')
  summary = inputs.read_summary(workdir)
  facts = _facts(workdir, config)
  names = []
  for arm in arms:
    scores = scores_of(summary, arm, main=exp.grid.main)
    if not scores:
      raise errors.UserError(f'arm {arm} has no scores in {workdir}; run --stage evaluate first')
    about = {**facts, 'steps': _steps(config, arm), 'defense': _defense(config, arm)}
    name = f'{config.data.task}/{arm}'
    variables = made.load(arm, trials.Trial(0))
    checkpoint.pack(_card(config, about | {'scores': scores}), variables, folder / name)
    names.append(name)
  return names


def scores_of(summary: pd.DataFrame, arm: str, *, main: str) -> dict[str, list[float]]:
  """Returns {what: [mean, low, high]} of the clean slices and of each level of the main attack."""
  rows = summary[(summary.arm == arm) & (summary.metric == segmentation.METRIC)]
  rows = rows[rows.attack.isin([grid.CLEAN, main])].sort_values('eps')
  words = lambda eps: f'mean Dice of slices under L2 {main} at {float(eps):g}' if eps else CLEAN
  return {
    words(line.eps): [round(float(value), 3) for value in (line.mean, line.low, line.high)]
    for line in rows.itertuples()
  }


CLEAN = 'mean Dice of slices, clean'


def _facts(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict:
  made, data = inputs.evaluated(workdir), files.read_json(workdir / 'data.json')
  env = files.read_json(workdir / 'env.json')
  return {
    'data': DATA,
    'licence': LICENCE,
    'paper': PAPER,
    'use': USE,
    'command': run_tables.neutral(env['command']),
    'robustmed': made.get('version', robustmed.__version__),
    'date': made['date'],
    'seed': config.seed,
    'fold': 'the first of five of the cases at hand',
    'trained on': f'{data["groups"]["train"]} cases',
    'tested on': f'{data["sizes"]["test"]} slices of {data["groups"]["test"]} other cases',
    'intervals': '[mean, lower, upper end of the 95 % interval over cases]',
    **_cases(config),
  }


def _cases(config: ml_collections.ConfigDict) -> dict[str, list[str]]:
  """The names of the cases that were not trained on; of synthetic data nothing."""
  if config.data.source != 'msd':
    return {}
  known = {name: value for name, value in config.data.to_dict().items() if name in msd.DEFAULTS}
  study = msd.find({**msd.DEFAULTS, **known})
  return {'not trained on': [study.cases[n].name for n in volumes.split(study)['test']]}


def _steps(config, arm: str) -> int:
  own = config.arms[arm].get('train', {})
  return int(own.get('steps', config.train.steps))


def _defense(config, arm: str) -> str:
  found = config.arms[arm].defense
  return f'adversarial at {found.eps:g}' if found.name == 'adversarial' else found.name


def _card(config, about: dict) -> dict:
  model, classes = config.model.to_dict(), segmentation.CLASSES[config.data.task]
  model.pop('init', None)
  return {
    'arm': config.data.task,
    'module': {
      **model,
      'num_classes': len(classes) + 1,
      'channels': 1,
      'strides': list(nnunet_planner.poolings(tuple(config.data.patch))),
    },
    'input': {'spacing': [1.0, 1.0], 'normalise': 'case_zscore'},
    'output': {'kind': 'segmentation', 'classes': ['background', *classes]},
    'slice_axis': 0,
    'about': about,
  }


if __name__ == '__main__':
  try:
    print('\n'.join(main(sys.argv[1:])))
  except errors.UserError as error:
    sys.exit(f'robustmed: error: {error}')
