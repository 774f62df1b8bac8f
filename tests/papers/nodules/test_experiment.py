import types

import jax
import numpy as np
import pytest
import SimpleITK as sitk

from robustmed import data, errors
from robustmed.data import store
from robustmed.data.chest import luna16_files, nodule_scans
from robustmed.evaluation import grid, trials
from robustmed.papers.nodules import arms as nodules_arms
from robustmed.papers.nodules import candidates as finding
from robustmed.papers.nodules import evaluation, scans, stored_pools
from robustmed.papers.nodules import experiment as nodules
from robustmed.papers.nodules import pools as nodules_pools
from robustmed.process import tool
from robustmed.runs import commandline, costs, experiment, stages
from support import chests, lungs

NODULE, NEGATIVE, BACKGROUND = 1, 0, 2


def load(preset):
  return commandline.load_config(f'configs/nodules.py:{preset}')


@pytest.fixture
def config():
  return load('smoke')


def change(config, **changes):
  for name, value in changes.items():
    *path, last = name.split('__')
    place = config
    for part in path:
      place = place[part]
    with place.unlocked():
      place[last] = value
  return config


# Configuration and arms ---------------------------------------------------------------------------


def test_the_demo_trains_what_the_others_begin_with_first():
  arms = nodules.build(load('demo')).arms
  order, _ = experiment.training_order(arms)
  assert set(order) == {
    'blob', 'blob_glass', 'synthesiser', 'segmentation', 'ce', 'beta_finetune', 'longer',
    'syn_random', 'syn', 'poisson', 'perturb',
  }  # fmt: skip
  before = lambda first, second: order.index(first) < order.index(second)
  assert before('segmentation', 'ce') and before('ce', 'beta_finetune')
  for name in ('syn_random', 'syn', 'perturb', 'poisson'):
    assert arms[name].init_from == 'beta_finetune' and before('blob', name)
    assert ('synthesiser' in arms[name].needs) == name.startswith('syn')
  assert {name for name, arm in arms.items() if arm.evaluated is False} == {
    'blob', 'blob_glass', 'synthesiser', 'segmentation',
  }  # fmt: skip


def test_the_paper_has_all_ten_variants_and_three_candidate_networks():
  config = load('paper')
  arms = nodules.build(config).arms
  graded = [name for name, arm in arms.items() if arm.evaluated is not False]
  assert graded == [
    'ce', 'beta', 'beta_finetune', 'longer', 'syn_random', 'syn', 'poisson', 'poisson_syn',
    'perturb', 'perturb_syn',
  ]  # fmt: skip
  assert {'blob', 'blob_glass', 'rpn'} <= set(arms) and arms['rpn'].needs == ('blob',)
  assert nodules_arms.REFERENCE in arms  # DeepLung's row of Table 3
  assert not nodules_arms.candidate_arms(load('real'))  # LUNA16's own list


@pytest.mark.parametrize('preset', ['demo', 'smoke', 'real', 'paper'])
def test_the_control_is_trained_as_the_variants_are_on_real_patches(preset):
  arms = nodules.build(load(preset)).arms
  control, variant = arms[nodules_arms.CONTROL], arms['syn']
  assert control.train == variant.train and control.init_from == variant.init_from
  assert control.prepared.source is None and control.evaluated is True
  assert variant.prepared.source is not None


@pytest.mark.parametrize('preset', ['', 'smoke', 'real'])
def test_every_network_that_the_page_shows_fits_the_preset(preset):
  config = load(preset)
  shown = nodules_arms.shown_networks(config, nodules.make_task(config, {}))
  for name, task in shown.items():
    assert costs.multiply_adds(task) > 0, name


def test_all_presets_have_the_papers_loss_and_one_threshold():
  for preset in ('demo', 'smoke', 'real', 'paper'):
    options = load(preset).synthesiser
    assert options.threshold == 0.2, preset
    assert options.weights.prior == 0.5, preset
    assert (options.weights.divergence, options.weights.adversarial) == (1e-5, 0.1), preset
  assert load('paper').pools.counts.codes == 710 * 10 * 6


