"""The printed tables of Chen et al. 2019 as frames."""

import pathlib

import pandas as pd

FOLDER = pathlib.Path(__file__).parent


def table() -> pd.DataFrame:
  """Table 1 of Chen et al. 2019: columns image, xi, Dice of the organs in per cent, p."""
  table = pd.read_csv(FOLDER / 'table1.csv')
  table = table.rename(columns={'input_image': 'image', 'perceptibility_p': 'p'})
  return table.rename(columns=lambda name: name.removeprefix('dice_').removesuffix('_pct'))
