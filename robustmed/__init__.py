"""robustmed: attack, harden and judge medical-image networks in JAX."""

__version__ = '0.1.0'
