"""Attacks that must be trained first; `load(folder)` returns a trained one, see `types.Attack`.

The package imports `training`, which trains and checkpoints generators; evaluation uses them like
any other attack.
"""

from robustmed.generators.attack import Synthesised, load

__all__ = ['Synthesised', 'load']
