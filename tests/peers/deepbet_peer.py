"""Exports a network of deepbet and lays out the MNI template for an audit; run by test_deepbet.py.

`python deepbet_peer.py WORK` writes WORK/bbox.onnx (deepbet's bounding-box network behind deepbet's
own normalisation, of stored intensities at 128^3), WORK/network.json beside it, WORK/template (the
template that nilearn ships at that size, in nnU-Net's raw layout, labelled by nilearn's brain mask)
and WORK/mask.npy (PyTorch's own mask). Neither package is imported: their files are read. Then

  python -m robustmed.main --config configs/audit.py --config.network=WORK/bbox.onnx
      --config.data.dir=WORK/template --config.evaluate.batch_size=1 --workdir WORK/audit
"""

import importlib.util
import json
import pathlib
import sys

import nibabel as nib
import numpy as np
import torch

SIDE = 128
BRAIN = 0.2  # of the template's maximum, nilearn's load_mni152_brain_mask


def _folder(package):
  found = importlib.util.find_spec(package)
  return pathlib.Path(found.submodule_search_locations[0])


class Stored(torch.nn.Module):
  """deepbet's `normalize` and its network, of stored intensities; the ends are of the template."""

  def __init__(self, network, low, high):
    super().__init__()
    self.network, self.low, self.high = network, low, high

  def forward(self, image):
    """Returns the probabilities of background and brain."""
    x = ((image - self.low) / (self.high - self.low)).clamp(0, 1)
    x = (x - x.mean()) / x.std()
    return self.network(0.226 * x + 0.449)


def template():
  """Returns the template [x, y, z] at SIDE^3, nilearn's brain mask on that grid, and the affine."""
  name = 'mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz'
  image = nib.as_closest_canonical(nib.load(_folder('nilearn') / 'datasets' / 'data' / name))
  whole = np.asarray(image.dataobj, np.float32)
  resized = lambda array: torch.nn.functional.interpolate(
    torch.from_numpy(array)[None, None], (SIDE,) * 3, mode='nearest-exact'
  )[0, 0].numpy()
  affine = image.affine @ np.diag([n / SIDE for n in whole.shape] + [1.0])
  brain = (whole > BRAIN * whole.max()).astype(np.float32)
  return resized(whole), resized(brain).astype(np.uint8), affine


def network(image):
  """Returns deepbet's bounding-box network of stored intensities."""
  found = torch.jit.load(_folder('deepbet').parent / 'data' / 'models' / 'bbox_model.pt').eval()
  low, high = (float(torch.from_numpy(image).quantile(q)) for q in (0.005, 0.995))
  # A traced module would not hold a scripted one.
  return torch.jit.script(Stored(found, low, high).eval())


def lay_out(work):
  """Writes everything that the module's docstring names; returns PyTorch's own mask."""
  image, brain, affine = template()
  for folder, name, array in (
    ('imagesTr', 'mni_0000', image),
    ('labelsTr', 'mni', brain),
  ):
    place = work / 'template' / folder
    place.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), place / f'{name}.nii.gz')
  described = {
    'channel_names': {'0': 'T1'},
    'labels': {'background': 0, 'brain': 1},
    'numTraining': 1,
    'file_ending': '.nii.gz',
  }
  (work / 'template' / 'dataset.json').write_text(json.dumps(described))
  module = network(image)
  given = torch.from_numpy(image)[None, None]
  torch.onnx.export(
    module, (given,), work / 'bbox.onnx', dynamo=False, opset_version=17, input_names=['image']
  )
  # Axes as nibabel reads them; the softmax is inside.
  said = {
    'input': {'normalise': 'none', 'orientation': 'xyz'},
    'output': {'classes': ['background', 'brain'], 'activation': 'softmax'},
  }
  (work / 'network.json').write_text(json.dumps(said))
  with torch.no_grad():
    mask = (module(given)[0, 1] > 0.5).numpy()
  np.save(work / 'mask.npy', mask)
  return mask


if __name__ == '__main__':
  lay_out(pathlib.Path(sys.argv[1]))
