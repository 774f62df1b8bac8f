"""Modules of PyTorch as networks.

module    `from_torch`: by ONNX where a module exports, compared with the module itself
callback  calls the module back from compiled programs; exact and slow
"""

from robustmed.networks.pytorch.module import from_torch

__all__ = ['from_torch']
