"""Audits of networks that give a class or landmarks: what fits, names, AUROC, files."""

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
from PIL import Image

from robustmed import errors
from robustmed.audit import classes, setup
from robustmed.data.labelled import study
from robustmed.runs import commandline
from support import audited, folders, runs


def config_of(tmp_path, folder, network):
  config = commandline.load_config(f'{runs.ROOT}/configs/audit.py:smoke')
  config.data.cache_dir = str(tmp_path / 'cache')
  config.data.dir, config.network = str(folder), str(network)
  return config


@pytest.mark.parametrize(
  ('outputs', 'last'), [(2, ''), (2, 'Softmax'), (1, 'Sigmoid'), (1, ''), (3, 'Softmax')]
)
def test_a_classifier_of_any_head(outputs, last, tmp_path):
  folder = folders.shades(tmp_path / 'shades')
  config = config_of(
    tmp_path, folder, audited.classifier(tmp_path / 'net.onnx', outputs=outputs, last=last)
  )
  # the last output is that of bright images
  names = {1: ('dark', 'bright'), 2: ('dark', 'bright'), 3: ('dark', 'grey', 'bright')}[outputs]
  config.output.classes = names
  made = setup.make(config)
  assert made.audited['net'].described.output.kind == 'classification'
  assert made.threat.name == 'type' and made.threat.bounds == (0.0, 1.0)
  task = setup.tasks(made)['net']
  source = setup.load(made, {'net': task})
  batch = [source.test[n] for n in range(6)]
  images = np.stack([one['image'] for one in batch])
  outputs_of = task.predict(task.init(jax.random.key(0)), images)
  label = np.array([one['label'] for one in batch])
  target = {'label': label, 'case': np.array([one['case'] for one in batch])}
  found = task.metrics(outputs_of, {'image': images, 'target': target})
  smooth = [scipy.ndimage.uniform_filter(image, 3, mode='constant') for image in images[..., 0]]
  mean = 20 * np.mean(smooth, axis=(1, 2)) - 10
  weight = np.exp(mean) / (np.exp(mean) + (2 if outputs == 3 else 1))
  place = made.study.classes.index('bright')
  np.testing.assert_allclose(found[f'_probability{place}'], weight, rtol=1e-4)
  assert found['ACCURACY'].mean() == 1


@pytest.mark.parametrize(
  ('network', 'change', 'said'),
  [
    ({'outputs': 4}, {}, '4 outputs, the folder 2 classes'),
    ({}, {'output.classes': ('bright', 'grey')}, "without 'dark'"),
    ({'channels': 2}, {}, None),
    ({}, {'output.kind': 'segmentation'}, 'it must be classification'),
    ({}, {'input.window': (8, 8)}, 'input.window is for label maps'),
    ({'side': 48}, {}, None),
  ],
)
def test_classifiers_that_do_not_fit(network, change, said, tmp_path):
  folder = folders.shades(tmp_path / 'shades')
  config = config_of(tmp_path, folder, audited.classifier(tmp_path / 'net.onnx', **network))
  config.update_from_flattened_dict(change)
  if said is None:  # grey images are repeated, and resized to the side of the network
    made = setup.make(config)
    assert made.study.window == (network.get('side', 32),) * 2
    outputs = setup.tasks(made)['net'].predict
    assert outputs(
      {'params': made.audited['net'].network.variables},
      np.zeros((1, *made.study.window, 1), np.float32),
    )['logits'].shape == (1, 2)
    return
  with pytest.raises(errors.UserError, match=said):
    setup.make(config)


def test_heat_maps_of_a_class_folder_and_volumes(tmp_path):
  folder = folders.shades(tmp_path / 'shades')
  heat = audited.heat_maps(tmp_path / 'heat.onnx', channels=1)
  with pytest.raises(errors.UserError, match='which need a number per class'):
    setup.make(config_of(tmp_path, folder, heat))
  points = folders.spots(tmp_path / 'spots')
  with pytest.raises(errors.UserError, match='which need a heat map for each landmark'):
    setup.make(config_of(tmp_path, points, audited.classifier(tmp_path / 'net.onnx')))
  volume = audited.brightness(tmp_path / 'volume.onnx', axes=3)
  with pytest.raises(errors.UserError, match='takes images in 3D'):
    setup.make(config_of(tmp_path, points, volume))


def test_landmarks_by_the_name_of_their_map(tmp_path):
  folder = folders.spots(tmp_path / 'spots')
  heat = audited.heat_maps(tmp_path / 'heat.onnx')
  config = config_of(tmp_path, folder, heat)
  errors_of = []
  for names in (('bright', 'dark'), ('dark', 'bright')):
    config.output.classes = names
    made = setup.make(config)
    task = setup.tasks(made)['heat']
    one = setup.load(made, {'heat': task}).test[0]
    target = {name: np.asarray(one[name])[None] for name in ('landmarks', 'scale', 'case')}
    outputs = task.predict(task.init(jax.random.key(0)), one['image'][None])
    errors_of.append(float(task.metrics(outputs, {'target': target})['MRE'][0]))
  assert errors_of[0] < 4 < errors_of[1]
  place = tmp_path / 'worst'
  place.mkdir()
  example = {'image': one['image'], 'target': {**{k: v[0] for k, v in target.items()}}}
  made.part.write_example(made, study.facts_of(made.study))(place, one['image'], example)
  with Image.open(place / f'{one["name"]}.png') as picture:
    assert picture.size == made.study.window[::-1]
  lines = (place / f'{one["name"]}.csv').read_text().splitlines()
  np.testing.assert_allclose(
    [[float(n) for n in line.split(',')] for line in lines[1:]], one['landmarks'], atol=0.01
  )


def test_auroc_of_every_cell():
  rng = np.random.default_rng(0)
  label = np.arange(40) % 3
  rows = pd.DataFrame({'arm': 'net', 'attack': 'none', 'eps': 0.0, 'group': np.arange(40)})
  rows['_label'] = label.astype(float)
  for k in range(3):
    rows[f'_probability{k}'] = rng.uniform(size=40) + 0.3 * (label == k)
  found = classes.curves(rows, names=('a', 'b', 'c'), seed=0)
  assert [line[3] for line in found] == ['AUROC_a', 'AUROC_b', 'AUROC_c']
  for k, line in enumerate(found):
    score = rows[f'_probability{k}'].to_numpy()
    wins = (score[label == k][:, None] > score[label != k]).mean()
    assert line[4] == pytest.approx(wins) and line[5] < wins < line[6] and line[7] == 40
  two = rows[rows['_label'] < 2]
  assert [line[3] for line in classes.curves(two, names=('a', 'b'), seed=0)] == ['AUROC']
  alone = two[two['_label'] == 1]  # one kind of images says nothing
  assert classes.curves(alone, names=('a', 'b'), seed=0) == []
