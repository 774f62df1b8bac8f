"""Distances of label maps, by hand and against distance transforms of whole volumes."""

import types

import numpy as np
import pytest
import scipy.ndimage

from robustmed.own_data import surfaces

NAMES = ('organ', 'lesion')


def study(shape, spacing, *, slices=1, axis=0, axes=None, known=True, regions=None):
  """What is known of two equal cases."""
  axes = axes or len(shape)
  inner = tuple(n for k, n in enumerate(shape) if axes == len(shape) or k != axis)
  apart = tuple(s for k, s in enumerate(spacing) if axes == len(shape) or k != axis)
  grid = types.SimpleNamespace(shape=inner, spacing=apart, slices=slices)
  survey = types.SimpleNamespace(spacing=list(spacing) if known else None)
  return types.SimpleNamespace(
    grids=(grid, grid),
    surveys=(survey, survey),
    regions=regions or {},
    classes=('background', *NAMES),
    spatial=len(shape),
    axes=axes,
    axis=axis,
  )


def measure(found, how, predicted, labels, *, case, place=None, **more):
  logits = np.eye(3, dtype=np.float32)[predicted]
  target = {'labels': labels, 'case': np.array(case), **more}
  target['slice'] = np.zeros(len(case), int) if place is None else np.array(place)
  host = surfaces.host_metrics(found, NAMES, how)
  kept = host.kept({'head0': logits}, {'target': target})
  return host.columns({name: np.asarray(value) for name, value in kept.items()})


def distances(ours, theirs, spacing):
  """The surface distances of one way, by a distance transform of the whole image."""
  edge = lambda mask: mask & ~scipy.ndimage.binary_erosion(mask)
  return scipy.ndimage.distance_transform_edt(~edge(theirs), sampling=spacing)[edge(ours)]


def reference(ours, theirs, spacing, tolerance):
  there, back = distances(ours, theirs, spacing), distances(theirs, ours, spacing)
  near = (there <= tolerance).sum() + (back <= tolerance).sum()
  hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
  return near / (len(there) + len(back)), hd95


def test_a_square_that_moved():
  labels = np.zeros((2, 16, 16), np.int16)
  labels[0, 4:10, 4:10], predicted = 1, np.zeros((2, 16, 16), int)
  predicted[0, 7:13, 4:10] = 1
  found = study((16, 16), (2.0, 1.0))
  how = surfaces.plan(found, [0, 1])
  assert how == (2.0, 'mm', True) and 'tolerance of NSD 2 mm' in how.words
  made = measure(found, how, predicted, labels, case=[0, 1])
  # Moved by 3 rows of 2 mm. Of 20 border pixels 12 are within 2 mm: the row that lies inside the
  # other square (6), both sides in the rows that both have (4) and one row on (2).
  np.testing.assert_allclose(made['HD95_organ'], [6.0, np.nan])
  nsd, hd95 = reference(predicted[0] == 1, labels[0] == 1, (2.0, 1.0), 2.0)
  np.testing.assert_allclose(made['NSD_organ'], [nsd, np.nan])
  assert hd95 == 6.0 and nsd == pytest.approx(12 / 20)
  np.testing.assert_allclose(made['NSD'], [nsd, 1.0])  # nothing is there, nothing is found
  np.testing.assert_allclose(made['HD95'], [6.0, np.nan])
  assert np.isnan(made['NSD_lesion']).all()


def test_what_is_found_where_nothing_is():
  labels, predicted = np.zeros((2, 8, 8), np.int16), np.zeros((2, 8, 8), int)
  labels[0, 2:5, 2:5] = predicted[0, 2:5, 2:5] = 1
  predicted[:, 6, 6] = 2
  found = study((8, 8), (1.0, 1.0), known=False)
  how = surfaces.plan(found, [0, 1], tolerance=0.5)
  assert how == (0.5, 'pixels', True)
  made = measure(found, how, predicted, labels, case=[0, 1])
  np.testing.assert_allclose(made['NSD_lesion'], [0, 0])
  np.testing.assert_allclose(made['HD95_lesion'], np.full(2, np.hypot(8, 8)))
  # classes that the labels show: the mean does not change with what is found elsewhere
  np.testing.assert_allclose(made['NSD'], [1, 0])
  np.testing.assert_allclose(made['HD95'], [0, np.nan])


@pytest.mark.parametrize('axis', [0, 2])
def test_all_slices_of_a_case_are_put_together(axis):
  rng = np.random.default_rng(axis)
  shape, spacing = (6, 9, 7), (3.0, 1.0, 1.5)
  smooth = lambda seed: scipy.ndimage.gaussian_filter(
    np.random.default_rng(seed).normal(size=shape), 1.5
  )
  volumes = [[(smooth(10 * case + k) > 0.02).astype(int) for k in (0, 1)] for case in (0, 1)]
  depth = shape[axis]
  found = study(shape, spacing, slices=depth, axis=axis, axes=2)
  cases = [0] * depth + [1] * depth
  how = surfaces.plan(found, cases)
  assert how.whole and not surfaces.plan(found, cases[:-1]).whole
  predicted, labels = (
    np.concatenate([np.moveaxis(volumes[case][k], axis, 0) for case in (0, 1)]) for k in (0, 1)
  )
  order = rng.permutation(2 * depth)  # rows come in any order
  made = measure(
    found,
    how,
    predicted[order],
    labels[order],
    case=np.array(cases)[order],
    place=np.tile(np.arange(depth), 2)[order],
  )
  for case in (0, 1):
    here = np.array(cases)[order] == case
    nsd, hd95 = reference(*(v == 1 for v in volumes[case]), spacing, 2.0)
    np.testing.assert_allclose(made['NSD_organ'][here], nsd)
    np.testing.assert_allclose(made['HD95_organ'][here], hd95)


def test_regions_and_pixels_that_do_not_count():
  labels, predicted = np.zeros((1, 9, 9), np.int16), np.zeros((1, 9, 9), int)
  labels[0, 2:6, 2:6], labels[0, 3, 3] = 1, 2
  predicted[0, 2:6, 2:6] = 1
  predicted[0, 0, 8] = 1
  counted = np.ones((1, 9, 9), bool)
  counted[0, 0, 8] = False
  found = study((9, 9), (1.0, 1.0), regions={'organ': (1, 2), 'lesion': (2,)})
  how = surfaces.plan(found, [0])
  made = measure(found, how, predicted, labels, case=[0], counted=counted)
  np.testing.assert_allclose(made['HD95_organ'], [0])
  np.testing.assert_allclose(made['NSD_lesion'], [0])
  np.testing.assert_allclose(made['NSD'], [0.5])
