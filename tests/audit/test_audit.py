"""What an audit makes of networks, folders and rows; the whole run is a program test."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.attacks import space
from robustmed.audit import breaking, coverage, label_maps, page, setup, threat
from robustmed.audit import experiment as audit
from robustmed.data import pipeline
from robustmed.data.labelled import sampling
from robustmed.evaluation import examples, grid, trials
from robustmed.evaluation.checks import inspection
from robustmed.process import console
from robustmed.runs import artifacts, commandline, costs
from support import audited, folders, monai_bundles, nnunet_folders, runs

ORGAN = {'background': 0, 'organ': 1, 'lesion': 2}


def config_of(tmp_path, folder=None, **fields):
  config = commandline.load_config(f'{runs.ROOT}/configs/audit.py:smoke')
  config.data.cache_dir = str(tmp_path / 'cache')
  config.data.dir = str(folder or folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(6, 8, 11)))
  config.network = str(audited.brightness(tmp_path / 'net.onnx', **fields))
  return config


def test_the_network_decides_slices_and_padding(tmp_path):
  made = setup.make(config_of(tmp_path))
  assert made.fields['axes'] == 2 and made.study.window == (8, 12)
  assert made.audited['net'].described.output.classes == ('background', 'organ', 'lesion')
  assert setup.sizes(made)['test'] == 6 == len(made.chosen) and setup.groups(made) == 6
  volumes = setup.make(config_of(tmp_path, axes=3))
  assert volumes.fields['axes'] == 3 and volumes.study.window == (6, 8, 12)


@pytest.mark.parametrize(
  ('network', 'flags', 'said'),
  [
    ({'channels': 2}, {}, 'takes 2 channels, the images of'),
    ({'centres': (0, 1, 2, 3)}, {}, '4 output channels, the folder 3 labels'),
    (
      {},
      {'classes': ('background', 'organ', 'vein')},
      "label 'lesion', which net.onnx does not know",
    ),
    ({'shape': [7, 7]}, {}, 'cannot take inputs of shapes'),
  ],
)
def test_networks_that_do_not_fit(network, flags, said, tmp_path):
  config = config_of(tmp_path, **network)
  config.output.update(flags)
  with pytest.raises(errors.UserError, match=said):
    setup.make(config)


def test_a_network_of_volumes_and_a_folder_of_pictures(tmp_path):
  photos = folders.pairs(tmp_path / 'photos', '.png', shape=(16, 20), dtype=np.uint8)
  with pytest.raises(errors.UserError, match=r'takes images in 3D, those of .* are 2D'):
    setup.make(config_of(tmp_path, photos, axes=3))
  made = setup.make(config_of(tmp_path, photos))
  assert made.audited['net'].described.input.normalise == 'scale:255'
  assert made.threat.name == 'type' and made.threat.bounds == (0, 255)
  assert (
    made.threat.text(0.04)
    == 'eps = 0.04 of the range of the stored type = 10.2 in the units of the files'
  )


def test_outputs_that_are_no_numbers(tmp_path):
  made = setup.make(config_of(tmp_path))
  tasks = setup.tasks(made)
  source = setup.load(made, tasks)
  assert source.test[0]['level'].shape == (2, 1) and len(source.test) == 6
  assert source.info['fingerprint']['networks'] == {'net': made.audited['net'].network.digest}
  bad = {'net': tasks['net']._replace(predict=lambda v, x: {'head0': x * jnp.nan})}
  with pytest.raises(
    errors.UserError, match=r'net\.onnx gives NaN or infinite outputs on the case'
  ):
    setup.load(made, bad)


@pytest.fixture
def sized():
  made = threat.Threat(
    'range', 'shares', np.array([[10.0]]), np.array([[50.0]]), (0.1,), (0.0, 100.0), 1.0, False
  )
  image = jnp.array([[[10.0], [60.0], [99.0]]])
  target = {'level': jnp.array([[[10.0], [50.0]]]), 'stored': jnp.array([[[0.0], [1.0]]])}
  return made, {'image': image, 'target': target}


def test_the_attacked_image_is_the_stored_one(sized):
  made, batch = sized
  space = made.space()
  x = space.encode(batch)
  np.testing.assert_allclose(x[0, :, 0], [0, 1, 1.78], rtol=1e-6)
  np.testing.assert_array_equal(space.decode(x, batch), batch['image'])
  moved = space.decode(x + 0.1, batch)
  np.testing.assert_allclose(moved[0, :, 0], [15, 65, 100], rtol=1e-6)
  slope = jax.grad(lambda x: space.decode(x, batch).sum())(x + 0.1)
  np.testing.assert_allclose(slope, 50.0)  # also where the type's border was met
  whole = space.finish(batch['image'] + jnp.array([4.9999, -4.5, 0.4]).reshape(1, 3, 1), batch)
  np.testing.assert_array_equal(whole[0, :, 0], [15, 56, 99])
  assert made.stored(0.1) == (5, 5, 5)
  np.testing.assert_allclose(space.unit(batch), [[[50.0]]])


def test_images_in_units_of_their_case_have_the_same_threat(sized):
  """Stored values 10, 60, 99 as (stored - 20) / 4."""
  made, batch = sized
  space = made.space()
  of_case = np.array([[20.0]]), np.array([[4.0]])
  sizes = made._replace(images=of_case, artefact=of_case).sizes(0)
  own = {'image': (batch['image'] - 20) / 4, 'target': jax.tree.map(lambda a: a[None], sizes)}
  stored = lambda image: image * 4 + 20
  np.testing.assert_allclose(space.encode(own), space.encode(batch), rtol=1e-6)
  moved = space.encode(own) + 0.1
  np.testing.assert_allclose(
    stored(space.decode(moved, own)), space.decode(moved, batch), rtol=1e-6
  )
  whole = space.finish(own['image'] + jnp.array([4.9999, -4.5, 0.4]).reshape(1, 3, 1) / 4, own)
  np.testing.assert_allclose(stored(whole)[0, :, 0], [15, 56, 99], rtol=1e-6)


def test_an_attack_in_other_units_stays_within_them(sized):
  made, batch = sized
  probe = grid.Probe(_towards_brighter, 'sum', (0.1,), space=made.space())
  batch = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), batch)  # two devices
  batch['index'] = jnp.arange(2)
  task = type('T', (), {})()
  task.objectives = {'sum': lambda outputs, batch: outputs.sum((1, 2))}
  task.predict = lambda variables, image: image
  image, distance = grid.attack_program(task, probe)({}, batch, jnp.full(2, 0.1), jax.random.key(0))
  np.testing.assert_allclose(np.asarray(image)[0, :, 0], [15, 65, 100])
  np.testing.assert_allclose(distance, 0.1, rtol=1e-5)


def _towards_brighter(objective, x, *, eps, key, monitor=None, start_radius=None):
  from robustmed import attacks

  return attacks.fgsm()(objective, x, eps=eps, key=key)


_towards_brighter.judged = False


def test_levels_that_are_no_levels(tmp_path):
  config = config_of(tmp_path)
  config.evaluate.levels = (0.1, -1)
  with pytest.raises(errors.UserError, match='levels must be numbers above 0'):
    setup.make(config)
  config.evaluate.levels = ()
  config.threat.units = 'metres'
  with pytest.raises(errors.UserError, match=r'threat\.units'):
    setup.make(config)
  config.threat.units = 'raw'
  assert all(0 < eps < 100 for eps in setup.make(config).threat.levels)


def test_the_smallest_breaking_level():
  keys = {'arm': 'net', 'group': 0, 'seed': 0}
  rows = [
    ('none', 0.0, 0, 0.8),
    ('none', 0.0, 1, 0.8),
    ('none', 0.0, 2, 0.0),
    ('none', 0.0, 3, 0.6),
  ]
  rows += [('pgd', 0.1, 0, 0.5), ('pgd', 0.2, 0, 0.3), ('pgd', 0.1, 1, 0.7), ('pgd', 0.2, 1, 0.6)]
  rows += [('pgd', 0.1, 2, 0.0), ('pgd', 0.2, 2, 0.0), ('pgd', 0.1, 3, 0.5), ('pgd', 0.2, 3, 0.5)]
  rows += [('noise', 0.1, 3, 0.1), ('rician', 0.1, 1, 0.0)]
  table = pd.DataFrame([{**keys, **dict(zip(('attack', 'eps', 'index', 'DICE'), r))} for r in rows])
  found = breaking.cases(table, arm='net', attacks=('pgd', 'noise'), metric='DICE', share=0.5)
  np.testing.assert_array_equal(found['level'], [0.2, np.inf, np.nan, 0.1])
  np.testing.assert_array_equal(found['below'], [0.1, 0.2, 0, 0])
  assert breaking.quartiles(found['level']) == (0.1, 0.2, np.inf)
  assert np.isnan(breaking.quartiles([np.nan])).all()


def test_halving_finds_the_eps_of_each_case(tmp_path):
  """Cases of two slices break at known levels, which the search must enclose."""
  breaks = np.array([0.13, 0.155, np.inf, 0.04])

  class Evaluator:
    host, asked = None, []

    def attack(self, variables, batch, name, eps):
      return np.asarray(eps)[:, None], np.asarray(eps)

    def score(self, variables, batch, images):
      self.asked.append(images[:, 0])
      dice = np.where(images[:, 0] >= breaks[batch['target']['case']], 0.1, 0.8)
      return grid.Scores({'DICE': dice}, None)

  case = np.repeat(np.arange(4), 2)
  target = {'case': case}
  batch = {'image': case, 'target': target, 'mask': np.ones(8, bool), 'index': np.arange(8)}
  batch['group'] = case
  subjects = lambda rows: (
    rows.assign(index=rows['index'] // 2)
    .groupby(['arm', 'attack', 'eps', 'seed', 'index', 'group'], as_index=False)['DICE']
    .mean()
  )
  levels = {'none': (0.0,), 'pgd': (0.1, 0.2)}
  lines = [
    {'arm': 'net', 'attack': name, 'eps': eps, 'seed': 0, 'index': n, 'group': case[n]}
    | {'DICE': 0.1 if eps >= breaks[case[n]] else 0.8}
    for name, several in levels.items()
    for eps in several
    for n in range(8)
  ]
  model = grid.Model('net', trials.Trial(0), dict, Evaluator())
  exp = types.SimpleNamespace(grid=types.SimpleNamespace(subjects=subjects))
  context = artifacts.Context(
    exp, None, tmp_path, model.evaluator, lambda: [batch], None, console.Stopper()
  )
  attack = types.SimpleNamespace(num_gradients=10, num_forwards=0)
  study = breaking.study(
    {'pgd': types.SimpleNamespace(attack=attack)},
    attacks=('pgd',),
    main='pgd',
    metric='DICE',
    share=0.5,
    halvings=3,
    case_of=lambda batch: batch['target']['case'],
    size=lambda: 8,
  )
  study.run(context, [model], pd.DataFrame(lines))
  found = pd.read_csv(tmp_path / breaking.file_of('net', trials.Trial(0)))
  np.testing.assert_allclose(found['level'], [0.1375, 0.1625, np.inf, 0.05])
  np.testing.assert_allclose(found['below'], [0.125, 0.15, 0.2, 0.0375])
  assert len(Evaluator.asked) == 3
  np.testing.assert_allclose(Evaluator.asked[0], np.repeat([0.15, 0.15, 0, 0.05], 2))
  cost = study.cells('net', trials.Trial(0), ('net',))
  assert cost == {'breaking.net.seed0.csv': costs.attacked(attack, 24)}


@pytest.mark.parametrize('units', ['raw', 'std', 'range'])
def test_artefacts_are_of_the_range_of_the_image_whatever_the_units(units, tmp_path):
  config = config_of(tmp_path)
  config.threat.units, config.evaluate.corruptions = units, ('rician',)
  made = setup.make(config)
  audit.choose(config, made)
  one = made.study.surveys[0]
  task = next(iter(setup.tasks(made).values()))
  probe = audit.probes_of(task, config, made)['rician']
  stored = jnp.linspace(one.low[0], one.high[0], 2 * 96).reshape(2, 8, 12, 1).at[:, 0, 0].set(0)
  target = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), made.threat.sizes(0))
  batch = {'image': stored, 'target': target}
  key = jax.random.key(0)
  objective = lambda image: jnp.zeros(len(image))
  changed, _ = space.run(probe.attack, objective, batch, space=probe.space, eps=0.05, key=key)
  size = float(jnp.std(changed - stored)) / (one.high[0] - one.low[0])
  assert 0.03 < size < 0.06
  np.testing.assert_array_equal(changed[:, 0, 0], 0)  # no signal stays none
  np.testing.assert_allclose(made.threat.sizes(0)['artefact'][:, 0], [0, one.high[0] - one.low[0]])


def test_attacks_of_a_budget_share_the_ball_of_the_main_one(tmp_path):
  config = config_of(tmp_path)
  config.evaluate.update({'budget': 'quick', 'corruptions': ('rician',)})
  made = setup.make(config)
  audit.choose(config, made)
  task = next(iter(setup.tasks(made).values()))
  made_of = audit.probes_of(task, config, made)
  names = artifacts._same_ball(made_of, 'pgd')
  assert set(made_of) - set(names) == {'rician'}
  assert {'pgd', 'pgd_best', 'one_step', 'noise', 'apgd_ce_10'} <= set(names)


def test_the_checks_of_a_network_are_those_of_its_attack(tmp_path):
  config = config_of(tmp_path)
  exp = audit.build(config)
  source = exp.data.load()
  model = grid.Model('net', trials.Trial(0), lambda: exp.task_of('net').init(None))
  assert exp.grid.inspected == ('net',)
  inspection.fill(
    [model],
    task_of=exp.task_of,
    probe=exp.grid.probes['pgd'],
    judge=exp.grid.checks,
    batches=lambda: artifacts.evaluation_batches(source.test, source, config),
    folder=tmp_path,
    stopper=console.Stopper(),
  )
  found = {check.name: check for check in inspection.read([model], folder=tmp_path)}
  assert set(found) == {
    'same image, same output',
    'examples alone',
    'outputs have gradients',
    'the objective has gradients',
    'gradients predict changes',
    'the metric counts every example',
  }
  assert {check.status for check in found.values()} == {'pass'}, found
  batch = jax.tree.map(
    jnp.asarray, next(iter(artifacts.evaluation_batches(source.test, source, config)))
  )
  singles = [jax.tree.map(lambda leaf, at=n: leaf[at : at + 1], batch) for n in range(2)]
  table = inspection._table(
    model, exp.task_of('net'), exp.grid.probes['pgd'], exp.grid.checks, lambda: singles
  )
  assert set(table['name']) == set(found) and set(table['status']) == {'pass'}
  whole = exp.task_of('net')
  rounded = whole._replace(predict=lambda v, image: whole.predict(v, 20 * jnp.round(image / 20)))
  told = inspection.of_model(
    model, rounded, exp.grid.probes['pgd'], judge=exp.grid.checks, batch=batch
  )
  assert {check.name for check in told if check.status == 'fail'} >= {'outputs have gradients'}


def test_coverage_says_what_was_not_done():
  attacks = {'pgd': {'name': 'pgd', 'num_steps': 10}, 'noise': {'name': 'noise'}}
  found = coverage.items(attacks=attacks, corruptions=(), checks={}, groups=1, networks=1)
  state = {one.item: one.state for one in found}
  assert state['Enough iterations, convergence'] == coverage.NOT_DONE
  assert state['An attack without gradients'] == coverage.NOT_DONE
  assert state['Random noise of the same size'] == coverage.DONE
  assert state['Intervals resample patients'] == coverage.NOT_DONE
  assert {one.state for one in found} == {'done', 'not done', 'not applicable'}


def test_networks_side_by_side(tmp_path):
  config = config_of(tmp_path)
  (tmp_path / 'new').mkdir()
  other = audited.brightness(tmp_path / 'new' / 'net.onnx', centres=(0, 1), last='Sigmoid')
  config.networks = f'{config.network}, {other}'
  made = setup.make(config)
  assert len(made.audited) == 2 and all(name.endswith('_net') for name in made.audited)
  second = made.audited['new_net'].described
  assert second.output.classes == ('organ', 'lesion') and second.output.activation == 'sigmoid'
  config.report.picture_eps = 0.02
  assert (
    'withstands an attack of 0.02 better than new_net' in page.claims_of(made, config)[-1].statement
  )
  tasks = setup.tasks(made)
  image = jnp.full((2, *tasks['new_net'].image_shape), 40.0).at[:, 3, 4].set(90.0)
  outputs = tasks['new_net'].predict(tasks['new_net'].init(jax.random.key(0)), image)
  assert outputs['head0'].shape == (*image.shape[:-1], 3)
  config.networks = f'{config.network},{audited.brightness(tmp_path / "v.onnx", axes=3)}'
  with pytest.raises(errors.UserError, match='2D and in 3D cannot be audited together'):
    setup.make(config)


def test_volumes_through_windows_of_a_fixed_size(tmp_path):
  made = setup.make(config_of(tmp_path, axes=3, shape=[4, 4, 4]))
  assert made.study.window == (6, 8, 11) and made.audited['net'].described.input.window == (4, 4, 4)
  task = setup.tasks(made)['net']
  image = jax.random.uniform(jax.random.key(0), (1, *task.image_shape)) * 100
  variables = task.init(jax.random.key(0))
  slope = jax.grad(lambda x: task.predict(variables, x)['head0'][..., 1].sum())(image)
  assert slope.shape == image.shape and np.isfinite(slope).all() and (slope != 0).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize('rank', [2, 3])
def test_a_results_folder_of_nnunet(rank, tmp_path):
  def change(plans, data):
    data['labels'] = {'background': 0, 'liver': 1, 'tumour': 2}

  config = config_of(tmp_path)
  config.network = str(nnunet_folders.write(tmp_path, rank=rank, folds=2, change=change))
  for name, array in zip(('images', 'labels'), folders.blob(50, (7, 10, 13))):  # a larger case
    suffix = '_0000' * (name == 'images')
    folders.save(tmp_path / 'raw' / f'{name}Tr' / f'zz{suffix}.nii.gz', array)
  made = setup.make(config)
  (one,) = made.audited.values()
  described = one.described
  assert described.output.classes == ('background', 'organ', 'lesion')
  assert described.origin['output.classes'] == 'dataset.json, as the folder names them'
  assert described.input.normalise == ('case_zscore' if rank == 2 else 'nonzero:zscore')
  assert made.fields['spacing'] == ((2.0, 1.0) if rank == 2 else (3.0, 2.0, 1.0))
  assert made.fields['slice_axis'] == (0 if rank == 2 else -1)
  assert any('differs from nnUNetv2_predict' in line for line in one.lines)
  with pytest.raises(errors.UserError, match='are not resampled'):
    config.threat.rounded = True
    setup.make(config)
  tasks = setup.tasks(made)
  (task,) = tasks.values()
  source = setup.load(made, tasks)
  example = source.crop(source.test[0])
  outside = example['labels'] == -1
  assert outside.any() and not example['image'][outside].any()  # as nnU-Net pads, and is cropped
  image, variables = jnp.asarray(example['image'])[None], task.init(None)
  slope = jax.jit(jax.grad(lambda x: jnp.sum(task.predict(variables, x)['head0'][..., 1] ** 2)))(
    image
  )
  assert np.isfinite(slope).all() and (slope[0][~outside] != 0).mean() > 0.9


def test_a_monai_bundle(tmp_path):
  step = {'_target_': 'ScaleIntensityRanged', 'a_min': 0, 'a_max': 200, 'b_min': 0, 'b_max': 1}
  inferer = {'_target_': 'monai.inferers.SlidingWindowInferer', 'roi_size': [8, 8, 4]}
  config = config_of(tmp_path)
  config.network = str(
    monai_bundles.write(
      tmp_path / 'bundle',
      arguments={**monai_bundles.UNET, 'out_channels': 3},
      config={'preprocessing': monai_bundles.transforms(step), 'inferer': inferer},
    )
  )
  made = setup.make(config)
  described = made.audited['bundle'].described
  assert described.input.normalise == 'standard:0:200' and described.input.overlap == 0.25
  assert made.fields['axes'] == 3 and described.input.blend == 'constant'
  tasks = setup.tasks(made)
  source = setup.load(made, tasks)
  image = jnp.asarray(source.crop(source.test[0])['image'])[None]
  variables = tasks['bundle'].init(None)
  outputs = tasks['bundle'].predict(variables, image)['head0']
  assert outputs.shape == (*image.shape[:-1], 3) and np.isfinite(outputs).all()


def test_images_of_the_spacing_of_the_network_are_not_resampled(tmp_path):
  config = config_of(tmp_path)
  config.input.spacing = (3.0, 2.0)
  made = setup.make(config)
  assert made.fields['spacing'] == () and made.audited['net'].described.input.spacing == (3.0, 2.0)


def test_padding_is_not_attacked(sized):
  made, batch = sized
  space = made.space()
  batch['target']['labels'] = jnp.array([[0, 1, -1]])
  moved = space.decode(space.encode(batch) + 0.1, batch)
  np.testing.assert_allclose(moved[0, :, 0], [15, 65, 99], rtol=1e-6)


@pytest.mark.parametrize('mirror', [True, False])
def test_images_of_one_size_keep_their_place_and_statistics(mirror):
  rng = np.random.default_rng(0)
  image = rng.normal(50, 10, (7, 10, 1)).astype(np.float32)
  units = np.array([[20.0], [2.0]], np.float32)
  example = {'image': image, 'labels': np.ones((7, 10), np.int16), 'units': units}
  found = sampling.extended(example, (12, 13), mirror=mirror)
  back = {name: sampling.uncut(found[name], (7, 10)) for name in ('image', 'labels', 'counted')}
  np.testing.assert_allclose(back['image'], image, rtol=1e-6)
  assert (back['labels'] == 1).all() and back['counted'].all()
  outside = ~found['counted']
  assert found['image'].shape == (12, 13, 1) and outside.sum() == 12 * 13 - 70
  assert (found['labels'][outside] == -1).all()
  if mirror:
    assert abs(found['image'].mean() - image.mean()) < 2
    np.testing.assert_array_equal(found['image'][2, 2:12], image[0])
  else:  # the stored value 0
    np.testing.assert_allclose(found['image'][outside] * 2 + 20, 0, atol=1e-5)
  whole = sampling.extended(example, (5, 10), mirror=mirror)
  np.testing.assert_array_equal(whole['image'], image)
  assert whole['counted'].all()


def test_a_mirrored_border_is_read_back_with_its_image(tmp_path):
  config = config_of(tmp_path)
  made = setup.make(config)
  assert made.padding == 'mirror'
  exp = audit.build(config)
  source = exp.data.load()
  host = {'batch_size': 1, 'shard_index': 0, 'shard_count': 1}
  batch = next(iter(pipeline.eval_batches(source.test, crop=source.crop, **host)))
  example = jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)
  border = example['target']['labels'] == -1
  assert border.any()
  of_file = exp.artifacts.lattice(example)
  clean = of_file.place(example['image'])
  whole = np.round(clean) + np.arange(clean.size).reshape(clean.shape) % 7
  image = of_file.image(whole)
  np.testing.assert_allclose(image[~border], of_file._replace(read=None).image(whole)[~border])
  inner = sampling.uncut(image, (8, 11))
  np.testing.assert_array_equal(image, np.pad(inner, ((0, 0), (1, 0), (0, 0)), mode='symmetric'))


@pytest.mark.slow
def test_regions_of_nnunet(tmp_path):
  regions = {'background': 0, 'whole': [1, 2], 'core': [2]}

  def change(plans, data):
    data['labels'] = {**regions, 'inner': [3]}
    data['regions_class_order'] = [1, 2, 3]

  more = {'regions_class_order': [1, 2]}
  config = config_of(tmp_path, folders.nnunet(tmp_path / 'raw', labels=regions, more=more))
  config.network = str(nnunet_folders.write(tmp_path, change=change))
  made = setup.make(config)
  (one,) = made.audited.values()
  assert one.described.output.activation == 'regions' and list(made.study.regions) == [
    'whole',
    'core',
  ]
  tasks = setup.tasks(made)
  (task,) = tasks.values()
  source = setup.load(made, tasks)
  batch = source.crop(source.test[0])
  outputs = task.predict(task.init(None), jnp.asarray(batch['image'])[None])
  assert outputs['head0'].shape[-1] == len(made.study.classes) == 3


@pytest.mark.parametrize('shape', [(6, 8), (5, 6, 8)])
def test_pictures_do_not_show_what_was_added(shape):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, (2, *shape))
  if len(shape) == 3:  # the slice with the most of the labels
    labels[0, 3], labels[1, 2] = 1, 1
  labels[:, ..., 0] = -1
  image = rng.uniform(size=(2, *shape, 1)).astype(np.float32)
  level = np.tile(np.array([[[0.0], [1.0]]]), (2, 1, 1))
  logits = {'head0': rng.normal(size=(2, *shape, 3))}
  example = {'image': image, 'target': {'labels': labels, 'level': level, 'case': np.array([4, 5])}}
  found = label_maps.pictures(examples.Example(example, image + 0.1, logits, logits))
  assert found['image'].shape == (2, 6, 8, 1) and found['seg_adv'].shape == (2, 6, 8)
  change = found['adversarial'] - found['image']
  np.testing.assert_allclose(change[:, :, 0], 0)
  np.testing.assert_allclose(change[:, :, 1:], 0.1, rtol=1e-5)
  assert not found['seg_clean'][:, :, 0].any() and found['seg_clean'][:, :, 1:].all()
  whole = image if len(shape) == 2 else np.stack([image[0, 3], image[1, 2]])
  np.testing.assert_array_equal(found['image'][:, :, 1:], whole[:, :, 1:])
  assert found['index'].tolist() == [4, 5]
