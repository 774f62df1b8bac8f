"""Results folders of nnU-Net v2: what is read, and what is refused in one line."""

import json
import zipfile

import numpy as np
import pytest

from robustmed import errors
from robustmed.networks import nnunet_plans, nnunet_predict
from support import nnunet_folders, torch_files


def _refused(folder, match, *, load=nnunet_predict.load):
  with pytest.raises(errors.UserError, match=match) as caught:
    load(folder)
  text = str(caught.value)
  assert '\n' not in text and len(text) < 500 and folder.parent.name in text, text


def test_folder_is_read(tmp_path):
  folder = nnunet_folders.write(tmp_path, folds=2, mirrored=(0, 1))
  plan = nnunet_plans.read(folder)
  assert plan.configuration == '2d' and plan.trainer == 'nnUNetTrainer'
  assert plan.patch == (8, 12) and plan.spacing == (2, 1) and plan.mirrored == (0, 1)
  assert plan.labels == nnunet_plans.Labels(
    ('background', 'organ', 'lesion'), (0, 1, 2), False, None
  )
  assert [fold.path.parent.name for fold in plan.folds] == ['fold_0', 'fold_1']
  assert plan.resample_image.options['order'] == 3 and plan.resample_logits.options['order'] == 1
  assert nnunet_plans.is_results(folder) and nnunet_plans.is_results(folder / 'fold_1')
  assert not nnunet_plans.is_results(tmp_path)
  one = nnunet_plans.read(folder / 'fold_1')
  assert [fold.path.parent.name for fold in one.folds] == ['fold_1']
  assert len(nnunet_plans.read(folder, folds=(1,)).folds) == 1


def test_names_of_wrappers_and_repeats_are_dropped(tmp_path):
  weights = nnunet_plans.read(nnunet_folders.write(tmp_path)).folds[0].weights
  assert 'encoder.stages.0.0.convs.0.conv.weight' in weights
  assert not [name for name in weights if '_orig_mod' in name or 'all_modules' in name]
  assert not [name for name in weights if name.startswith('decoder.encoder.')]


def test_folds_and_checkpoints_that_are_chosen(tmp_path):
  folder = nnunet_folders.write(tmp_path)
  final = folder / 'fold_0' / 'checkpoint_final.pth'
  (folder / 'fold_all').mkdir()
  (folder / 'fold_all' / 'checkpoint_final.pth').write_bytes(final.read_bytes())
  assert [f.path.parent.name for f in nnunet_plans.read(folder).folds] == ['fold_0']
  assert [f.path.parent.name for f in nnunet_plans.read(folder, folds=('all',)).folds] == [
    'fold_all'
  ]
  final.rename(final.with_name('checkpoint_best.pth'))
  assert [f.path.parent.name for f in nnunet_plans.read(folder).folds] == ['fold_all']
  best = nnunet_plans.read(folder, checkpoint='checkpoint_best.pth')
  assert best.folds[0].path.name == 'checkpoint_best.pth'
  _refused(folder, 'fold_X/checkpoint_final.pth', load=lambda f: nnunet_plans.read(f, folds=(3,)))


def test_inherited_configuration(tmp_path):
  def change(plans, data):
    parent = plans['configurations'].pop('2d')
    plans['configurations']['base'] = {**parent, 'patch_size': [16, 16]}
    plans['configurations']['2d'] = {'inherits_from': 'base', 'patch_size': [8, 4]}

  plan = nnunet_plans.read(nnunet_folders.write(tmp_path, change=change))
  assert plan.patch == (8, 4) and plan.spacing == (2, 1)


def test_plans_from_before_architectures(tmp_path):
  def change(plans, data):
    found = plans['configurations']['2d']
    kwargs = found.pop('architecture')['arch_kwargs']
    found.update(
      UNet_class_name='PlainConvUNet',
      UNet_base_num_features=4,
      unet_max_num_features=6,
      n_conv_per_stage_encoder=kwargs['n_conv_per_stage'],
      n_conv_per_stage_decoder=kwargs['n_conv_per_stage_decoder'],
      conv_kernel_sizes=kwargs['kernel_sizes'],
      pool_op_kernel_sizes=kwargs['strides'],
    )
    data['modality'] = data.pop('channel_names')
    plans['foreground_intensity_properties_by_modality'] = plans.pop(
      'foreground_intensity_properties_per_channel'
    )

  old = nnunet_plans.read(nnunet_folders.write(tmp_path / 'old', change=change))
  new = nnunet_plans.read(nnunet_folders.write(tmp_path / 'new'))
  assert old.architecture == new.architecture and old.architecture.leak == 0.01
  assert old.channels == new.channels == ('scan 0',)


def test_regions_and_ignored_labels(tmp_path):
  data = nnunet_folders.dataset()
  data['labels'] = {'background': 0, 'whole': [1, 2], 'core': [2], 'ignore': 3}
  data['regions_class_order'] = [1, 2]
  labels = nnunet_plans.labels_of(data)
  assert labels == nnunet_plans.Labels(('whole', 'core'), (1, 2), True, 3)
  data['regions_class_order'] = [1]
  with pytest.raises(ValueError, match='regions_class_order'):
    nnunet_plans.labels_of(data)
  with pytest.raises(ValueError, match='not 0, 1, 2'):
    nnunet_plans.labels_of({'labels': {'background': 0, 'organ': 2}})


def _set(**values):
  return lambda plans, data: plans['configurations']['2d'].update(values)


def _set_arguments(**values):
  return lambda plans, data: plans['configurations']['2d']['architecture']['arch_kwargs'].update(
    values
  )


