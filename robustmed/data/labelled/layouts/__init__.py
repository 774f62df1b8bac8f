"""Layouts of folders by name, in the order in which they are tried."""

from robustmed.data.labelled import folders
from robustmed.data.labelled.layouts import boxes, maps, tables

LAYOUTS = {
  'nnunet': folders.Layout(
    'nnU-Net raw or Medical Segmentation Decathlon',
    maps.has_numbered_parts,
    maps.nnunet,
    'imagesTr, labelsTr, dataset.json',
  ),
  'voc': folders.Layout(
    'Pascal VOC', boxes.has_voc, boxes.voc, 'Annotations/NAME.xml, JPEGImages/NAME.jpg'
  ),
  'coco': folders.Layout('COCO', boxes.has_coco, boxes.coco, 'annotations/*.json and images'),
  'yolo': folders.Layout(
    'YOLO', boxes.has_yolo, boxes.yolo, 'images/NAME.jpg, labels/NAME.txt, classes.txt'
  ),
  'pairs': folders.Layout(
    'images and masks',
    maps.has_pairs,
    maps.pairs,
    'images/NAME and labels/NAME or masks/NAME, in NIfTI, MetaImage, NRRD, PNG, TIFF or NPY',
  ),
  'landmarks': folders.Layout(
    'landmarks', tables.has_landmarks, tables.landmarks, 'a CSV: image, A_x, A_y, B_x, ...'
  ),
  'classes': folders.Layout('classes', tables.has_classes, tables.classes, 'a CSV: image, class'),
  'class_folders': folders.Layout(
    'class folders', tables.has_class_folders, tables.class_folders, 'CLASS/NAME.png'
  ),
}
