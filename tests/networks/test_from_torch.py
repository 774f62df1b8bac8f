"""`from_torch` where PyTorch is not installed; with it, see tests/peers/test_from_torch.py."""

import sys

import pytest

from robustmed import errors, networks


def test_without_pytorch(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(errors.UserError, match=r'needs PyTorch.*torch\.onnx\.export'):
    networks.from_torch(None, None)
