"""A folder of labelled images of any organ: recognises its layout, reads its files, splits it."""
