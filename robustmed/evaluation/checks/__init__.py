"""Checks of a robustness result: signs of a broken or a fooled attack.

check    what a check says
rows     of the rows of a run
untouched of a network on untouched images: its metric, whether every class is found
members  of the worst of all attacks, against each of them
network  of a network, before it is attacked; `inspection` of those of a run. Both import JAX, which
         a report does not need, so they are imported by their own names
"""

from robustmed.evaluation.checks.check import STATUSES, Check, worst
from robustmed.evaluation.checks.members import of_worst
from robustmed.evaluation.checks.rows import run
from robustmed.evaluation.checks.untouched import UNTOUCHED, of_untouched

__all__ = ['STATUSES', 'UNTOUCHED', 'Check', 'of_untouched', 'of_worst', 'run', 'worst']
