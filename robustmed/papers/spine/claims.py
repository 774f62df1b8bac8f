"""What the paper's Discussion says, as tests on our rows; attacks from outside have rows apart."""

import pandas as pd

from robustmed.evaluation import claims

TABLES, FIGURES = 'Discussion, Tables 1-3', 'Discussion, Figs. 1, 10-12'
EPS = 0.07
COLLAPSE, HOLD, AGREE, OBJECT = 0.3, 0.6, 0.95, 0.5
NO_HELP = 0.15  # a difference of Dice that counts as none
OURS = 'ours; the paper says that it does not help'
SIDE_EFFECT = 0.2  # what adv_r gains in segmentation in the paper (P10: 0.18)
SIDE_REASON = 'ours; the paper gains 0.18 (P10)'


def inside_attacks(shapes: tuple[str, ...], *, small: float) -> tuple[claims.Claim, ...]:
  """Claims on the tables; `small` is the smallest level, where P10 is said to beat P3."""
  seg = {'metric': 'DICE_seg', 'attack': 'pgd_seg', 'eps': EPS}
  reg = {'metric': 'DICE_reg', 'attack': 'pgd_reg', 'eps': EPS}
  outputs = (('segmentation', seg), ('contour', reg))
  found = []

  def add(statement, test, place=TABLES):
    found.append(claims.Claim(statement, place, test))

  for p in shapes:
    add(f'{p}_std collapses', claims.below(f'{p}_std', threshold=COLLAPSE, **seg))
    for name, at in outputs:
      add(
        f'{p}: random noise in training does not help the {name}',
        claims.close(f'{p}_rand', f'{p}_std', tolerance=NO_HELP, reason=OURS, **at),
      )
      add(f'{p}: adv_rs helps the {name}', claims.greater(f'{p}_adv_rs', f'{p}_std', **at))
      add(f'{p}: adv_s helps the {name}', claims.greater(f'{p}_adv_s', f'{p}_std', **at))
    add(f'{p}: adv_r helps the contour', claims.greater(f'{p}_adv_r', f'{p}_std', **reg))
    add(
      f'{p}: adv_r hardly helps the segmentation',
      claims.close(f'{p}_adv_r', f'{p}_std', tolerance=SIDE_EFFECT, reason=SIDE_REASON, **seg),
    )
    for arm in ('adv_s', 'adv_rs'):
      add(f'{p}_{arm} holds', claims.above(f'{p}_{arm}', threshold=HOLD, **seg))
      add(
        f'{p}: {arm} costs clean accuracy',
        claims.greater(f'{p}_std', f'{p}_{arm}', metric='DICE_seg', attack='none', eps=0.0),
      )
  for name, at in outputs:
    add(
      f'With adv_rs, P10 is more robust than P3 at a small level ({name})',
      claims.greater('P10_adv_rs', 'P03_adv_rs', **{**at, 'eps': small}),
    )
  return tuple(found)


def outside_attacks(config, rows: pd.DataFrame) -> tuple[claims.Claim, ...]:
  """Claims on images from elsewhere; `rows` are those of evaluation.ood."""
  budget = {name: float(options.eps) for name, options in config.ood.attacks.items()}
  found = []

  def add(statement, test):
    found.append(claims.Claim(statement, FIGURES, claims.Elsewhere(test, rows)))

  for name, metric in (('segmentations', 'agree_seg'), ('contours', 'agree_reg')):
    at = {'metric': metric, 'attack': 'ood', 'eps': budget['ood']}
    add(
      f'An attacked lung slice and a disk get the same {name} from P10_std (Dice above {AGREE})',
      claims.above('P10_std', threshold=AGREE, **at),
    )
  for arm in ('P10_std_rec', 'P10_adv_rs_rec'):
    # The attacked image belongs to the patient whose outputs it is to get.
    attacked = claims.Cell(arm, 'rec', budget['rec'])
    add(
      f'Under attack, the reconstruction error of {arm} detects nothing (AUROC below 0.5)',
      claims.auroc_below(attacked, ['ind'], metric='score', threshold=0.5, shared=True),
    )
  at = {'metric': 'object_dice', 'attack': 'rec', 'eps': budget['rec']}
  add(
    'The attacked image of P10_adv_rs_rec contains the disk as an object',
    claims.above('P10_adv_rs_rec', threshold=OBJECT, **at),
  )
  add(
    'It does so more than that of P10_std_rec',
    claims.greater('P10_adv_rs_rec', 'P10_std_rec', **at),
  )
  return tuple(found)
