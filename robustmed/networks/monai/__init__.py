"""Networks of MONAI bundles: configs/inference.json and models/model.pt, without running code.

bundle        the folder as a network of stored images
config        literals of a configuration; expressions are never evaluated
preprocessing what the transforms of a bundle say of its input
layers        convolutions, norms and activations on a state dict
unets         UNet, BasicUNet, DynUNet
residual      SegResNet, DenseNet
transformers  UNETR, SwinUNETR
"""

from robustmed.networks.monai.bundle import load, matches

__all__ = ['load', 'matches']
