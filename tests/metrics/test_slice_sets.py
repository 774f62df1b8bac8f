import numpy as np
import pytest

from robustmed.metrics import slice_sets


def test_tvdi_pools_the_pixels_of_all_slices():
  rng = np.random.default_rng(0)
  found, true = rng.integers(0, 3, (2, 5, 8, 8))
  columns, scores = {'DICE': np.zeros(5)}, []
  for k in (1, 2):
    a, b = found == k, true == k
    for name, pixels in (('tp', a & b), ('fp', a & ~b), ('fn', ~a & b)):
      columns[f'_{name}{k}'] = pixels.sum((1, 2))
    scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
  assert slice_sets.tvdi(columns) == pytest.approx(np.mean(scores), rel=1e-9)


def test_empty_classes_and_missing_counts():
  zero = {f'_{kind}1': np.zeros(3) for kind in ('tp', 'fp', 'fn')}
  assert slice_sets.tvdi(zero) == 0
  with pytest.raises(ValueError, match='columns _tp1'):
    slice_sets.tvdi({'DICE': np.ones(3)})


def test_adi_is_the_mean_over_slices_of_the_mean_over_classes():
  # two slices and two classes; the second slice has class 1 alone, missed; a third has nothing
  columns = {'_tp1': [4, 0], '_fp1': [0, 2], '_fn1': [0, 2], '_tp2': [1, 0]}
  columns |= {'_fp2': [1, 0], '_fn2': [1, 0]}
  adi = lambda **absent: slice_sets.adi(columns, **absent)
  assert adi() == pytest.approx((0.75 + 0) / 2)
  assert adi(absent=1.0) == pytest.approx((0.75 + 0.5) / 2)
  assert adi(absent=np.nan) == pytest.approx((0.75 + 0) / 2)
  longer = {name: [*values, 0] for name, values in columns.items()}
  assert slice_sets.adi(longer, absent=np.nan) == pytest.approx((0.75 + 0) / 2)
  assert slice_sets.adi(longer) == pytest.approx(0.25)
  with pytest.raises(ValueError, match='columns _tp1'):
    slice_sets.adi({'DICE': np.ones(3)})
