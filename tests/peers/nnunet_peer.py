"""Trains networks with nnunetv2 itself and predicts with them; run by test_nnunet.py.

`python nnunet_peer.py CASES WORK [CONFIGURATION ...]`: CASES is a Decathlon folder of the
hippocampus. WORK then has `results/NAME` (as nnunetv2 leaves them), `images` (cases that were not
trained on) and `maps/NAME` with the label maps of nnunetv2's own predictor, NAME a configuration.
"""

import json
import os
import pathlib
import shutil
import sys

DATASET = 'Dataset004_Hippocampus'
TRAINED, TESTED = 9, 3
FEATURES = 8  # of the first stage, instead of 32: a minute on two cores
BATCH = {'2d': 12, '3d_fullres': 4, '3d_residual': 4}
PATCH = [24, 32, 24]  # of the networks in 3D, smaller than an image: several windows
EPOCHS, ITERATIONS = 2, 30
RATE = 3e-3  # with Adam: the momentum of nnunetv2's own SGD is longer than this training
RESIDUAL = 'dynamic_network_architectures.architectures.unet.ResidualEncoderUNet'


def lay_out(cases, work):
  """Copies cases to the raw layout; the first are trained on, the next only predicted."""
  raw = work / 'raw' / DATASET
  names = sorted(path.name for path in (cases / 'imagesTr').glob('[!.]*.nii.gz'))
  for name in names[: TRAINED + TESTED]:
    place = raw / 'imagesTr' if name in names[:TRAINED] else work / 'images'
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(cases / 'imagesTr' / name, place / name.replace('.nii.gz', '_0000.nii.gz'))
    if name in names[:TRAINED]:
      (raw / 'labelsTr').mkdir(exist_ok=True)
      shutil.copy(cases / 'labelsTr' / name, raw / 'labelsTr' / name)
  described = {
    'channel_names': {'0': 'MRI'},
    'labels': {'background': 0, 'anterior': 1, 'posterior': 2},
    'numTraining': TRAINED,
    'file_ending': '.nii.gz',
  }
  (raw / 'dataset.json').write_text(json.dumps(described))


def plan(work):
  """Plans and preprocesses with nnunetv2; then makes the planned networks small."""
  from nnunetv2.experiment_planning import plan_and_preprocess_api as api

  api.extract_fingerprints([4], num_processes=1)
  api.plan_experiments([4])
  path = work / 'preprocessed' / DATASET / 'nnUNetPlans.json'
  plans = json.loads(path.read_text())
  for name in ('2d', '3d_fullres'):
    found = plans['configurations'][name]
    kwargs = found['architecture']['arch_kwargs']
    kwargs['features_per_stage'] = [min(FEATURES * 2**s, 320) for s in range(kwargs['n_stages'])]
    found['batch_size'] = BATCH[name]
    found['patch_size'] = found['patch_size'] if name == '2d' else PATCH
  residual = json.loads(json.dumps(plans['configurations']['3d_fullres']['architecture']))
  residual['network_class_name'] = RESIDUAL
  kwargs = residual['arch_kwargs']
  kwargs['n_blocks_per_stage'] = [1] + [2] * (kwargs['n_stages'] - 1)
  del kwargs['n_conv_per_stage']
  plans['configurations']['3d_residual'] = {
    'inherits_from': '3d_fullres',
    'architecture': residual,
  }
  path.write_text(json.dumps(plans))
  api.preprocess([4], configurations=['2d', '3d_fullres'], num_processes=[1, 1])


def train(work, name):
  import torch
  from nnunetv2.training.nnUNetTrainer.variants.data_augmentation import nnUNetTrainerNoDA

  os.environ.update(nnUNet_n_proc_DA='0')  # batches in this process; planning needs 1
  torch.manual_seed(0)
  folder = work / 'preprocessed' / DATASET
  trainer = nnUNetTrainerNoDA.nnUNetTrainerNoDA(
    plans={**json.loads((folder / 'nnUNetPlans.json').read_text()), 'continue_training': False},
    configuration=name,
    fold='all',
    dataset_json=json.loads((folder / 'dataset.json').read_text()),
    device=torch.device('cpu'),
  )
  trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, ITERATIONS
  trainer.num_val_iterations_per_epoch = 1
  trainer.oversample_foreground_percent = 1.0

  def adam():
    made = torch.optim.Adam(trainer.network.parameters(), RATE)
    return made, torch.optim.lr_scheduler.ConstantLR(made, factor=1)

  trainer.configure_optimizers = adam
  original = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

  def with_mirrors():
    # Training without augmentation, which is slow, would leave prediction without mirror images.
    found = original()
    trainer.inference_allowed_mirroring_axes = (0, 1) if name == '2d' else (0, 1, 2)
    return found

  trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = with_mirrors
  trainer.run_training()
  shutil.copytree(pathlib.Path(trainer.output_folder_base), work / 'results' / name)


def predict(work, name):
  """Predicts as nnUNetv2_predict, without its search for trainers, which imports every package."""
  import torch
  from nnunetv2.inference import predict_from_raw_data
  from nnunetv2.utilities import get_network_from_plans
  from nnunetv2.utilities.plans_handling import plans_handler

  folder = work / 'results' / name
  plans = plans_handler.PlansManager(json.loads((folder / 'plans.json').read_text()))
  found = plans.get_configuration(name)
  saved = torch.load(folder / 'fold_all' / 'checkpoint_final.pth', weights_only=False)
  network = get_network_from_plans.get_network_from_plans(
    found.network_arch_class_name,
    found.network_arch_init_kwargs,
    found.network_arch_init_kwargs_req_import,
    1,
    3,
    deep_supervision=False,
  )
  predictor = predict_from_raw_data.nnUNetPredictor(device=torch.device('cpu'), allow_tqdm=False)
  predictor.manual_initialization(
    network,
    plans,
    found,
    [saved['network_weights']],
    json.loads((folder / 'dataset.json').read_text()),
    saved['trainer_name'],
    saved['inference_allowed_mirroring_axes'],
  )
  predictor.predict_from_files_sequential(str(work / 'images'), str(work / 'maps' / name))


def main():
  cases, work, *names = sys.argv[1:]
  cases, work = pathlib.Path(cases), pathlib.Path(work)
  for variable, folder in (
    ('raw', 'raw'),
    ('preprocessed', 'preprocessed'),
    ('results', 'trained'),
  ):
    os.environ[f'nnUNet_{variable}'] = str(work / folder)
  os.environ.update(nnUNet_n_proc_DA='1', nnUNet_compile='false', MPLBACKEND='agg')
  lay_out(cases, work)
  plan(work)
  for name in names or BATCH:
    (work / 'maps' / name).mkdir(parents=True, exist_ok=True)
    train(work, name)
    predict(work, name)


if __name__ == '__main__':
  main()
