"""Several attacks in a fixed order, and for each example the worst of what they find, by a metric.

search   `Ensemble`: the search itself
budgets  the members of each budget, by the objectives that a task has
"""

from robustmed.attacks.ensemble.budgets import BUDGETS, Budget, added_to, settings_of
from robustmed.attacks.ensemble.search import CLEAN, Ensemble, Found, Member, Robust

__all__ = [
  'BUDGETS',
  'CLEAN',
  'Budget',
  'Ensemble',
  'Found',
  'Member',
  'Robust',
  'added_to',
  'settings_of',
]
