import numpy as np
import pytest
import SimpleITK as sitk

from robustmed import data, errors
from robustmed.data.chest import lidc_xml, luna16_files, nodule_scans, phantom
from support import chests

GRID = lidc_xml.Grid((6, 20, 24), (2.0, 0.5, 0.5), np.array([-10.0, -20.0, -30.0]), np.eye(3))


def roi(z, points, inclusion='TRUE'):
  edges = ''.join(f'<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>' for x, y in points)
  return f'<roi><imageZposition>{z}</imageZposition><inclusion>{inclusion}</inclusion>{edges}</roi>'


def nodule(*rois, name='1', texture=5, calcification=6):
  ratings = f'<calcification>{calcification}</calcification><texture>{texture}</texture>'
  return (
    f'<unblindedReadNodule><noduleID>{name}</noduleID><characteristics>{ratings}'
    f'</characteristics>{"".join(rois)}</unblindedReadNodule>'
  )


def message(uid, *sessions, root='LidcReadMessage'):
  inner = ''.join(f'<readingSession>{"".join(session)}</readingSession>' for session in sessions)
  return (
    f'<?xml version="1.0"?><{root} xmlns="http://www.nih.gov"><ResponseHeader>'
    f'<SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>{inner}</{root}>'
  )


def rim(mask):
  """The first pixels outside a filled disk [h, w] as a closed chain of (x, y), by angle."""
  inside = np.argwhere(mask)
  middle = inside.mean(axis=0)
  grown = np.pad(mask, 1)
  near = sum(np.roll(grown, step, axis) for step in (-1, 1) for axis in (0, 1))[1:-1, 1:-1] > 0
  edge = np.argwhere(near & ~mask)
  order = np.argsort(np.arctan2(*(edge - middle).T))
  return [(x, y) for y, x in edge[order]]


def square(low, high):
  return [(low, low), (high, low), (high, high), (low, high)]


def read(tmp_path, text):
  path = tmp_path / 'one.xml'
  path.write_text(text)
  return lidc_xml.parse(path)


def masks(readings):
  found = []
  for one in lidc_xml.nodules_of(readings, GRID):
    whole = np.zeros(GRID.shape, bool)
    box = tuple(slice(a, a + n) for a, n in zip(one.region.low, one.region.mask.shape))
    whole[box] = one.region.mask
    found.append((whole, one.texture, one.calcification))
  return found


def test_a_mask_is_what_lies_within_the_contours_of_its_slices(tmp_path):
  ring = nodule(roi(-26.0, square(3, 9)), roi(-26.0, square(5, 8), 'FALSE'), roi(-24, square(4, 7)))
  uid, readings = read(tmp_path, message('1.2.3', [ring]))
  ((mask, texture, calcification),) = masks(readings)
  expected = np.zeros(GRID.shape, bool)
  expected[2, 4:9, 4:9] = True
  expected[2, 6:8, 6:8] = False
  expected[3, 5:7, 5:7] = True
  np.testing.assert_array_equal(mask, expected)
  assert (uid, texture, calcification) == ('1.2.3', 5, 6)


def test_half_of_a_nodules_readers_make_its_mask(tmp_path):
  ratings = [(1, 6), (2, 6), (5, 3), (5, 4)]
  sizes = [(2, 9), (2, 9), (3, 8), (4, 7)]
  sessions = [
    [nodule(roi(-28, square(*size)), texture=texture, calcification=calcification)]
    for size, (texture, calcification) in zip(sizes, ratings)
  ]
  sessions[0].append(nodule(roi(-28, square(14, 18)), name='far'))
  _, readings = read(tmp_path, message('1', *sessions))
  (near, *rated), (far, *alone) = masks(readings)
  assert near[1, 3:9, 3:9].all() and near.sum() == 36  # two of four
  assert rated == [3.5, 5.0]
  assert far[1, 15:18, 15:18].all() and far.sum() == 9 and alone == [5, 6]
  again, _ = masks(readings[::-1])
  np.testing.assert_array_equal(again[0], near)
  ((third, *_),) = masks([readings[0], *readings[3:]])
  assert third.sum() == 16  # two of three


def test_more_than_four_readers_are_more_than_one_nodule(tmp_path):
  left, right = roi(-28, square(2, 6)), roi(-28, square(8, 12))  # 1 mm between, a slice is 2 mm
  _, readings = read(tmp_path, message('1', *[[nodule(left), nodule(right)]] * 3))
  found = masks(readings)
  assert [mask.sum() for mask, *_ in found] == [9, 9]


def test_single_points_and_radiographs_have_no_mask(tmp_path):
  small = nodule(roi(-28, [(4, 4)]))
  assert read(tmp_path, message('1', [small])) == ('1', ())
  assert read(tmp_path, message('1', [small], root='IdriReadMessage')) is None


