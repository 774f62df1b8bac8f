"""What attacks leave on disk.

steps.py     an attack in pieces, its state a file, for volumes whose every step takes minutes
lattice.py   attacked images of the whole numbers that a file can hold, chosen by a metric
marks.py     what tells the settings of one attack from those of another
"""
