"""Defenses: how a network is trained. One file and one line here per defense."""

from robustmed.defenses import adversarial, amat, distillation, noise, standard

DEFENSES = {
  'adversarial': adversarial.make,
  'amat': amat.make,
  'distillation': distillation.make,
  'noise': noise.make,
  'standard': standard.make,
}
