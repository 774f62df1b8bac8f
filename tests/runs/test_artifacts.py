"""Files of pictures that grow with the arms that are asked for."""

import importlib
import inspect
import json
import types

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustmed import attacks
from robustmed.attacks.stored import lattice
from robustmed.data.files import pictures
from robustmed.evaluation import grid, statistics, trials
from robustmed.report import inputs, tables
from robustmed.runs import artifacts, experiment
from support import toys


def _model(arm, seed=0):
  return grid.Model(arm, trials.Trial(seed), dict)


def _maker(calls):
  def make(model):
    calls.append(model.arm)
    if model.arm == 'none':
      return {}
    return {'arm': np.array([model.arm] * 2), 'image': np.full((2, 3), len(model.arm))}

  return make


def test_pictures_of_other_arms_stay_and_only_new_ones_are_made(tmp_path):
  path, calls = tmp_path / 'pictures.npz', []
  artifacts.add_pictures(path, [_model('none')], _maker(calls))
  assert not path.exists()
  artifacts.add_pictures(path, [_model('std')], _maker(calls))
  first = path.read_bytes()
  artifacts.add_pictures(path, [_model('std'), _model('none')], _maker(calls))
  assert path.read_bytes() == first and calls == ['none', 'std', 'none']
  artifacts.add_pictures(path, [_model('std'), _model('adv_long')], _maker(calls))
  assert calls[3:] == ['adv_long']
  with np.load(path) as stored:
    assert stored['arm'].tolist() == ['adv_long', 'adv_long', 'std', 'std']
    np.testing.assert_array_equal(stored['image'][:, 0], [8, 8, 3, 3])


def test_the_first_trial_stands_for_an_arm():
  models = [_model('a', 1), _model('b', 1), _model('a', 2)]
  assert artifacts.first_trial(models) == models[:2]


PGD = attacks.pgd(num_steps=5, relative_step=0.3)
APGD = attacks.apgd(num_steps=5)


def _grid(**more):
  probes = {'pgd': grid.Probe(PGD, 'ce', (0.1,)), 'apgd': grid.Probe(APGD, 'ce', (0.1,)), **more}
  judge = {'metric': 'dice', 'higher_is_better': True, 'main': 'pgd'}
  return experiment.Grid(probes, 'pgd', checks=judge)


def _rows(**dice):
  """Two slices of each of two subjects; of a slice (hit, size), whose Dice is their quotient."""
  cells = []
  for attack, counts in dice.items():
    hit, size = np.transpose(counts)
    cells.append(
      pd.DataFrame(
        {
          'arm': 'std',
          'attack': attack,
          'eps': 0.0 if attack == 'none' else 0.1,
          'seed': 0,
          'index': range(4),
          'group': [0, 0, 1, 1],
          'dice': hit / size,
          '_hit': hit,
          '_size': size,
          '_value': 1.0,
        }
      )
    )
  return pd.concat(cells, ignore_index=True)


def _subjects(rows):
  keys = ['arm', 'attack', 'eps', 'seed', 'group']
  sums = rows.groupby(keys, as_index=False)[['_hit', '_size']].sum()
  return sums.assign(index=sums['group'], dice=sums['_hit'] / sums['_size'], _value=1.0)


def test_the_worst_of_a_subject_is_never_weaker_than_one_attack(tmp_path):
  """Though the worst of each of its slices is: in subject 0 pgd takes more from the large slice."""
  rows = _rows(
    none=[(9, 10), (90, 100), (9, 10), (9, 10)],
    pgd=[(5, 10), (10, 100), (5, 10), (5, 10)],
    apgd=[(6, 10), (0.7, 10), (4, 10), (6, 10)],
  )
  asked = []
  count = lambda rows: asked.append(set(rows['attack'])) or _subjects(rows)
  artifacts.save_rows(_grid()._replace(subjects=count), rows, folder=tmp_path, seed=0)
  assert asked == [{'none', 'pgd', 'apgd'}, {statistics.MIXED}]  # each set of rows once
  worst = pd.read_parquet(tmp_path / 'worst.parquet').set_index('index')['dice']
  assert worst[0] == pytest.approx(15 / 110)
  assert worst[1] == pytest.approx(9 / 20)
  stored = json.loads((tmp_path / 'checks.json').read_text())
  found = {check['name']: check['status'] for check in stored}
  assert found['the worst is never weaker'] == 'pass'
  assert found['members reach plain attacks'] == 'pass'


def test_members_are_compared_with_plain_attacks_of_no_more_gradients(tmp_path):
  shorter = attacks.apgd(num_steps=3)
  judged = attacks.apgd(num_steps=5, select='monitor')
  made = _grid(
    short=grid.Probe(shorter, 'ce', (0.1,)),
    other=grid.Probe(APGD, 'margin', (0.1,)),
    judged=grid.Probe(judged, 'ce', (0.1,)),
    moved=grid.Probe(APGD, 'ce', (0.1,), 'std'),
    l2=grid.Probe(attacks.apgd(norm='l2', num_steps=5), 'ce', (0.1,)),
    box=grid.Probe(attacks.apgd(num_steps=5, bounds=(0.0, 1.0)), 'ce', (0.1,)),
    less=grid.Probe(attacks.apgd(num_steps=5, max_change=0.01), 'ce', (0.1,)),
    part=grid.Probe(attacks.apgd(num_steps=5, region=(True, False)), 'ce', (0.1,)),
    artefact=grid.Probe(attacks.corruption(kind='rician'), 'ce', (0.1,)),
  )
  names = artifacts._same_ball(made.probes, 'pgd')
  assert not {'l2', 'box', 'part', 'less', 'artefact'} & set(names)
  assert artifacts._pairs(made.probes, names, 'dice') == [
    ('apgd', 'pgd', '_value'),
    ('judged', 'pgd', 'dice'),
    ('judged', 'pgd', '_value'),
  ]


