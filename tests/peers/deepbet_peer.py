"""Exports a network of deepbet and lays out the MNI template for an audit; run by test_deepbet.py.

`python deepbet_peer.py WORK` writes WORK/bbox.onnx (deepbet's bounding-box network behind deepbet's
own normalisation, of stored intensities at 128^3), WORK/network.json beside it, WORK/template (the
template that nilearn ships at that size, in nnU-Net's raw layout, labelled by nilearn's brain mask)
and WORK/mask.npy (PyTorch's own mask). Neither package is imported: their files are read. Then

  python -m robustmed.main --config configs/audit.py --config.network=WORK/bbox.onnx
      --config.data.dir=WORK/template --config.evaluate.batch_size=1
      --config.evaluate.levels="(0.04,0.08,0.16)" --config.evaluate.corruptions="()"
      --workdir WORK/audit

and `python deepbet_peer.py WORK PICTURE.png` draws what that audit found.
"""

import importlib.util
import io
import json
import pathlib
import sys

import nibabel as nib
import numpy as np
import torch
from PIL import Image

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


def draw(work, path):
  """Draws a slice, clean and attacked, with reference and output, and the Dice by level."""
  import matplotlib

  matplotlib.use('agg')
  import matplotlib.pyplot as plt

  found = np.load(work / 'audit' / 'results' / 'examples.npz')
  cut = lambda array: np.asarray(array[0], np.float32).reshape(SIDE, SIDE)
  figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.7), width_ratios=(1, 1, 1, 1.35))
  images = {'image': cut(found['image']), 'adversarial': cut(found['adversarial'])}
  eps = float(found['eps'][0])
  for axis, name, output, title in (
    (axes[0], 'image', 'seg_clean', 'untouched'),
    (axes[1], 'adversarial', 'seg_adv', f'attacked, eps = {eps:g} of the range'),
  ):
    axis.imshow(images[name], cmap='gray', vmin=0, vmax=images['image'].max())
    axis.contour(cut(found['mask_true']), [0.5], colors='tab:green', linewidths=1)
    axis.contour(cut(found[output]), [0.5], colors='tab:red', linewidths=1)
    axis.set_title(title, fontsize=9)
  axes[2].imshow(images['adversarial'] - images['image'], cmap='PuOr', vmin=-eps, vmax=eps)
  axes[2].set_title('what was added', fontsize=9)
  for axis in axes[:3]:
    axis.set_axis_off()
  lines = json.loads((work / 'audit' / 'report' / 'audit.json').read_text())['results']
  for attack, style in (('noise', 'o--'), ('one_step', 'o:'), ('pgd', 'o-')):
    points = sorted(
      (line['eps'], line['mean'])
      for line in lines
      if line['metric'] == 'DICE' and line['attack'] in ('none', attack)
    )
    axes[3].plot(*zip(*points), style, label=attack, markersize=3)
  axes[3].set_ylim(0, 1.02)
  axes[3].set_xlabel('eps, share of the intensity range', fontsize=8)
  axes[3].set_title('Dice, one case', fontsize=9)
  axes[3].tick_params(labelsize=8)
  axes[3].legend(fontsize=8, loc='lower left')
  figure.tight_layout()
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=100)
  Image.open(buffer).convert('RGB').quantize(64).save(path, optimize=True)


if __name__ == '__main__':
  if len(sys.argv) > 2:
    draw(pathlib.Path(sys.argv[1]), sys.argv[2])
  else:
    lay_out(pathlib.Path(sys.argv[1]))