def test_mistakes_in_the_configuration_are_one_line(tmp_path):
  def fails(message, **changes):
    with pytest.raises(errors.UserError, match=message):
      nodules.build(change(load('smoke'), **changes))

  fails("unknown data field candidates 'list'", data__candidates='list')
  fails('unknown arm that the searches attack', pools__victim='ce2')
  fails('unknown reference', reference__kind='luna')
  fails('there is no file', reference__kind='submission', reference__submission='nowhere.csv')
  fails("unknown pool of arm 'syn'", arms__syn__added=('codez',))
  fails('both for positive/synthetic', arms__syn__added=('codes', 'random'))
  fails('for stress tests alone', arms__syn__added=('plain_noise',))
  fails('unknown field of synthesiser.weights', synthesiser__weights={'kl': 1.0})
  fails('augment needs shift', augment__scale=1.5)
  fails('data.fold=3 is for luna16, not for phantom_nodules', data__fold=3)
  fails('unknown model', model__name='resnet50')


@pytest.mark.slow
def test_the_network_with_boxes_begins_as_the_blob_network(config):
  with config.unlocked():
    config.candidates.boxes = True
  arms = nodules_arms.candidate_arms(config)
  blob = arms['blob'].network.task.init(jax.random.key(7))
  finished = types.SimpleNamespace(load={'blob': blob}.__getitem__, seed=0)
  drawn = arms['rpn'].network.task.init(jax.random.key(8))
  begun = arms['rpn'].prepared.variables(finished)(drawn)
  assert jax.tree.map(np.shape, begun) == jax.tree.map(np.shape, drawn)
  np.testing.assert_array_equal(begun['params']['stem']['kernel'], blob['params']['stem']['kernel'])
  assert 'boxes' in begun['params'] and 'boxes' not in blob['params']


# Training examples --------------------------------------------------------------------------------


def source(nodules=3, negatives=4, backgrounds=2):
  """Patches of made-up roles, the nodules first."""
  counts = (nodules, negatives, backgrounds)
  roles = np.repeat([NODULE, NEGATIVE, BACKGROUND], counts).tolist()
  rows = [lungs.example(i, positive=role == NODULE) for i, role in enumerate(roles)]
  for row, role in zip(rows, roles):
    row |= {'role': np.int32(role), 'diameter': np.float32(2.0 * row['index'] * (role == NODULE))}
  split = store.Split(rows, [int(row['group']) for row in rows])
  splits = {'train': roles, 'test': roles}
  return data.Source(train=split, test=split, volumes=split, info={'roles': splits})


def drawn(made, draws):
  kinds = {}
  for draw in range(draws):
    position, wish = made.sampling.choose(draw, seed=3, batch_size=8, size=len(made.train))
    example = made.sampling.crop(made.train[position], wish)
    name = example['name'].rstrip('0123456789')
    kinds[name, int(example['target'])] = kinds.get((name, int(example['target'])), 0) + 1
  return kinds


def pool(name, target, *, first, count=3):
  rows = [
    {
      'image': np.full(lungs.SHAPE, 0.5, np.float32), 'target': np.int32(target),
      'name': f'{name}0', 'index': np.int32(first + i), 'group': np.int32(i), 'keep': True,
    }
    for i in range(count)
  ]  # fmt: skip
  return store.Split(rows, [0] * count)


