import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from robustmed import errors
from robustmed.data.files import pictures
from robustmed.data.labelled import formats

RNG = np.random.default_rng(0)
ARRAYS = {
  'grey': RNG.integers(0, 256, (6, 5), dtype=np.uint8),
  'deep': RNG.integers(0, 60_000, (6, 5), dtype=np.uint16),
  'colour': RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8),
}


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.npy', '.npz'])
@pytest.mark.parametrize('kind', ARRAYS)
def test_formats_keep_their_values(tmp_path, kind, suffix):
  array, path = ARRAYS[kind], tmp_path / f'a{suffix}'
  if suffix == '.npy':
    np.save(path, array)
  elif suffix == '.npz':
    np.savez(path, any_name=array)
  else:
    Image.fromarray(array).save(path)
  np.testing.assert_array_equal(pictures.read(path), array)
  first = array if array.ndim == 2 else array[..., 0]
  np.testing.assert_array_equal(pictures.grey(path), first)
  assert pictures.grey(path).dtype == np.float64


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('ends', [(0.0, 1.0), (-1.0, 1.0)])
def test_a_written_png_holds_the_nearest_or_the_given_numbers(tmp_path, channels, ends):
  low, high = ends
  whole = np.arange(30 * channels).reshape(6, 5, channels)
  image = (low + (whole + 0.4) * (high - low) / 255).astype(np.float32)
  image[0, 0] = low - 1  # outside: the end
  shown = lambda numbers: numbers[..., 0] if channels == 1 else numbers
  path, cut = tmp_path / 'a.png', whole.copy()
  cut[0, 0] = 0
  pictures.write_png(path, image, low=low, high=high)
  np.testing.assert_array_equal(pictures.read(path), shown(cut))
  pictures.write_png(path, image, low=low, high=high, whole=whole + 7)
  np.testing.assert_array_equal(pictures.read(path), shown(whole + 7))


def test_palette_masks_give_their_indices(tmp_path):
  index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 6
  picture = Image.frombytes('P', (4, 3), index.tobytes())
  picture.putpalette([value for k in range(6) for value in (40 * k, 255 - 40 * k, 7)])
  picture.save(tmp_path / 'mask.png')
  np.testing.assert_array_equal(pictures.labels(tmp_path / 'mask.png'), index)


@pytest.mark.parametrize(
  ('array', 'message'),
  [
    (np.full((3, 3), np.nan), 'has NaN or infinite'),
    (np.zeros((2, 2, 2, 2)), r'must be one image, not float64 \[2, 2, 2, 2\]'),
    (np.zeros((0, 4)), r'must be one image, not float64 \[0, 4\]'),
    (np.array([['a', 'b']]), 'must be one image'),
    (np.array([[None]]), 'cannot be read'),  # would need unpickling
  ],
)
def test_arrays_that_are_no_image(tmp_path, array, message):
  np.save(tmp_path / 'a.npy', array)
  with pytest.raises(errors.UserError, match=message) as caught:
    pictures.read(tmp_path / 'a.npy')
  assert 'a.npy' in str(caught.value)


def test_one_array_a_file(tmp_path):
  np.savez(tmp_path / 'a.npz', x=np.ones((2, 2)), y=np.ones((2, 2)))
  with pytest.raises(errors.UserError, match=r"must hold one array, not \['x', 'y'\]"):
    pictures.read(tmp_path / 'a.npz')


@pytest.mark.parametrize('suffix', [*pictures.PHOTOS, *pictures.ARRAYS])
def test_damaged_files(tmp_path, suffix):
  path = tmp_path / f'a{suffix}'
  for raw in (b'', b'nonsense' * 20):
    path.write_bytes(raw)
    with pytest.raises(errors.UserError, match=f'a{suffix}: cannot be read'):
      pictures.read(path)