OF_FILES = (
  *(f'own_data.{kind}' for kind in ('segmentation', 'classes', 'landmarks', 'objects')),
  *(f'audit.{kind}' for kind in ('label_maps', 'classes', 'landmarks')),
  *(f'papers.{kind}' for kind in ('amat.landmarks', 'amat.objects', 'nodules.experiment')),
)


@pytest.mark.parametrize('name', OF_FILES)
def test_files_of_whole_numbers_are_written_of_those_that_were_scored(name):
  module = importlib.import_module(f'robustmed.{name}')
  write = module.write_example
  if name.startswith('audit'):
    write = write(None, ())
  assert callable(module.lattice_of) and 'whole' in inspect.signature(write).parameters


@pytest.mark.parametrize(
  ('units', 'minimise'),
  [('image', False), ('unknown', False), ('known', False), ('image', True)],
)
def test_what_is_stored_is_what_was_scored(tmp_path, units, minimise):
  in_space, known = units != 'image', units != 'unknown'
  task, variables, batch = toys.task(), toys.variables(), toys.batch(6)
  bytes_of = lattice.Lattice(0.0, 1 / 255, 0, 255)
  clean = np.round(batch['image'] * 255)
  batch = {**batch, 'image': bytes_of.image(clean)}
  unit = lambda b: np.full((len(b['image']), 1, 1, 1), 1 / 255)
  space = attacks.space.Space(lambda b: 255 * b['image'], lambda x, b: x / 255)
  space = space._replace(unit=unit if known else None)
  eps = 2.5 if in_space else 2.5 / 255
  attack = attacks.pgd(num_steps=3, relative_step=0.2, minimise=minimise)
  probe = grid.Probe(attack, 'bce', (eps,), space=space if in_space else None)
  probes = {'pgd': probe}
  evaluator = grid.Evaluator(task, probes, key=jax.random.key(0), main='pgd')

  def write(folder, image, example, *, whole):
    folder.mkdir(parents=True, exist_ok=True)
    np.testing.assert_array_equal(bytes_of.image(whole), image)
    pixels = Image.fromarray(whole[..., 0].astype(np.uint8))
    pixels.save(folder / f'{int(example["index"])}.png')

  # no metric of one example has this name: it is judged by the objective
  checks = {'metric': 'volume', 'higher_is_better': True}
  exp = types.SimpleNamespace(
    grid=experiment.Grid(probes, 'pgd', checks),
    artifacts=experiment.Artifacts(write, lattice=lambda example: bytes_of),
  )
  config = types.SimpleNamespace(evaluate=types.SimpleNamespace(save_examples=2))
  model = grid.Model('std', trials.Trial(0), lambda: variables, evaluator)
  context = artifacts.Context(
    exp, config, tmp_path, evaluator, lambda: iter([batch]), lambda: None, None
  )
  rows = pd.DataFrame(
    {'arm': 'std', 'seed': 0, 'attack': 'pgd', 'eps': eps, 'index': range(6), 'volume': range(6)}
  )
  artifacts.save_worst(context, [model], rows)
  (folder,) = (tmp_path / 'worst').iterdir()
  lines = inputs._stored(tmp_path / 'stored')
  assert sorted(lines['index']) == [0, 1]
  for line in lines.itertuples():
    whole = pictures.read(folder / f'{line.index}.png').astype(int)
    assert np.abs(whole - clean[line.index][..., 0]).max() <= 2
    image = bytes_of.image(whole)[None, ..., None]
    one = {'target': {'label': batch['target']['label'][line.index : line.index + 1]}}
    value = float(task.objectives['bce'](task.predict(variables, image), one)[0])
    assert line.metric == '_value.bce'
    np.testing.assert_allclose(line.stored, value, rtol=1e-5)

    def of(image, one=one):
      return float(task.objectives['bce'](task.predict(variables, image[None]), one)[0])

    sign = -1 if minimise else 1
    assert sign * value > sign * of(batch['image'][line.index])
    if known:  # the nearest numbers are among those that are tried
      (found,) = context.attacked(model, eps=eps, wanted=[line.index])
      change = np.clip(np.round(255 * found.image) - clean[line.index], -2, 2)
      assert sign * value >= sign * of(bytes_of.image(clean[line.index] + change)) - 1e-6
    assert line.inside if known else line.inside is None
    if known:
      assert line.distance <= eps * (1 + 1e-6)
  table = tables.stored(lines)
  assert table['images'].tolist() == [2]
  assert table['in the ball'].tolist() == ['2 of 2' if known else '-']
