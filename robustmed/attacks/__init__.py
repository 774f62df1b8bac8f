"""Attacks: `attacks.pgd(norm='linf', num_steps=20)` makes a function, see `types.Attack`."""

import inspect

from robustmed import errors
from robustmed.attacks.engine import LoopAttack
from robustmed.attacks.fgsm import fgsm, ifgsm, tifgsm
from robustmed.attacks.pgd import latent, mismatch, ood, pgd
from robustmed.attacks.threat import Threat

ATTACKS = {
  'fgsm': fgsm,
  'ifgsm': ifgsm,
  'tifgsm': tifgsm,
  'pgd': pgd,
  'ood': ood,
  'latent': latent,
}


def settings(name):
  """The names of the settings that the attack `name` takes."""
  names = dict.fromkeys(inspect.signature(errors.lookup(ATTACKS, name, kind='attack')).parameters)
  if 'settings' in names:
    base = ifgsm if name == 'tifgsm' else pgd
    names |= dict.fromkeys(inspect.signature(base).parameters)
    del names['settings']
  return tuple(names)


def make(name, **chosen):
  """The attack `name` with these settings; what is unknown is a `UserError` with the known."""
  for setting in chosen:
    errors.lookup(settings(name), setting, kind=f'setting of attack {name!r}')
  return ATTACKS[name](**chosen)


__all__ = [
  'ATTACKS',
  'LoopAttack',
  'Threat',
  'fgsm',
  'ifgsm',
  'latent',
  'make',
  'mismatch',
  'ood',
  'pgd',
  'settings',
  'tifgsm',
]
