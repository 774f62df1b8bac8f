"""What Chen et al. 2021 say, as tests on our rows; attacks from outside have rows apart."""

import pandas as pd

from robustmed.evaluation import claims

TABLES, FIGURES = 'Discussion, Tables 1-3', 'Discussion, Figs. 1, 10-12'
SHAPES = ('P03', 'P05', 'P10')  # by the number of components of the shape model
EPS = 0.07
SMALL = 0.01  # 'when the noise level was small': of Tables 1-3 the smallest
VERY_SMALL = 0.03  # Fig. 4
COLLAPSE = 0.5  # Fig. 4: 'dropped quickly (DICE < 0.5) even when the noise was very small (0.03)'
COLLAPSE_REASON = "the paper's, Fig. 4"
NO_HELP = 0.1  # Dice
NO_HELP_REASON = 'ours, half of the least that adv_rs gains in the paper; there rand gains 0.01'
AGREE, AGREE_REASON = 0.95, "where the axis of the paper's Fig. 10 begins"
OBJECT, OBJECT_REASON = 0.5, 'ours; the paper shows pictures'

SEG = {'metric': 'DICE_seg', 'attack': 'pgd_seg'}
REG = {'metric': 'DICE_reg', 'attack': 'pgd_reg'}
ERROR = {'metric': 'Error_reg', 'attack': 'pgd_reg'}
# What is measured, and whether more of it is better.
OUTPUTS = (('segmentation', SEG, True), ('contour', REG, True), ('contour error', ERROR, False))


def of_paper(config, outside: pd.DataFrame | None = None) -> tuple[claims.Claim, ...]:
  """The claims of a run with these arms; `outside` are the rows of attacks from outside, if any."""
  shapes = [name for name in SHAPES if any(arm.startswith(name) for arm in config.arms)]
  outside = pd.DataFrame() if outside is None else outside
  return (*inside_attacks(tuple(shapes)), *outside_attacks(config, outside))


def inside_attacks(shapes: tuple[str, ...]) -> tuple[claims.Claim, ...]:
  """Claims on Tables 1 to 3, each of what the printed means show.

  Where the text goes further than its tables, the tables are followed: the contours of std stay
  above a Dice of 0.5 at 0.03, and with adv_r P10 segments worse than P3 at 0.01 (0.8245 against
  0.8598).
  """
  found = []

  def add(statement, test, place=TABLES):
    found.append(claims.Claim(statement, place, test))

  def better(one, other, at, *, eps, higher):
    first, second = (one, other) if higher else (other, one)
    return claims.greater(first, second, **at, eps=eps)

  reason = {'threshold': COLLAPSE, 'reason': COLLAPSE_REASON}
  for p in shapes:
    add(
      f'{p}_std collapses at {VERY_SMALL:g} (segmentation)',
      claims.below(f'{p}_std', **SEG, eps=VERY_SMALL, **reason),
    )
    for name, at, _ in OUTPUTS[:2]:
      test = claims.close(
        f'{p}_rand',
        f'{p}_std',
        **at,
        eps=EPS,
        tolerance=NO_HELP,
        reason=NO_HELP_REASON,
        above_only=True,
      )
      add(f'{p}: random noise in training does not help the {name}', test)
    for arm in ('adv_rs', 'adv_s', 'adv_r'):
      for name, at, higher in OUTPUTS[arm == 'adv_r' :]:
        test = better(f'{p}_{arm}', f'{p}_std', at, eps=EPS, higher=higher)
        add(f'{p}: {arm} improves the {name}', test)
    add(
      f'{p}: adv_r gains less than adv_s in the segmentation',
      claims.greater(f'{p}_adv_s', f'{p}_adv_r', **SEG, eps=EPS),
    )
    for arm in ('adv_s', 'adv_rs'):
      add(f'{p}_{arm} holds at {EPS:g}', claims.above(f'{p}_{arm}', **SEG, eps=EPS, **reason))
  for arm in ('adv_rs', 'adv_s', 'adv_r'):
    for name, at, higher in OUTPUTS[arm == 'adv_r' :]:
      test = better(f'P10_{arm}', f'P03_{arm}', at, eps=SMALL, higher=higher)
      add(f'With {arm}, P10 is better than P03 at {SMALL:g} ({name})', test)
  for arm in ('adv_rs', 'adv_s', 'adv_r'):
    for name, at, higher in OUTPUTS:
      test = better('P10_std', f'P10_{arm}', at, eps=0.0, higher=higher)
      add(f'P10: {arm} costs clean accuracy ({name})', test, 'Figs. 5-7')
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
      claims.above('P10_std', threshold=AGREE, reason=AGREE_REASON, **at),
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
    claims.above('P10_adv_rs_rec', threshold=OBJECT, reason=OBJECT_REASON, **at),
  )
  add(
    'It does so more than that of P10_std_rec',
    claims.greater('P10_adv_rs_rec', 'P10_std_rec', **at),
  )
  return tuple(found)