def test_shares_are_those_of_the_paper_and_what_is_lacking_is_real(config):
  wanted = nodules_arms.shares(config)
  assert list(wanted['positive']) == ['real', 'synthetic', 'attacked']
  codes = pool('codes', 1, first=nodules_pools.FIRST)
  attacked = pool('positives', 1, first=2 * nodules_pools.FIRST)
  noise = pool('noise', 0, first=3 * nodules_pools.FIRST)
  whole = {
    'positive/synthetic': codes, 'positive/attacked': attacked, 'negative/attacked': noise,
  }  # fmt: skip
  assert drawn(nodules_arms.mixture(source(), whole, wanted), 80) == {
    ('patch', 1): 20, ('codes', 1): 10, ('positives', 1): 10, ('patch', 0): 20, ('noise', 0): 20,
  }  # fmt: skip
  some = nodules_arms.mixture(source(), {'positive/synthetic': codes}, wanted)
  assert drawn(some, 80) == {('patch', 1): 30, ('codes', 1): 10, ('patch', 0): 40}
  example = some.train[len(some.train) - 1]
  assert set(example) == set(source().train[0]) - {'name'} | {'name'}


def test_an_unknown_kind_of_share_is_a_mistake(config):
  with config.unlocked():
    config.sampling.positive = {'real': 0.5, 'fake': 0.5}
  with pytest.raises(errors.UserError, match='unknown kind of positive training examples'):
    nodules_arms.shares(config)


def test_the_synthesiser_learns_from_nodules_with_masks():
  given = source()
  finished = types.SimpleNamespace(source=given)
  found = nodules_arms.masked(finished)
  assert [int(row['target']) for row in found.train] == [1, 1, 1]
  for row in given.train:
    row['has_mask'] = np.bool_(False)
  with pytest.raises(errors.UserError, match='no training nodule has a mask'):
    nodules_arms.masked(finished)


def test_networks_are_judged_on_negatives_and_large_nodules():
  found = nodules.judged(source(), 3.0)  # diameters 0, 2 and 4
  assert [(int(r['target']), float(r['diameter'])) for r in found] == [(1, 4.0), *[(0, 0.0)] * 4]
  with pytest.raises(errors.UserError, match=r'lower data\.min_diameter'):
    nodules.judged(source(), 5.0)


# Stress tests and scans ---------------------------------------------------------------------------


def test_columns_of_the_stress_tests(config):
  kinds = {(kind.attack, kind.eps): kind for kind in evaluation.kinds(config)}
  assert {('none', 0.0), ('uniform', 0.3), ('uniform_wide', 0.3), ('poisson', 5)} <= set(kinds)
  assert {('codes', 0.15), ('random', 1.0), ('noise_pgd', 0.15), ('plain_noise', 1.0)} <= set(kinds)
  assert [kind.attack for kind in evaluation.own(config)] == ['own_noise_pgd']
  assert kinds['codes', 0.15].searched and not kinds['random', 1.0].searched
  cells = evaluation.study_cells(config, 'syn', trials.Trial(1), ())
  searched, scored = 4 * 2, 8  # two steps; scores are made in whole batches
  assert cells.pop('stress/syn.seed1.own_noise_pgd.0.15.parquet')[:3] == (searched + scored, 4, 0)
  assert cells.pop('froc/syn.seed1.csv')[:3] == (0, 2 * 8, 0)  # five candidates of each scan
  assert len(cells) == len(kinds) and all(cost.forwards == 0 for cost in cells.values())
  attacked = evaluation.study_cells(config, 'beta_finetune', trials.Trial(1), ())
  assert attacked['stress/beta_finetune.seed1.noise_pgd.0.15.parquet'][:3] == (
    searched + scored,
    4,
    0,
  )
  assert [cost.others for cost in attacked.values() if cost.others]  # codes, candidates
  with config.unlocked():
    config.stress.white_box = ('random',)
  with pytest.raises(errors.UserError, match='unknown pool to search in the white box'):
    evaluation.own(config)


def test_negatives_of_table_6_begin_in_random_places_of_the_lungs(config):
  kinds = {kind.attack: kind for kind in evaluation.kinds(config)}
  given = source()
  for name in ('clean_negatives', 'negatives'):
    begin = evaluation.begin_of(config, given, kinds[name].role)
    assert [int(row['role']) for row in begin] == [BACKGROUND] * 2, name
  begin = nodules_pools.part_of(given, 'train', nodules_pools.POOLS['negatives'].role)
  assert [int(row['role']) for row in begin] == [BACKGROUND] * 2


