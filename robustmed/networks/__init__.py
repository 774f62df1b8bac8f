"""Networks from elsewhere: `load(path)` gives variables and a pure function of them and images.

network      what a loaded network is; `from_function` for linen, nnx, equinox and plain functions
onnx_file    ONNX files
checkpoint   what configs/train.py trained
shipped      small networks that come with the package, by name
training     which variables are trained, and how they are written back
pytorch      `from_torch` for modules of PyTorch, by ONNX or by callbacks
normalise    intensities of files to those that a network was trained on, by name
description  what the file does not say, from flags, network.json, the network or the shapes
segmentation outputs as logits of the classes of a folder
heads        outputs as one class or landmarks of an image
nnunet_*     results folders of nnU-Net v2: plans, architecture, network, preprocess, files and
             predict; folder makes a network of stored images of them
monai        bundles of MONAI: configurations and weights, read without running code
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from robustmed import errors
from robustmed.networks import checkpoint, monai, nnunet_folder, onnx_file, shipped
from robustmed.networks.network import Network, from_function
from robustmed.networks.pytorch import from_torch


class Kind(NamedTuple):
  """A kind of path that holds a network."""

  what: str
  matches: Callable[[pathlib.Path], bool]
  load: Callable[[pathlib.Path], Network]


KINDS = (
  Kind('an ONNX file', lambda path: path.suffix.lower() == '.onnx', onnx_file.load),
  Kind('a results folder of nnU-Net v2', nnunet_folder.matches, nnunet_folder.load),
  Kind('a checkpoint of configs/train.py', checkpoint.matches, checkpoint.load),
  Kind('a MONAI bundle', monai.matches, monai.load),
)


def load(path) -> Network:
  """Returns the network at a path by its kind (`KINDS`), or one of `shipped.names()`.

  What cannot be read is a `UserError`.
  """
  path = pathlib.Path(path)
  if not path.exists():
    own = shipped.find(path.as_posix())
    if own is None:
      has = f'; the package has {", ".join(shipped.names())}' if shipped.names() else ''
      raise errors.UserError(f'no network at {path}{has}')
    path = own
  for kind in KINDS:
    if kind.matches(path):
      return kind.load(path)
  raise errors.UserError(
    f'{path} is neither {" nor ".join(kind.what for kind in KINDS)}; export the network: '
    "torch.onnx.export(network, example, 'network.onnx')"
  )


__all__ = ['Network', 'from_function', 'from_torch', 'load']
