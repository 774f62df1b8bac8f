"""Volumes of the Medical Segmentation Decathlon, and phantoms of three of its tasks."""