# Before anything is prepared ----------------------------------------------------------------------


def luna(folder, preset='real', **changes):
  return change(load(preset), data__dir=str(folder), data__negatives_from='lung', **changes)


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
  """LUNA16 as it is downloaded, without masks."""
  return chests.fill(tmp_path_factory.mktemp('luna'), masks=False)


@pytest.fixture
def roomy(monkeypatch):
  usage = types.SimpleNamespace(free=10**15)
  monkeypatch.setattr(store.shutil, 'disk_usage', lambda folder: usage)
  return usage


def preflight(config, *untrained, arms=(), workdir):
  exp = nodules.build(config)
  exp.data.check(arms or untrained, untrained, workdir)


@pytest.mark.parametrize('arm', ['synthesiser', 'segmentation'])
def test_masks_that_are_not_there_are_told_of_before_the_training(bare, roomy, tmp_path, arm):
  with pytest.raises(
    errors.UserError, match=f"arm '{arm}': no training nodule has a mask.*lidc_xml"
  ):
    preflight(luna(bare), 'ce', arm, workdir=tmp_path)
  preflight(luna(bare), 'ce', workdir=tmp_path)  # needs none
  preflight(luna(bare), 'ce', arms=('ce', arm), workdir=tmp_path)  # trained already


def test_the_command_ends_before_patches_are_cut(bare, roomy, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('ROBUSTMED_CACHE', str(tmp_path / 'cache'))
  words = ['--config', 'configs/nodules.py:real', f'--config.data.dir={bare}']
  words += ['--workdir', str(tmp_path / 'run'), '--arms', 'syn']
  assert tool.run(lambda words: stages.run(commandline.parse(words), nodules), words) == 2
  assert 'no training nodule has a mask' in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'cache').exists() and not (tmp_path / 'run').exists()


def test_kinds_that_are_not_there_are_told_of_before_the_training(bare, roomy, tmp_path):
  whole = chests.fill(tmp_path / 'luna')
  table = whole / 'nodule_masks' / 'nodules.csv'
  rows = table.read_text().splitlines()
  found = luna16_files.find(str(whole))
  uid = next(iter(found.images))
  kinds = luna16_files.masked(found, luna16_files.annotations(found), uid)
  assert kinds and set(kinds) <= {'solid', 'calcified', 'part_solid', 'ground_glass'}
  solid = [rows[0], *(','.join([*row.split(',')[:2], '5', '6']) for row in rows[1:])]
  for text, message in (
    (solid, 'known to be ground glass'),
    (rows[:1], 'known to be ground glass'),
  ):
    table.write_text('\n'.join(text) + '\n')
    config = luna(whole, 'paper')
    with pytest.raises(errors.UserError, match=message):
      preflight(config, 'blob_glass', workdir=tmp_path)
    preflight(config, 'synthesiser', workdir=tmp_path)
  assert luna16_files.masked(found, luna16_files.annotations(found), uid) == ('unknown',)
  glassy = [rows[0], *(','.join([*row.split(',')[:2], '1', '6']) for row in rows[1:])]
  table.write_text('\n'.join(glassy) + '\n')
  preflight(luna(whole, 'paper'), 'blob_glass', workdir=tmp_path)


def test_the_disk_that_all_pools_need_is_told_of_before_the_training(config, roomy, tmp_path):
  arms = ('ce', 'beta_finetune', 'syn', 'perturb')
  preflight(config, *arms, workdir=tmp_path)
  # codes, positives and noise; 3 columns with 4 of noise or codes each, the rest by nodule or place
  roomy.free = stored_pools.size_of(12 + 4, nodules.make_task(config, {}).image_shape)
  with pytest.raises(
    errors.UserError, match=r'pools of \d+ patches: takes .* MB more, .* free; put'
  ):
    preflight(config, *arms, workdir=tmp_path)
  roomy.free, counts = -1, []
  for config.seeds in (1, 2):
    with pytest.raises(errors.UserError, match='takes') as told:
      preflight(config, *arms, workdir=tmp_path)
    counts.append(int(str(told.value).split()[2]))
  assert counts[1] == 2 * counts[0] > 0
  roomy.free = 0
  (tmp_path / 'pools').mkdir()
  made = stored_pools.size_of(counts[1], nodules.make_task(config, {}).image_shape)
  (tmp_path / 'pools' / 'there').write_bytes(bytes(made))
  preflight(config, *arms, workdir=tmp_path)


