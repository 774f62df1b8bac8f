"""Landmarks and objects as parts of AMAT: networks, levels, readings, files and pictures."""

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustmed import errors
from robustmed.data.cells import bccd
from robustmed.data.cephalograms import ceph, points
from robustmed.evaluation import examples
from robustmed.papers.amat import experiment, landmarks, pictures, published, report
from robustmed.papers.amat import objects as amat_objects
from robustmed.process import tool
from robustmed.runs import commandline, costs, stages
from support import cells, skulls


def config(name, preset='smoke'):
  return commandline.load_config(f'configs/amat_{name}.py:{preset}')


@pytest.mark.parametrize(
  ('name', 'part', 'parameters', 'shape'),
  [
    ('ceph', landmarks, 24_308_153, (200, 160, 3)),
    ('bccd', amat_objects, 7_027_720, (256, 352, 3)),
  ],
)
def test_paper_presets_are_the_papers(name, part, parameters, shape):
  chosen = config(name, 'paper')
  task = part.make_task(chosen)
  assert costs.parameter_count(task) == parameters and task.image_shape == shape
  pgd = chosen.evaluate.attacks.pgd
  assert (pgd.num_steps, pgd.relative_step, pgd.score_last) == (100, 0.05, False)
  attack = chosen.arms.amat.defense.attack
  assert (attack.num_steps, attack.relative_step, attack.norm) == (20, 0.25, 'l2')
  if name == 'bccd':
    assert chosen.train.optimisers.main.lr == pytest.approx(0.32)
    assert chosen.train.optimisers.main.warmup_steps == 1000
    assert chosen.arms.amat.defense.floor == 2.5 and chosen.arms.amat.defense.max_margin == 15
  else:
    assert tuple(chosen.evaluate.levels) == (0.5, 1, 1.5, 2, 2.5, 3)
    assert list(chosen.arms) == ['std', 'std_bce', 'sat_1', 'sat_2', 'sat_3', 'sat_5', 'amat']


@pytest.mark.parametrize(('name', 'part'), [('ceph', landmarks), ('bccd', amat_objects)])
def test_real_presets_go_on_from_std_and_keep_the_noise_per_element(name, part):
  paper, real = config(name, 'paper'), config(name, 'real')
  share = np.prod([real.data.height, real.data.width])
  share = share / np.prod([paper.data.height, paper.data.width])
  assert real.noise.scale == pytest.approx(np.sqrt(share), abs=1e-4)
  exp = experiment.build(real)
  assert exp.arms['amat'].init_from == exp.arms['amat'].needs[0] == 'std'
  assert exp.arms['std'].init_from == '' and exp.arms['std'].prepared.variables is None
  assert exp.arms['amat'].train['steps'] < exp.arms['std'].train['steps']
  said = [note for note in report.notes(real, part) if 'start from' in note]
  assert len(said) == 1 and said[0].startswith('SAT') and 'AMAT' in said[0]


def test_readings_reach_the_defenses():
  chosen = config('bccd')
  with chosen.unlocked():
    chosen.reading.update({'attack_bn': 'update', 'deviations': 1.0})
    chosen.model.init = 'yolov5s.pt'
  arms = experiment.read(chosen, amat_objects).arms
  assert arms.amat.defense.attack_bn == arms.sat_5.defense.attack_bn == 'update'
  assert arms.std.defense.coupled and arms.sat_5.defense.coupled
  assert 'coupled' not in arms.amat.defense and arms.amat.thresholds.k == 1.0
  assert tuple(arms.amat.defense.terms) == ('box', 'obj', 'cls')
  with pytest.raises(errors.UserError, match=r'yolov5s\.pt: pretrained weights are a'):
    experiment.build(chosen)
  with chosen.unlocked():
    chosen.model.init = '/nowhere/yolov5s.npz'
  with pytest.raises(errors.UserError, match=r'yolov5s\.npz: there is no such file'):
    experiment.build(chosen)
  arms = experiment.read(config('ceph'), landmarks).arms
  assert 'coupled' not in arms.std.defense and arms.std_bce.defense.objective == 'bce'
  chosen = config('ceph')
  with chosen.unlocked():
    chosen.augment.name = 'mosaic'
  with pytest.raises(errors.UserError, match='augmentation of cephalograms'):
    experiment.build(chosen)


def test_readings_of_the_code_and_of_the_text():
  ceph, cells = config('ceph', 'authors').reading, config('bccd', 'smoke,authors').reading
  for reading in (ceph, cells):
    assert (reading.criterion, reading.test, reading.when) == ('loss', 'any', 'epoch_end')
    assert (reading.cap, reading.estimator, reading.attack_bn) == (True, 'max', 'update')
  assert ceph.legacy_targets and not ceph.refine and cells.refine and cells.matching == 'yolo'
  for name, part in (('ceph', landmarks), ('bccd', amat_objects)):
    chosen = config(name, 'smoke,text')
    assert chosen.arms.amat.defense.get('floor', 0.0) == 0
    found = experiment.read(chosen, part).arms.amat.defense
    assert (found.criterion, found.tested, found.when) == ('loss', 'final', 'immediate')
    assert found.refine and found.max_margin is None and not found.strata
    experiment.build(config(name, 'smoke,authors'))


