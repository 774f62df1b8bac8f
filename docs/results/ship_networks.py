"""Puts the trained hippocampus networks of a run into the package, see robustmed.networks.shipped.

  python docs/results/ship_networks.py --config configs/amat_hippocampus.py:real \\
      --config.data.dir=Task04_Hippocampus --workdir runs/amat_real

The flags are those of the run. The scores of the cards are those of its results/summary.csv.
"""

import sys

import pandas as pd

from robustmed import papers
from robustmed.evaluation import trials
from robustmed.models import nnunet_planner
from robustmed.networks import checkpoint, shipped
from robustmed.papers.amat import segmentation
from robustmed.runs import commandline, networks

DATA = (
  'Hippocampus of the Medical Segmentation Decathlon (Task04), slices across the first axis of '
  '[z, y, x]; Antonelli et al., Nature Communications 2022'
)
LICENCE = 'CC-BY-SA 4.0, as the images'


def main(words: list[str]) -> None:
  command = commandline.parse(words)
  config = command.config
  exp = papers.find(config.experiment).build(config)
  made = networks.Networks(exp, config, command.workdir)
  summary = pd.read_csv(command.workdir / 'results' / 'summary.csv', keep_default_na=False)
  model, names = config.model.to_dict(), segmentation.CLASSES[config.data.task]
  model.pop('init', None)
  for arm in exp.arms:
    rows = summary[(summary.arm == arm) & (summary.metric == segmentation.METRIC)]
    rows = rows[rows.attack.isin(['none', exp.grid.main])]
    card = {
      'arm': arm,
      'module': {
        **model,
        'num_classes': len(names) + 1,
        'channels': 1,
        'strides': list(nnunet_planner.poolings(tuple(config.data.patch))),
      },
      'input': {'spacing': [1.0, 1.0], 'normalise': 'case_zscore'},
      'output': {'kind': 'segmentation', 'classes': ['background', *names]},
      'slice_axis': 0,
      'about': {
        'data': DATA,
        'licence': LICENCE,
        'command': 'python -m robustmed.main --config configs/amat_hippocampus.py:real',
        'scores': {
          f'mean Dice of slices under L2 PGD at {float(eps):g}': round(float(mean), 3)
          for eps, mean in zip(rows.eps, rows['mean'])
        },
      },
    }
    variables = made.load(arm, trials.Trial(0))
    checkpoint.pack(card, variables, shipped.FOLDER / config.data.task / arm)


if __name__ == '__main__':
  main(sys.argv[1:])
