"""Attacks: `attacks.pgd(norm='linf', num_steps=20)` returns a callable, see `types.Attack`."""

import inspect

from robustmed import errors
from robustmed.attacks.apgd import apgd, sea
from robustmed.attacks.corruption import corruption
from robustmed.attacks.engine import LoopAttack
from robustmed.attacks.ensemble import Ensemble, Member, evaluate
from robustmed.attacks.fgsm import fgsm, ifgsm, tifgsm
from robustmed.attacks.minimal import fmn, minimal_eps
from robustmed.attacks.objectives import Shared, expected, straight_through
from robustmed.attacks.pgd import latent, mismatch, noise, ood, pgd
from robustmed.attacks.square import square
from robustmed.attacks.threat import Threat

ATTACKS = {
  'fgsm': fgsm,
  'ifgsm': ifgsm,
  'tifgsm': tifgsm,
  'pgd': pgd,
  'ood': ood,
  'latent': latent,
  'apgd': apgd,
  'sea': sea,
  'square': square,
  'fmn': fmn,
  'noise': noise,
  'corruption': corruption,
}


# Attacks that take the settings of another one, except the setting that they fix.
_LIKE = {
  'tifgsm': (ifgsm, 'minimise'),
  'ood': (pgd, 'minimise'),
  'latent': (pgd, 'bounds'),
  'sea': (apgd, None),
}


def settings(name):
  """Returns the names of the settings that the attack `name` takes."""
  maker = errors.lookup(ATTACKS, name, kind='attack')
  base, fixed = _LIKE.get(name, (maker, None))
  return tuple(known for known in inspect.signature(base).parameters if known != fixed)


def defaults(name):
  """Returns the settings that the attack `name` takes, with their default values."""
  maker = errors.lookup(ATTACKS, name, kind='attack')
  base, _ = _LIKE.get(name, (maker, None))
  known = {**inspect.signature(base).parameters, **inspect.signature(maker).parameters}
  return {setting: known[setting].default for setting in settings(name)}


def make(name, **chosen):
  """Returns the attack `name` with these settings; an unknown one is a `UserError`."""
  known = dict.fromkeys(settings(name))
  for setting in chosen:
    errors.lookup(known, setting, kind=f'setting of attack {name!r}')
  return ATTACKS[name](**chosen)


__all__ = [
  'ATTACKS',
  'Ensemble',
  'LoopAttack',
  'Member',
  'Shared',
  'Threat',
  'apgd',
  'corruption',
  'defaults',
  'evaluate',
  'expected',
  'fgsm',
  'fmn',
  'ifgsm',
  'latent',
  'make',
  'minimal_eps',
  'mismatch',
  'noise',
  'ood',
  'pgd',
  'sea',
  'settings',
  'square',
  'straight_through',
  'tifgsm',
]