def _set_network(plans, data):
  plans['configurations']['2d']['architecture']['network_class_name'] = 'mine.Swin'


CHANGES = {
  'cascade': (_set(previous_stage='3d_lowres'), 'cascade'),
  'custom network': (_set_network, "'mine.Swin'.*onnx"),
  'custom preprocessor': (_set(preprocessor_name='Mine'), "'Mine'"),
  'custom normalisation': (_set(normalization_schemes=['Mine']), "'Mine'"),
  'custom resampling': (_set(resampling_fn_data='mine'), "'mine'"),
  'circle': (_set(inherits_from='2d'), 'inherits from itself'),
  'no patch': (_set(patch_size=None), 'not understood'),
  'patch without end': (_set(patch_size=[10**6, 10**6]), 'patch_size'),
  'spacing of nothing': (_set(spacing=[0, 1]), 'spacing'),
  'stages without end': (_set_arguments(n_stages=10**9), 'whole number from 2 to 12'),
  'features without end': (_set_arguments(features_per_stage=10**9), 'whole number'),
  'other operators': (_set_arguments(nonlin='os.system'), 'os.system'),
  'unknown argument': (_set_arguments(attention=True), "'attention'"),
  'axes': (lambda plans, data: plans.update(transpose_forward=[0, 0, 1]), 'transpose_forward'),
  'no labels': (lambda plans, data: data.pop('labels'), "has no 'labels'"),
  'channels': (lambda plans, data: data.update(channel_names={}), 'modality'),
}


@pytest.mark.parametrize('name', CHANGES)
def test_plans_that_are_refused(name, tmp_path):
  change, match = CHANGES[name]
  _refused(nnunet_folders.write(tmp_path, change=change), match)


def test_trainers_of_ones_own_are_refused_by_name(tmp_path):
  _refused(nnunet_folders.write(tmp_path, trainer='nnUNetTrainerUMamba'), 'nnUNetTrainerUMamba')


@pytest.mark.parametrize(
  'trainer', ['nnUNetTrainer_250epochs', 'nnUNetTrainerDA5', 'nnUNetTrainerNoDeepSupervision']
)
def test_trainers_of_nnunet_itself(trainer, tmp_path):
  assert nnunet_plans.read(nnunet_folders.write(tmp_path, trainer=trainer)).trainer == trainer


def test_files_that_are_missing_or_damaged(tmp_path):
  folder = nnunet_folders.write(tmp_path)
  plans = (folder / 'plans.json').read_text()
  (folder / 'plans.json').write_text(plans[:-5])
  _refused(folder, 'plans.json: no JSON')
  (folder / 'plans.json').write_text('[' * 100_000)
  _refused(folder, 'plans.json: no JSON')
  (folder / 'plans.json').write_text('[]')
  _refused(folder, 'must be an object')
  (folder / 'plans.json').unlink()
  _refused(folder, 'No such file.*plans.json, dataset.json')
  (folder / 'plans.json').write_text(plans)
  path = folder / 'fold_0' / 'checkpoint_final.pth'
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  _refused(folder, 'truncated')
  path.unlink()
  _refused(folder, 'fold_X/checkpoint_final.pth')
  _refused(tmp_path / 'absent' / 'x', 'no such folder')


def test_checkpoints_that_would_run_code(tmp_path):
  folder = nnunet_folders.write(
    tmp_path,
    more={'logging': torch_files.name('os', 'system') + torch_files.text('true') + b'\x85R'},
  )
  _refused(folder, 'imports os.system')


def test_checkpoints_of_something_else(tmp_path):
  folder = nnunet_folders.write(tmp_path)
  path = folder / 'fold_0' / 'checkpoint_final.pth'
  torch_files.save(path, {'network_weights': np.zeros(3, np.float32)})
  _refused(folder, 'is no checkpoint of nnU-Net v2')


def _weights(folder):
  found = json.loads((folder / 'plans.json').read_text())['configurations']['2d']
  return nnunet_folders.weights(found, classes=3, channels=1)


@pytest.mark.parametrize('fault', ['missing', 'extra', 'shape', 'nan', 'whole'])
def test_weights_that_do_not_fit(fault, tmp_path):
  folder = nnunet_folders.write(tmp_path)
  weights = _weights(folder)
  name = 'decoder.seg_layers.0.bias'
  if fault == 'missing':
    del weights[name]
  elif fault == 'extra':
    weights['encoder.attention.weight'] = np.zeros(3, np.float32)
    name = 'encoder.attention.weight'
  elif fault == 'shape':
    weights[name] = np.zeros(4, np.float32)
  elif fault == 'nan':
    weights[name] = np.full(3, np.nan, np.float32)
  else:
    weights[name] = np.zeros(3, np.int64)
  nnunet_folders.checkpoint(folder / 'fold_0' / 'checkpoint_final.pth', weights, name='2d')
  _refused(folder, name)


def test_tensors_that_are_larger_than_the_file(tmp_path):
  """A storage of zeros that the archive has compressed."""
  folder = nnunet_folders.write(
    tmp_path,
    change=lambda plans, data: plans['configurations']['2d']['architecture']['arch_kwargs'].update(
      features_per_stage=[256, 256]
    ),
  )
  path = folder / 'fold_0' / 'checkpoint_final.pth'
  nnunet_folders.checkpoint(path, {k: 0 * v for k, v in _weights(folder).items()}, name='2d')
  with zipfile.ZipFile(path) as stored:
    members = {name: stored.read(name) for name in stored.namelist()}
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed:
    for name, content in members.items():
      packed.writestr(name, content)
  _refused(folder, 'larger than the file')
