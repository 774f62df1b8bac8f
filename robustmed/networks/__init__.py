"""Networks from elsewhere: `load(path)` gives variables and a pure function of them and images.

network      what a loaded network is; `from_function` for linen, nnx, equinox and plain functions
onnx_file    ONNX files
normalise    intensities of files to those that a network was trained on, by name
description  what the file does not say, from flags, network.json, the network or the shapes
segmentation outputs as logits of the classes of a folder
"""

import pathlib

from robustmed import errors
from robustmed.networks import onnx_file
from robustmed.networks.network import Network, from_function

# Ending of a file -> its reader.
READERS = {'.onnx': onnx_file.load}


def load(path) -> Network:
  """Returns the network in a file; what cannot be read is a `UserError`."""
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.UserError(f'no network at {path}')
  if path.suffix.lower() not in READERS:
    raise errors.UserError(
      f'{path} is no network that can be read ({", ".join(READERS)}); export it: '
      "torch.onnx.export(network, example, 'network.onnx')"
    )
  return READERS[path.suffix.lower()](path)


__all__ = ['Network', 'from_function', 'load']
