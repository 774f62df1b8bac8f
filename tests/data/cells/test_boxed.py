import numpy as np
import pytest

from robustmed import errors
from robustmed.data.cells import boxed

SIZE = {'height': 256, 'width': 352, 'long_side': 320}


def test_the_letterbox_of_a_blood_image():
  picture = np.random.default_rng(0).uniform(size=(480, 640, 3)).astype(np.float32)
  found = boxed.letterbox(picture, np.array([[0, 0, 640, 480], [100, 60, 300, 80]]), **SIZE)
  assert found.image.shape == (256, 352, 3) and found.image.dtype == np.float32
  np.testing.assert_allclose(found.boxes, [[16, 8, 336, 248], [66, 38, 166, 48]])
  np.testing.assert_array_equal(found.content, [16, 8, 336, 248])
  border = found.image.copy()
  border[8:248, 16:336] = 114 / 255
  np.testing.assert_allclose(border, 114 / 255, rtol=1e-6)
  inner = found.image[8:248, 16:336]
  # away from its edge, halving weighs the pixels 1 3 3 1 over 8
  kernel = np.array([1, 3, 3, 1]) / 8
  patch = np.einsum('i,j,ijc->c', kernel, kernel, picture[99:103, 199:203])
  np.testing.assert_allclose(inner[50, 100], patch, atol=1e-5)


def test_a_picture_that_fits_is_left_alone():
  picture = np.random.default_rng(1).uniform(size=(20, 30, 3)).astype(np.float32)
  found = boxed.letterbox(picture, np.zeros((0, 4)), height=20, width=30, long_side=30)
  np.testing.assert_array_equal(found.image, picture)
  assert found.boxes.shape == (0, 4)


def test_a_marked_square_stays_inside_its_box():
  for shape, size in (((60, 90), (64, 64, 64)), ((90, 33), (48, 96, 96)), ((10, 20), (40, 70, 60))):
    picture = np.zeros((*shape, 3), np.float32)
    picture[4:8, 10:18] = 1
    height, width, long_side = size
    found = boxed.letterbox(
      picture, np.array([[10, 4, 18, 8]]), height=height, width=width, long_side=long_side
    )
    left, top, right, bottom = found.content
    bright = np.where(found.image[..., 0] > 0.5, 1, 0)
    bright[: int(top)], bright[int(bottom) :] = 0, 0
    bright[:, : int(left)], bright[:, int(right) :] = 0, 0
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(box, found.boxes[0], atol=1.0)


def test_padding():
  one = boxed.letterbox(np.zeros((9, 9, 3)), [[1, 2, 3, 4]], height=16, width=16, long_side=16)
  row = boxed.example(one, np.array([2]), max_boxes=3, index=5, name='x')
  np.testing.assert_array_equal(row['mask'], [True, False, False])
  np.testing.assert_array_equal(row['classes'], [2, 0, 0])
  assert not row['boxes'][1:].any() and row['group'] == row['index'] == 5
  with pytest.raises(errors.UserError, match='x: has 1 boxes; set the data field max_boxes'):
    boxed.example(one, np.array([2]), max_boxes=0, index=5, name='x')


@pytest.mark.parametrize('change', [{'height': 8}, {'max_boxes': 0}, {'long_side': 400}])
def test_bad_sizes(change):
  with pytest.raises(errors.UserError, match=f'data field {next(iter(change))}'):
    boxed.check({**boxed.SIZE_FIELDS, **change})
