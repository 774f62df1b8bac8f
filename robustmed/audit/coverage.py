"""What of two checklists this audit did: plain rows (list, item, state, why)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

DONE, NOT_DONE, NOT_APPLICABLE = 'done', 'not done', 'not applicable'
CARLINI, CLAIM = 'Carlini 2019', 'CLAIM 2024'
SOURCES = (
  'Carlini et al. 2019, On Evaluating Adversarial Robustness; CLAIM 2024, Checklist for Artificial '
  'Intelligence in Medical Imaging.'
)


class Item(NamedTuple):
  checklist: str
  item: str
  state: str
  why: str


def items(
  *,
  attacks: Mapping[str, Mapping[str, object]],
  corruptions: Sequence[str],
  checks: Mapping[str, str],
  groups: int,
  networks: int,
) -> list[Item]:
  """Returns the items.

  attacks: name -> settings. checks: name -> status, of the results' own checks.
  """
  kinds = {str(options['name']) for options in attacks.values()}
  steps = max(
    (int(o.get('num_steps') or 0) for o in attacks.values() if o['name'] == 'pgd'), default=0
  )
  state = lambda yes: DONE if yes else NOT_DONE
  checked = lambda name: state(checks.get(name) in ('pass', 'warn', 'fail'))
  restarts = any((options.get('restarts') or 1) > 1 for options in attacks.values())
  carlini = [
    ('State a precise threat model', DONE, 'units and levels are on the first page'),
    ('Attacker knows the network (adaptive attack)', DONE, 'gradients pass through normalisation'),
    ('Gradients are not masked: zero gradients', checked('zero gradients'), 'see Checks'),
    ('Iterative attacks beat one step', checked('many steps beat one'), 'see Checks'),
    ('More budget harms more', checked('more budget, more harm'), 'see Checks'),
    ('An unbounded attack reaches 0', NOT_DONE, 'levels end where the last one is'),
    ('Enough iterations, convergence', state(steps >= 40), f'{steps} steps of PGD; presets: more'),
    ('Several random starts', state(restarts), 'preset thorough'),
    ('An attack without step sizes', state('apgd' in kinds), 'presets standard, thorough'),
    ('An attack without gradients', state('square' in kinds), 'presets standard, thorough'),
    ('Random noise of the same size', state('noise' in kinds), 'on the first page'),
    ('Transfer from another network', NOT_DONE, 'networks are attacked one by one'),
    ('Several attacks, worst case per example', DONE, 'see Worst of all attacks'),
    ('Results per example, not means alone', DONE, 'audit.json: cases'),
    ('Clean accuracy is reported', DONE, 'level 0'),
    ('A defence was trained', NOT_APPLICABLE, 'the network is judged as it is'),
    ('Weights and code are released', NOT_APPLICABLE, 'decided by the owner; hashes are given'),
  ]
  claim = [
    (
      'Measures of performance, with uncertainty',
      state(groups > 1),
      f'{groups} patients or groups',
    ),
    ('Intervals resample patients', state(groups > 1), 'bootstrap over groups'),
    ('Robustness or sensitivity analysis', DONE, 'this report'),
    ('Failure analysis of wrong cases', DONE, 'worst cases as files, breaking level per case'),
    (
      'Artefacts of acquisition',
      state(corruptions),
      ', '.join(corruptions) or 'evaluate.corruptions',
    ),
    ('Data from another site', NOT_DONE, 'not known to the program'),
    ('Test data apart from training data', NOT_DONE, 'only the owner of the network knows'),
    ('Comparison of networks, paired', state(networks > 1), 'config.networks=a,b'),
    ('Hashes and versions for reproduction', DONE, 'audit.json: provenance'),
  ]
  return [Item(CARLINI, *one) for one in carlini] + [Item(CLAIM, *one) for one in claim]