def test_codes_are_compared_in_equal_numbers():
  begin = store.Part(source(backgrounds=2).train, [7, 8])
  rows = []
  for number, candidate in enumerate((0, 3)):
    image = np.array(begin[candidate % 2]['image'])
    image[2:4, 2:4, 2:4] = 0.5
    row = {'image': image, 'index': 100 + candidate, 'group': 5, 'diameter': 7.0 + number}
    rows.append(row)
  found = nodules_pools.synthetic_nodules(store.Split(rows, [5, 5]), begin, first=100)
  assert found['index'].tolist() == [0, 3] and found['diameter'].tolist() == [7.0, 8.0]
  np.testing.assert_allclose(found['hu'], nodule_scans.to_hu(np.float64(0.5)))
  assert found['border'].tolist() == [0.0, 0.0]
  first = evaluation._FIRST
  made = store.Split([{**row, 'index': row['index'] - 100 + first} for row in rows], [5, 5])
  stored = evaluation.slices('codes 0.15', made, begin, count=8)
  np.testing.assert_array_equal(stored['codes 0.15/number'], [0, 3])
  np.testing.assert_array_equal(stored['codes 0.15/before'][1], begin[1]['image'][4, ..., 0])
  assert (stored['codes 0.15'][:, 2:4, 2:4] != 0.5).all()  # slice 4 lies beyond the nodule


def test_a_synthesiser_that_draws_along_the_border_is_told_of(capsys):
  begin = store.Part(source(backgrounds=2).train, [7, 8])
  first = nodules_pools.FIRST * nodules_pools.POOLS['random'].number

  def pool(where):
    image = np.array(begin[0]['image'])
    image[where] = 0.5
    row = {'image': image, 'index': first, 'group': 5, 'diameter': 7.0}
    return store.Split([row], [5])

  nodules_pools.warn('random', pool(np.s_[2:4, 2:4, 2:4]), begin)
  assert not capsys.readouterr().err
  nodules_pools.warn('random', pool(np.s_[0:2, 2:4, 2:4]), begin)  # one of two layers
  (line,) = capsys.readouterr().err.splitlines()
  assert 'pool random: 50% of the synthetic nodules lies in the border' in line


def test_real_nodules_are_measured_by_their_masks():
  examples = []
  for number, side in enumerate((2, 3)):
    soft, image = np.zeros(lungs.SHAPE, np.float32), np.full(lungs.SHAPE, 0.25, np.float32)
    soft[1 : 1 + side, 1 : 1 + side, 1 : 1 + side] = 1.0
    image[soft > 0] = 0.75
    row = {'image': image, 'soft': soft, 'has_mask': np.bool_(True)}
    examples.append({**row, 'index': np.int32(number), 'group': np.int32(4)})
  examples.append({**examples[1], 'has_mask': np.bool_(False)})
  part = store.Split(examples, [4, 4, 4])
  found = nodules_pools.real_nodules(part, spacing=1.5, smallest=4.0)
  assert found['index'].tolist() == [1]  # the ball of 8 voxels of 1.5 mm is smaller than 4 mm
  np.testing.assert_allclose(found['diameter'], 2 * (3 * 27 * 1.5**3 / 4 / np.pi) ** (1 / 3))
  np.testing.assert_allclose(found['hu'], nodule_scans.to_hu(np.float64(0.75)))
  assert found['border'].tolist() == [0.0] and found['arm'].tolist() == ['synthesiser']


