"""Defenses: how a network is trained. One file and one line here per defense."""

from robustmed.defenses import adversarial, noise, standard

DEFENSES = {'standard': standard.make, 'noise': noise.make, 'adversarial': adversarial.make}
