"""Networks with all that is done to an image before and after them, as pure functions.

nnunet.py       nnU-Net v2, from the voxels of a file to logits on the same grid
resampling.py   its resampling as one matrix per axis
"""
