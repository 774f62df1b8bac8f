"""Matching on the device against the numpy references, and the mAP of its columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.metrics.boxes import average_precision, geometry, matching

K, M, CLASSES = 8, 5, 3


def drawn(rng):
  """Detections near labels, so that many overlap; padded to K and M."""
  corner = rng.integers(0, 20, (M, 2))
  true = np.concatenate([corner, corner + rng.integers(4, 12, (M, 2))], -1).astype(np.float32)
  classes, mask = rng.integers(0, 2, M), np.arange(M) < rng.integers(1, M + 1)
  pick = rng.integers(0, M, K)
  near = true[pick] + rng.uniform(-2, 2, (K, 4))  # no overlap is a threshold exactly
  scores = np.sort(rng.permutation(100)[:K] / 100 + 0.01)[::-1].astype(np.float32)
  kept = np.arange(K) < rng.integers(0, K + 1)
  found = geometry.Detections(
    boxes=np.where(kept[:, None], near, 0).astype(np.float32),
    scores=np.where(kept, scores, 0),
    classes=np.where(kept, classes[pick], 0).astype(np.int32),
    mask=kept,
    source=np.zeros(K, np.int32),
  )
  return found, (true, classes.astype(np.int32), mask)


def as_image(found, labels):
  true, classes, mask = labels
  kept = found.mask
  return average_precision.Image(
    found.boxes[kept], found.scores[kept], found.classes[kept], true[mask], classes[mask]
  )


def sample(number=12, seed=0):
  rng = np.random.default_rng(seed)
  pairs = [drawn(rng) for _ in range(number)]
  stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *pairs)
  return stacked, [as_image(*pair) for pair in pairs]


@pytest.mark.parametrize('name', ['coco', 'yolo'])
def test_columns_give_the_map_of_the_images(name):
  (found, labels), images = sample()
  between = jax.vmap(matching.overlaps)(found, *labels)
  hit = jax.vmap(lambda one: matching.hits(one, matching=name))(between)
  table = matching.columns(found, hit, *labels[1:], num_classes=CLASSES)
  ours = matching.precision({key: np.asarray(value) for key, value in table.items()})
  theirs = average_precision.average_precision(images, num_classes=CLASSES, matching=name)
  np.testing.assert_allclose(ours.by_class, theirs.by_class, atol=1e-12)
  assert ours.mean == pytest.approx(theirs.mean) and np.isnan(ours.by_class[2]).all()
  assert 0 < ours.mean < 1
  with pytest.raises(errors.UserError, match='unknown matching'):
    matching.hits(between[0], matching='luck')


def test_more_than_ten_classes_keep_their_order():
  (found, (true, classes, mask)), images = sample()
  spread = jnp.array([2, 10])
  found, classes = found._replace(classes=spread[found.classes]), spread[classes]
  between = jax.vmap(matching.overlaps)(found, true, classes, mask)
  table = matching.columns(found, jax.vmap(matching.hits)(between), classes, mask, num_classes=12)
  ours = matching.precision({key: np.asarray(value) for key, value in table.items()})
  renamed = lambda one: one._replace(
    classes=np.asarray(spread)[one.classes], true_classes=np.asarray(spread)[one.true_classes]
  )
  images = list(map(renamed, images))
  theirs = average_precision.average_precision(images, num_classes=12)
  np.testing.assert_allclose(ours.by_class, theirs.by_class, atol=1e-12)
  assert 0 < ours.mean < 1


def test_overlaps_of_labels_agree_with_numpy():
  (found, labels), images = sample(seed=1)
  ious = jax.vmap(matching.label_ious)(jax.vmap(matching.overlaps)(found, *labels))
  for ours, mask, image in zip(ious, labels[2], images, strict=True):
    np.testing.assert_allclose(ours[mask], average_precision.label_ious(image), atol=1e-6)
    assert not ours[~mask].any()
