"""Several attacks in a fixed order, and for each example the worst of what they find, by a metric.

search   `Ensemble`: the search itself
budgets  the members of each budget, by the objectives that a task has
table    `evaluate`: attacks at several levels in one call, for notebooks
"""

from robustmed.attacks.ensemble.budgets import BUDGETS, Budget, added_to, settings_of
from robustmed.attacks.ensemble.search import CLEAN, Ensemble, Found, Member, Robust, Sweep
from robustmed.attacks.ensemble.table import Table, evaluate

__all__ = [
  'BUDGETS',
  'CLEAN',
  'Budget',
  'Ensemble',
  'Found',
  'Member',
  'Robust',
  'Sweep',
  'Table',
  'added_to',
  'evaluate',
  'settings_of',
]