@pytest.mark.parametrize(
  ('array', 'message'),
  [
    (np.array([[0.5, 1]]), 'whole numbers'),
    (np.array([[-1, 1]]), 'whole numbers'),
    (np.zeros((2, 2, 3)), 'must have 2 axes'),
    (np.array([[2**24 + 1, 1]]), 'label 16777217 is not below 16777216'),
  ],
)
def test_label_maps(tmp_path, array, message):
  np.save(tmp_path / 'a.npy', array)
  with pytest.raises(errors.UserError, match=message):
    pictures.labels(tmp_path / 'a.npy')
  np.save(tmp_path / 'b.npy', np.array([[0.0, 205.0]]))
  assert pictures.labels(tmp_path / 'b.npy').tolist() == [[0, 205]]


def test_a_bit_that_flips_in_a_png_is_found(tmp_path):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 2, (24, 20)).astype(np.uint8) * 255
  path = tmp_path / 'mask.png'
  Image.fromarray(array).save(path)
  content, silent = path.read_bytes(), []
  for place in range(len(content)):
    damaged = bytearray(content)
    damaged[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    try:
      found = pictures.read(path)
    except errors.UserError:
      continue
    if not np.array_equal(found, array):
      silent.append(place)
  assert not silent


def _declaring(path, width, height):
  """A PNG that declares this size."""
  content = path.read_bytes()
  head = b'IHDR' + struct.pack('>II', width, height) + content[24:29]
  path.write_bytes(content[:12] + head + struct.pack('>I', zlib.crc32(head)) + content[33:])


def test_more_pixels_than_the_limit_are_refused_and_many_are_read_without_a_word(
  tmp_path, monkeypatch, recwarn
):
  path = tmp_path / 'a.png'
  Image.fromarray(np.ones((9, 7), np.uint8)).save(path)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40)  # the library warns from here on
  assert pictures.read(path).shape == (9, 7)
  monkeypatch.setattr(pictures, 'LARGEST', 62)
  with pytest.raises(errors.UserError, match='declares 1 x 7 x 9 pixels, 63 bytes; a picture may'):
    pictures.read(path)
  monkeypatch.undo()
  for side, text in ((10_000, 'truncated'), (30_000, 'DecompressionBombError')):
    _declaring(path, side, side)
    with pytest.raises(errors.UserError, match=text):
      pictures.read(path)
  assert not recwarn.list


def test_pages_count_together_and_are_of_one_size(tmp_path, monkeypatch):
  pages = [Image.fromarray(np.ones((6, 7), np.uint8)) for _ in range(3)]
  path = tmp_path / 'a.tif'
  pages[0].save(path, save_all=True, append_images=pages[1:])
  assert formats.read(path).array.shape == (3, 6, 7)
  monkeypatch.setattr(pictures, 'LARGEST', 3 * 42 - 1)
  with pytest.raises(errors.UserError, match='declares 3 x 7 x 6 pixels, 126 bytes'):
    formats.read(path)
  pages[0].save(path, save_all=True, append_images=[pages[1].resize((3, 3))])
  with pytest.raises(errors.UserError, match='its pages have different sizes'):
    formats.read(path)


@pytest.mark.parametrize('kind', ['EPS', 'GIF', 'PPM', 'PDF'])
def test_other_formats_are_not_decoded_whatever_the_name(tmp_path, kind):
  path = tmp_path / 'a.png'
  with path.open('wb') as file:
    Image.new('L', (7, 9)).save(file, format=kind)
  with pytest.raises(errors.UserError, match='cannot identify image file'):
    pictures.read(path)
  Image.new('L', (7, 9)).save(path, format='JPEG')  # a common mistake
  assert pictures.read(path).shape == (9, 7)


def test_what_the_library_says_about_metadata_does_not_reach_the_user(tmp_path, recwarn):
  path = tmp_path / 'a.png'
  Image.fromarray(np.ones((9, 7), np.uint8)).save(path)
  content, part = path.read_bytes(), b'acTL' + struct.pack('>II', 10**6, 0)
  packed = struct.pack('>I', 8) + part + struct.pack('>I', zlib.crc32(part))
  path.write_bytes(content[:33] + packed + content[33:])
  assert pictures.read(path).shape == (9, 7) and not recwarn.list
