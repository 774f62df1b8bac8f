"""What an attack could not do, as columns of an evaluation's rows."""

import numpy as np
import pandas as pd


def added(rows: pd.DataFrame, attacked: pd.Series) -> pd.DataFrame:
  """Returns the rows with three columns that are 1 where an attack could not do its work.

  `_not_moved`: it left the image as it was; `_not_finite`: its objective is no number there;
  `_no_gradient`: the gradient of the main objective is 0 at the image that it left. attacked: which
  rows are those of attacks; in others all three are 0.
  """
  found = {
    '_not_moved': rows['_distance'] == 0,
    '_not_finite': ~np.isfinite(rows['_value'].astype(float)),
    '_no_gradient': rows['_zero_grad'] == 1,
  }
  return rows.assign(**{name: (attacked & flag).astype(float) for name, flag in found.items()})
