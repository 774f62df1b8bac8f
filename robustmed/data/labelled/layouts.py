"""Layouts of folders by name, in the order in which they are tried."""

from robustmed.data.labelled import folders, maps

LAYOUTS = {
  'nnunet': folders.Layout(
    'nnU-Net raw or Medical Segmentation Decathlon',
    maps.has_numbered_parts,
    maps.nnunet,
    'imagesTr, labelsTr, dataset.json',
  ),
  'pairs': folders.Layout(
    'images and masks',
    maps.has_pairs,
    maps.pairs,
    'images/NAME and labels/NAME or masks/NAME, in NIfTI, MetaImage, NRRD, PNG, TIFF or NPY',
  ),
}
