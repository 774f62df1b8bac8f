"""Which arm withstands an attack best, as far as the data can tell."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.evaluation import claims, statistics
from robustmed.report import spec as spec_lib

_MOST_NAMED = 3
Known = Sequence[tuple[spec_lib.Arm, float, float]]  # arm, clean mean, mean under attack


def sentence(
  known: Known,
  rows: pd.DataFrame,
  *,
  panel: spec_lib.Panel,
  eps: float,
  decided: pd.DataFrame,
  failed: Collection[str],
) -> str:
  """Returns which arm withstands the attack best, or from which others it is not told apart.

  An arm with a failed check is never called the best. decided: the tested claims of the page, whose
  p values are of the same family.
  """
  pick = functools.partial(max if panel.higher_is_better else min, key=lambda line: line[2])
  best, sound = pick(known)[0], [line for line in known if line[0].name not in failed]
  if len({line[2] for line in known}) == 1:
    return 'At this level no arm withstands the attack better than another.'
  how = {'rows': rows, 'panel': panel, 'eps': eps, 'decided': decided}
  words = functools.partial(_words, arms=[line[0] for line in known], **how)
  if best.name not in failed:
    return f'At this level {words(best)}.'
  text = f'The best figure at this level is that of {best.shown}, one of whose checks failed'
  if len(sound) > 1:
    own = pick(sound)[0]
    text += f'; of the arms without a failed check {words(own, arms=[line[0] for line in sound])}'
  return f'{text}.'


def _words(best, *, arms, **how: Any) -> str:
  alike = [arm.shown for arm in arms if arm != best and not _better(best, arm, **how)]
  if not alike:
    return f'{best.shown} withstands the attack best'
  names = f'{", ".join(alike[:-1])} or {alike[-1]}' if len(alike) > 1 else alike[0]
  names = f'{len(alike)} others' if len(alike) > _MOST_NAMED else names
  return f'{best.shown} has the best figure, which is not told apart from that of {names}'


def _better(best, other, *, rows, panel, eps: float, decided) -> bool:
  """Whether `best` is better, paired by example, with Holm's correction over all claims.

  Its figure chose the arm that is tested, for which p counts twice (Gutmann and Maymin 1987, for
  any number of arms).
  """
  pair = [claims.Cell(arm.name, panel.attack, eps) for arm in (best, other)]
  pair = pair if panel.higher_is_better else pair[::-1]
  test = claims.inside(*pair, low=0.0, metric=panel.metric)
  p = claims.decide((claims.Claim('', '', test),), rows)['p'].iloc[0]
  claimed = decided['p'].to_numpy(np.float64) if 'p' in decided else np.empty(0)
  adjusted = statistics.holm(np.concatenate([[p, 1.0], claimed]))[0]
  return bool(adjusted < claims.ALPHA)