def test_published_radial_errors():
  table = published.landmarks(attack='pgd', scale=0.5)
  assert table.groupby('arm')['mean'].mean().round(3).to_dict() == {
    'std': 19.004,
    'std_bce': 24.656,
  }
  found = table[(table['arm'] == 'std_bce') & (table['eps'] == 0.75)]
  assert found['mean'].item() == 27.37 and set(table['attack']) == {'none', 'pgd'}


def landmark_example():
  rng = np.random.default_rng(0)
  points = rng.integers(4, 28, (2, 19, 2)).astype(np.float32)
  maps = {
    'heat': rng.normal(size=(2, 40, 32, 19)).astype(np.float32),
    'offset_x': np.zeros((2, 40, 32, 19), np.float32),
    'offset_y': np.zeros((2, 40, 32, 19), np.float32),
  }
  image = rng.uniform(-1, 1, (2, 40, 32, 3)).astype(np.float32)
  target = {'landmarks': points, 'scale': np.full((2, 2), 6.0, np.float32)}
  example = {'image': image, 'index': np.array([3, 8]), 'target': target}
  return examples.Example(example, image, maps, maps)


def cell_example():
  rng = np.random.default_rng(0)
  drawn = lambda s: rng.normal(1, 1, (2, 64 // s, 64 // s, 3, 8)).astype(np.float32)
  loud = {f'p{s}': drawn(s) for s in (8, 16, 32)}
  silent = jax.tree.map(lambda leaf: leaf - 20, loud)
  target = {
    'boxes': np.array([[[4, 4, 30, 34], [0, 0, 0, 0]]] * 2, np.float32),
    'classes': np.array([[2, 0]] * 2),
    'mask': np.array([[True, False]] * 2),
  }
  image = rng.uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
  example = {'image': image, 'index': np.array([3, 8]), 'target': target}
  return examples.Example(example, image, loud, silent)


def stored(found, part):
  return {
    'arm': np.array(['std', 'amat']),
    'eps': np.array([1.0, 1.0]),
    'index': found.example['index'],
    'image': found.example['image'],
    'adversarial': found.image,
    **part.pictures(found),
  }


def test_landmarks_are_drawn_and_written(tmp_path):
  found = landmark_example()
  kept = stored(found, landmarks)
  assert kept['points_adv'].shape == kept['points_true'].shape == (2, 19, 2)
  assert pictures.landmarks(kept)[:4] == b'\x89PNG'
  one = jax.tree.map(lambda leaf: leaf[0], found.example)
  landmarks.write_example(tmp_path, found.image[0], one)
  pixels = np.asarray(Image.open(tmp_path / '000003.png'))
  np.testing.assert_allclose(pixels / 127.5 - 1, found.image[0], atol=0.005)
  lines = np.loadtxt(tmp_path / '000003.txt', delimiter=',')
  np.testing.assert_allclose(lines, one['target']['landmarks'] * 60, atol=0.06)


def test_an_attacked_radiograph_is_read_back_as_it_was(tmp_path):
  """Also through the reader of the data, though its three channels differ."""
  made, rng = landmarks.lattice_of({}), np.random.default_rng(0)
  whole = rng.integers(100, 110, (200, 160, 3))
  target = {'landmarks': np.ones((19, 2)), 'scale': np.ones(2)}
  told = {'index': 3, 'target': target}
  landmarks.write_example(tmp_path, made.image(whole), told, whole=whole)
  picture = ceph.read_image(tmp_path / '000003.png')
  fields = {'height': 200, 'width': 160}
  back = points.example(picture, target['landmarks'], fields, index=3, name='a')
  np.testing.assert_allclose(back['image'], made.image(whole), atol=1e-6)
  half = points.example(
    picture, target['landmarks'], {'height': 100, 'width': 80}, index=3, name=''
  )
  wanted = made.image(whole).reshape(100, 2, 80, 2, 3).mean((1, 3))
  assert np.abs(half['image'] - wanted).mean() < 0.02
  Image.open(tmp_path / '000003.png').convert('L').convert('RGB').save(tmp_path / 'grey.png')
  assert ceph.read_image(tmp_path / 'grey.png').ndim == 2


def test_boxes_are_drawn_and_written(tmp_path):
  found = cell_example()
  kept = stored(found, amat_objects)
  assert np.isnan(kept['boxes_adv']).all() and (kept['classes_adv'] == -1).all()
  assert np.isfinite(kept['boxes_clean'][0, 0]).all() and kept['classes_true'][0].tolist() == [
    2,
    -1,
  ]
  assert pictures.boxes(kept, classes=('a', 'b', 'c'))[:4] == b'\x89PNG'
  one = jax.tree.map(lambda leaf: leaf[0], found.example)
  amat_objects.write_example(tmp_path, found.image[0], one)
  read = bccd.parse(tmp_path / '000003.xml')
  assert read.size == (64, 64) and read.classes.tolist() == [bccd.CLASSES.index('WBC')]
  np.testing.assert_array_equal(read.boxes, [[4, 4, 30, 34]])
  assert np.asarray(Image.open(tmp_path / '000003.png')).shape == (64, 64, 3)


def test_precision_of_every_cell():
  base = {'arm': 'std', 'seed': 0, '_labels0': 1.0, '_labels1': 0.0, '_labels2': 0.0}
  lines = []
  for attack, eps, hit in (('none', 0.0, 1023), ('pgd', 1.0, 7), ('pgd', 2.0, 0)):
    for index in range(2):
      match = {'_score000': 0.9, '_match000': float(hit), '_score001': 0.0, '_match001': -1.0}
      lines.append({**base, 'attack': attack, 'eps': eps, 'index': index, 'IOU': 0.5, **match})
  table = amat_objects.precisions(pd.DataFrame(lines)).set_index('eps')
  assert table['mAP@0.5'].round(6).to_dict() == {0.0: 1.0, 1.0: 1.0, 2.0: 0.0}
  assert table['mAP@0.5:0.95'].round(6).to_dict() == {0.0: 1.0, 1.0: 0.3, 2.0: 0.0}
  assert table['Platelets'].round(6).to_list() == [1.0, 0.3, 0.0] and table['RBC'].isna().all()


def test_average_ious_weigh_labels_not_images():
  rows = pd.DataFrame(
    {
      'arm': ['std'] * 4 + ['amat'] * 2,
      'eps': [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
      'IOU': [0.8, 0.2, 0.4, 0.0, 0.5, np.nan],  # the last image has no labels
      'IOU_found': [0.8, 0.2, 0.4, np.nan, 0.5, np.nan],
      '_labels0': [1.0, 2.0, 1.0, 2.0, 1.0, 0.0],
      '_labels1': [0.0, 1.0, 0.0, 1.0, 0.0, 0.0],
    }
  )
  table = amat_objects.overlaps(rows, 'IOU').set_index('arm')
  assert list(table.index) == ['std', 'amat'] and list(table.columns) == ['0', '1', 'average']
  assert table.loc['std'].to_list() == pytest.approx([1.4 / 4, 0.4 / 4, 0.9 / 4])
  assert table.loc['amat', '0'] == 0.5 and np.isnan(table.loc['amat', '1'])
  found = amat_objects.overlaps(rows, 'IOU_found').set_index('arm')
  assert found.loc['std', '1'] == pytest.approx(0.4)


def bad_annotation(folder, objects=(), **options):
  cells.fill(folder, images=3)
  cells.write(folder, 1, list(objects), **options)


def few_landmarks(folder):
  skulls.challenge(folder, (1, 151, 201))
  path = folder / 'AnnotationsByMD' / '400_senior' / '001.txt'
  skulls.save_text(path, skulls.points(1)[:18], tail=())


def damaged_image(folder):
  skulls.challenge(folder, (1, 151, 201))
  path = folder / 'RawImage' / 'TrainingData' / '001.bmp'
  path.write_bytes(path.read_bytes()[:30])


ENTITY = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
MISTAKES = {
  'external entity': ('bccd', 'BloodImage_00001.xml', lambda to: bad_annotation(to, head=ENTITY)),
  'max below min': (
    'bccd',
    'BloodImage_00001.xml',
    lambda to: bad_annotation(to, [('RBC', 9, 9, 5, 12)]),
  ),
  'another image': (
    'bccd',
    'BloodImage_00001.xml',
    lambda to: bad_annotation(to, size=(480, 640)),
  ),
  '18 landmarks': ('ceph', '001.txt', few_landmarks),
  'damaged image': ('ceph', '001.bmp', damaged_image),
}


def _run(words):
  command = commandline.parse(words)
  stages.run(command, experiment)


@pytest.mark.parametrize('case', MISTAKES)
def test_bad_files_end_the_program_with_one_line_that_names_them(tmp_path, capsys, case):
  name, file, spoil = MISTAKES[case]
  spoil(tmp_path / 'raw')
  words = [f'--config=configs/amat_{name}.py:smoke', f'--workdir={tmp_path / "run"}']
  more = {'source': name, 'dir': tmp_path / 'raw', 'cache_dir': tmp_path / 'cache'}
  words += [f'--config.data.{field}={value}' for field, value in more.items()]
  assert tool.run(_run, words) == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if '[robustmed]' not in line]
  assert len(lines) == 1 and lines[0].startswith('robustmed: error: ') and file in lines[0], lines
  assert not (tmp_path / 'run').exists()


def test_tables_and_pictures_call_arms_as_the_paper_does():
  frame = pd.DataFrame({'arm': ['std_bce', 'sat_5', 'amat'], 'mean': [1.0, 2.0, 3.0]})
  said = report.Page.with_paper_names(frame)
  assert said['arm'].tolist() == ['STD(BCE)', 'SAT5', 'AMAT'] and frame['arm'][0] == 'std_bce'
  stored = {'arm': np.array(['std']), 'eps': np.zeros(1)}
  assert report.Page.with_paper_names(stored)['arm'] == ['STD']
  other = pd.DataFrame({'step': [1]})
  assert report.Page.with_paper_names(other) is other