def test_ratings_may_be_missing(tmp_path):
  bare = nodule(roi(-28, square(2, 6))).replace('<texture>5</texture>', '')
  _, readings = read(tmp_path, message('1', [bare]))
  ((_, texture, calcification),) = masks(readings)
  assert texture is None and calcification == 6


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('<LidcReadMessage>', 'cannot be read as XML'),
    ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', 'refused, it declares'),
    ('<LidcReadMessage/>', 'names no SeriesInstanceUid'),
    (message('1', [nodule(roi('x', square(2, 5)))]), "imageZposition is 'x', not a number"),
    (message('1', [nodule(roi(1, [(1, 'nan')]))]), "yCoord is 'nan', not a number"),
    (message('1', [nodule(roi(1, square(2, 5), 'maybe'))]), "inclusion is 'MAYBE'"),
    (message('1', [nodule(roi(1, square(2, 5)), texture=9)]), 'texture is 9, not in 1 ... 5'),
  ],
)
def test_damaged_files_are_one_line(tmp_path, text, match):
  with pytest.raises(errors.UserError, match=match) as found:
    read(tmp_path, text)
  assert '\n' not in str(found.value) and str(tmp_path / 'one.xml') in str(found.value)


@pytest.mark.parametrize('contour', [roi(50, square(2, 5)), roi(-28, square(2, 40))])
def test_contours_of_another_scan_are_refused(tmp_path, contour):
  _, readings = read(tmp_path, message('1', [nodule(contour)]))
  with pytest.raises(errors.UserError, match=r'one\.xml: session 1, .*outside the scan'):
    lidc_xml.nodules_of(readings, GRID)


# The command --------------------------------------------------------------------------------------

KINDS = {'ground_glass': (1, 6), 'part_solid': (3, 6), 'solid': (5, 6), 'calcified': (5, 3)}


def drawn(scan):
  """The file of a scan whose four readers have drawn around its very masks."""
  found = []
  for row, kind in enumerate(scan.nodules['kind']):
    mask, (texture, calcification) = scan.masks == row + 1, KINDS[kind]
    rois = [
      roi(scan.origin[2] + place * scan.spacing[0], rim(mask[place]))
      for place in np.flatnonzero(mask.any((1, 2)))
    ]
    found.append(nodule(*rois, texture=texture, calcification=calcification))
  return message(scan.uid, *[found] * 4)


@pytest.fixture
def folder(tmp_path):
  """(LUNA16 without masks, the XML files, the scans)."""
  fields = {**chests.TWIN, 'voxel': 1.5}
  scans = phantom.scans(data.fields_of(fields))
  read_all = [scans.read(uid) for uids in scans.splits.values() for uid in uids]
  luna = chests.write(tmp_path / 'luna', read_all, subsets=(0, 3, 8, 9), masks=False)
  xml = tmp_path / 'xml' / '157'
  xml.mkdir(parents=True)
  for number, scan in enumerate(read_all):
    (xml / f'{number}.xml').write_text(drawn(scan))
  (xml / 'other.xml').write_text(message('of another set', []))
  return luna, xml.parent, read_all


def test_the_command_writes_what_luna16_reads(folder, capsys):
  luna, xml, scans = folder
  assert lidc_xml.main(['--xml', str(xml), '--luna', str(luna)]) == 0
  told = capsys.readouterr().err
  count = sum(len(scan.nodules) for scan in scans)
  assert f'masks of {count} of the {count} annotated nodules of 4 scans' in told
  found = luna16_files.find(str(luna))
  known = luna16_files.annotations(found)
  for scan in scans:
    again = luna16_files.read(found, known, scan.uid)
    assert again.nodules['kind'].tolist() == scan.nodules['kind'].tolist()
    both = np.sum((again.masks > 0) & (scan.masks > 0))
    assert 2 * both / (np.sum(again.masks > 0) + np.sum(scan.masks > 0)) > 0.9
    for row in range(len(scan.nodules)):
      patch = nodule_scans.mask_patch(again, row, side=16, spacing=1.5)
      assert patch.any()


def test_a_mirrored_scan_keeps_its_pixels(folder):
  luna, xml, scans = folder
  path = next(luna.glob('subset*/phantom.00000.mhd'))
  image = sitk.ReadImage(str(path))
  image.SetDirection([-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0])
  sitk.WriteImage(image, str(path))
  found = luna16_files.find(str(luna))
  grid = lidc_xml.read_grid(found.images[scans[0].uid])
  _, readings = lidc_xml.parse(xml / '157' / '0.xml')
  mask = np.zeros(grid.shape, bool)
  for one in lidc_xml.nodules_of(readings, grid):
    box = tuple(slice(a, a + n) for a, n in zip(one.region.low, one.region.mask.shape))
    mask[box] |= one.region.mask
  both = np.sum(mask & (scans[0].masks > 0))
  assert 2 * both / (mask.sum() + np.sum(scans[0].masks > 0)) > 0.9


def test_mistakes_of_the_command_end_with_code_2(folder, tmp_path, capsys):
  luna, xml, scans = folder

  def fails(message, **words):
    words = {'xml': xml, 'luna': luna, **words}
    assert (
      lidc_xml.main([w for name, value in words.items() for w in (f'--{name}', str(value))]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line

  fails(r'has no *.xml', xml=tmp_path / 'nowhere')
  fails('no folder', luna=tmp_path / 'nowhere')
  (xml / '158.xml').write_text((xml / '157' / '0.xml').read_text())
  fails('158.xml: ')
  (xml / '158.xml').write_text('<LidcReadMessage>')
  fails('cannot be read as XML')
  assert not (luna / 'nodule_masks').exists()
  empty = tmp_path / 'empty'
  empty.mkdir()
  (empty / '1.xml').write_text(message('other', []))
  fails('none of its 1 files is of a scan', xml=empty)