def test_candidates_are_scored_in_the_patch_about_them(config):
  image = np.zeros((24, 24, 24), np.float32)
  image[18:, 18:, 18:] = 1.0
  scan = chests.scan(image, spacing=(3.0, 3.0, 3.0))
  points = np.array([[12.0, 12.0, 12.0], [60.0, 60.0, 60.0]])
  bright = lambda image: {
    'confidence': image.mean((1, 2, 3, 4)),
    'entropy': image.max((1, 2, 3, 4)),
  }
  found = finding.Candidates(points, np.array([0.9, 0.8]))
  table = scans.scored(config, scan, found, bright)
  assert table['seriesuid'].tolist() == ['one', 'one'] and table['coordX'].tolist() == [12.0, 60.0]
  assert table['probability'][0] == 0 and table['probability'][1] > 0.3
  assert table['entropy'][1] == 1
  none = finding.Candidates(np.zeros((0, 3)), np.zeros(0))
  assert scans.scored(config, scan, none, bright).empty


def test_a_list_of_candidates_can_stand_in_for_networks(config):
  listed = nodule_scans.table('one', [(1.0, 2.0, 3.0)], **{'class': [1]})
  scan = chests.scan(np.zeros((4, 4, 4)), candidates=listed)
  networks = scans.Networks(None, (), None, None, None)
  found = scans.found_in(config, scan, networks)
  assert set(found) == {scans.FOUND}
  np.testing.assert_array_equal(found[scans.FOUND].centre, [[1.0, 2.0, 3.0]])
  with pytest.raises(errors.UserError, match='has no list of candidates'):
    scans.found_in(config, scan._replace(candidates=None), networks)


def test_networks_of_two_kinds_are_also_asked_alone(config):
  class Finder:
    def parts(self, image, *, heat, boxes):
      made = {'heat': [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], 'boxes': [[2.0, 2.0, 2.0]]}
      wanted = {'heat': heat, 'boxes': boxes}
      return {
        kind: finding.Candidates(np.array(points), np.full(len(points), 0.5))
        for kind, points in made.items()
        if wanted[kind]
      }

    def joined(self, parts):
      return finding.union(list(parts.values()), distance=0.1)

  scan = chests.scan(np.zeros((4, 4, 4)))
  found = scans.found_in(config, scan, scans.Networks(Finder(), (1,), 1, None, None))
  sizes = {name: len(one.centre) for name, one in found.items()}
  assert sizes == {scans.FOUND: 3, scans.HEAT: 2, scans.BOXES: 1}
  assert set(scans.found_in(config, scan, scans.Networks(Finder(), (1,), None, None, None))) == {
    scans.FOUND
  }


def test_an_attacked_patch_is_written_where_it_lies(config, tmp_path):
  example = {'index': np.int32(3), 'target': {'centre': np.array([10.0, 20.0, 30.0])}}
  image = np.full(lungs.SHAPE, 0.5, np.float32)
  nodules.write_example(config, tmp_path, image, example)
  read = sitk.ReadImage(str(tmp_path / '000003.mha'))
  assert read.GetOrigin() == (-0.5, 9.5, 19.5) and read.GetSpacing() == (3.0, 3.0, 3.0)
  assert (sitk.GetArrayFromImage(read) == -300).all()


def test_the_classifier_learns_as_its_loss_says(config):
  task = nodules.make_task(config, {'loss': 'ce'})
  outputs = {'logits': np.array([[0.0, 2.0]], np.float32)}
  batch = {'target': {'target': np.array([1])}}
  assert set(task.losses(outputs, batch)) == {'ce'}
  beta = nodules.make_task(config, {})
  found = jax.tree.map(np.asarray, beta.losses(outputs, {**batch, 'progress': np.zeros(1)}))
  assert found['divergence'] == 0 and found['evidence'] > 0
  assert {'confidence', 'uncertainty', 'correct'} <= set(beta.metrics(outputs, batch))
  assert grid.CLEAN == 'none'  # the name of the nodules as they are in the stress tests
