"""Mosaics: places of pixels and boxes by hand, colours against the standard library."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.data.cells import boxed, mosaic

SIDE, SHAPE = 16, (12, 18)
CONTENT = np.array([1.0, 2.0, 17.0, 10.0], np.float32)  # 16 x 8 pixels


def example(number):
  image = np.full((*SHAPE, 3), boxed.GREY, np.float32)
  image[2:10, 1:17] = 0.1 + 0.2 * number
  boxes = np.array([[1, 2, 17, 10], [5, 4, 9, 8], [0, 0, 0, 0]], np.float32)
  return {
    'image': image,
    'boxes': boxes,
    'classes': np.array([number, number, 0], np.int32),
    'mask': np.array([True, True, False]),
    'content': CONTENT,
    'index': number,
    'group': number,
  }


class Split(list):
  pass


def batch(*numbers):
  split = Split(example(n) for n in range(4))
  chosen = mosaic.sampling(split)
  found = [chosen.crop(split[n], [(n + 1) % 4, (n + 2) % 4, (n + 3) % 4]) for n in numbers]
  return {
    'image': np.stack([one['image'] for one in found]),
    'target': {
      name: np.stack([one[name] for one in found])
      for name in found[0]
      if name not in ('image', 'index', 'group')
    },
    'index': np.array(numbers),
  }


def plain(**more):
  return mosaic.make(side=SIDE, hsv=(0, 0, 0), flip=0, **{'scale': 0, 'translate': 0, **more})


def test_pictures_meet_at_a_point_and_boxes_go_with_them():
  keys = jax.random.split(jax.random.key(3), 2)
  made = jax.jit(plain())(keys, batch(0, 2))
  image, target = np.asarray(made['image']), jax.tree.map(np.asarray, made['target'])
  assert image.shape == (2, SIDE, SIDE, 3) and set(target) == {
    'boxes',
    'classes',
    'mask',
    'content',
  }
  np.testing.assert_array_equal(target['classes'][0], [0, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 0])
  draws = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (9,)))(keys))
  for b, first in enumerate((0, 2)):
    # without scale the result is the middle half of the canvas
    centre = (0.5 + draws[b, :2]) * SIDE - SIDE / 2
    for place, number in enumerate((first + k) % 4 for k in range(4)):
      left, top = centre - [16, 8] * np.array([[1, 1], [0, 1], [1, 0], [0, 0]][place])
      whole = np.clip([left, top, left + 16, top + 8], 0, SIDE)
      found = target['boxes'][b, 3 * place]
      np.testing.assert_allclose(found, whole, atol=1e-4)
      area = np.prod(whole[2:] - whole[:2])
      kept = min(whole[2:] - whole[:2]) > 2 and area > 0.1 * 16 * 8
      assert target['mask'][b, 3 * place] == kept
      assert not target['mask'][b, 3 * place + 2]
      inner = image[
        b,
        int(np.ceil(whole[1])) : int(whole[3]),
        int(np.ceil(whole[0])) : int(whole[2]),
      ]
      np.testing.assert_allclose(inner, 0.1 + 0.2 * number, atol=1e-5)
  outside = np.isclose(image, boxed.GREY, atol=1e-6).all(-1).any((1, 2))
  assert outside.any()


def test_the_same_draw_gives_the_same_mosaic_in_any_batch():
  make = jax.jit(mosaic.make(side=SIDE))
  keys = jax.random.split(jax.random.key(0), 2)
  both = make(keys, batch(0, 1))
  alone = make(keys[1:], batch(1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[1:], b, atol=1e-5), both['target'], alone['target']
  )
  np.testing.assert_allclose(both['image'][1:], alone['image'], atol=1e-5)
  assert np.asarray(both['image']).min() >= 0 and np.asarray(both['image']).max() <= 1


def test_scaling_and_mirroring_keep_boxes_on_their_pictures():
  make = jax.jit(plain(scale=0.5, translate=0.1))
  mirrored = jax.jit(mosaic.make(side=SIDE, hsv=(0, 0, 0), flip=1))
  keys = jax.random.split(jax.random.key(5), 4)
  made, turned = make(keys, batch(0, 1, 2, 3)), mirrored(keys, batch(0, 1, 2, 3))
  np.testing.assert_allclose(turned['image'], made['image'][:, :, ::-1], atol=1e-6)
  boxes = np.asarray(made['target']['boxes'])
  flipped = np.asarray(turned['target']['boxes'])
  np.testing.assert_allclose(flipped[..., 0], SIDE - boxes[..., 2], atol=1e-5)
  image, mask = np.asarray(made['image']), np.asarray(made['target']['mask'])
  seen = 0
  for b in range(4):
    for k in range(4):
      if mask[b, 3 * k]:  # the box around a whole picture holds its shade and nothing else
        x1, y1, x2, y2 = boxes[b, 3 * k]
        inner = image[b, int(np.ceil(y1)) : int(y2), int(np.ceil(x1)) : int(x2)]
        np.testing.assert_allclose(inner, 0.1 + 0.2 * ((b + k) % 4), atol=1e-4)
        seen += 1
  assert seen >= 4


def test_partners_follow_the_draw_alone():
  choose = mosaic.sampling(Split()).choose
  first = choose(17, seed=3, batch_size=8, size=10)
  assert first == choose(17, seed=3, batch_size=4, size=10)
  assert len(first[1]) == 3 and all(0 <= n < 10 for n in first[1])
  assert len({tuple(choose(d, seed=3, batch_size=4, size=10)[1]) for d in range(20)}) > 10


def test_colours_agree_with_the_standard_library():
  rng = np.random.default_rng(0)
  image = rng.uniform(0, 1, (1, 4, 5, 3)).astype(np.float32)
  image[0, 0, 0] = 0.4  # grey has no hue
  image[0, 0, 1] = 0
  gains = np.array([[1.01, 0.6, 1.3]], np.float32)
  want = np.zeros_like(image)
  for at in np.ndindex(4, 5):
    h, s, v = colorsys.rgb_to_hsv(*map(float, image[0][at]))
    want[0][at] = colorsys.hsv_to_rgb(h * 1.01 % 1, min(s * 0.6, 1), min(v * 1.3, 1))
  found = mosaic.recolour(jnp.asarray(image), jnp.asarray(gains))
  np.testing.assert_allclose(found, want, atol=1e-5)
  same = mosaic.recolour(jnp.asarray(image), jnp.ones((1, 3)))
  assert np.asarray(same) == pytest.approx(image, abs=1e-6)
