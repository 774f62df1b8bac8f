"""Attacks that must be trained first; `load(folder)` gives a trained one, see `types.Attack`.

They stand after training, whose phases train them and whose checkpoints hold them, and before
evaluation, which meets them as attacks.
"""

from robustmed.generators.attack import Synthesised, load

__all__ = ['Synthesised', 'load']
