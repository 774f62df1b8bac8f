"""Lumbar disks in sagittal MR: sources, contours, shape models, and their phantom."""
