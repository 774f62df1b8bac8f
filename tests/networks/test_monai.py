"""Bundles of MONAI: what is read, what is refused; parity with MONAI is in tests/peers."""

import json
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, networks
from robustmed.networks import description, normalise, training
from robustmed.networks.monai import bundle
from support import monai_bundles

METADATA = {
  'network_data_format': {
    'outputs': {'pred': {'channel_def': {'1': 'spleen', '0': 'background'}}},
  }
}
STEPS = (
  {'_target_': 'LoadImaged', 'keys': 'image'},
  {'_target_': 'EnsureChannelFirstd', 'keys': 'image'},
  {'_target_': 'Orientationd', 'keys': 'image', 'axcodes': 'RAS'},
  {'_target_': 'Spacingd', 'keys': 'image', 'pixdim': [1.5, 1.25, 2], 'mode': 'bilinear'},
  {
    '_target_': 'ScaleIntensityRanged',
    'keys': 'image',
    'a_min': -57,
    'a_max': 164,
    'b_min': 0,
    'b_max': 1,
    'clip': True,
  },
  {'_target_': 'EnsureTyped', 'keys': '@image_key'},
)


def test_what_a_bundle_says(tmp_path):
  config = {
    'preprocessing': monai_bundles.transforms(*STEPS),
    'inferer': {
      '_target_': 'SlidingWindowInferer',
      'roi_size': '@roi',
      'sw_batch_size': 4,
      'overlap': 0.625,
      'mode': 'gaussian',
    },
    'roi': [8, '@side', 12],
    'side': 10,
    'levels': [4, 6],
    'evaluator': {'_target_': '$__import__("os").system("touch ran")'},
  }
  arguments = {**monai_bundles.UNET, 'channels': '@levels'}
  folder = monai_bundles.write(
    tmp_path / 'spleen', arguments=arguments, config=config, metadata=METADATA
  )
  network = networks.load(folder)
  made = description.make(network, {}, path=folder, affines=[np.eye(4)])
  assert network.name == 'spleen' and network.format == 'MONAI bundle, UNet'
  assert made.input.orientation == 'xyz' and made.input.spacing == (2.0, 1.25, 1.5)
  assert made.input.normalise == 'window:-57:164' and made.input.window == (8, 10, 12)
  assert made.input.overlap == 0.625 and made.input.blend == 'gaussian'
  assert made.output.classes == ('background', 'spleen')
  assert made.origin['input.normalise'] == 'configs/inference.json'
  turned = description.make(network, {}, affines=[np.diag([-1.0, 1, 1, 1])])
  assert turned.input.orientation == '-xyz' and turned.origin['input.orientation'] != 'guess'
  image = jax.random.normal(jax.random.key(0), (2, 8, 6, 4, 1))
  found = jax.jit(network.predict)(network.variables, image)
  assert found.shape == (2, 8, 6, 4, 2) and np.isfinite(found).all() and network.multiple() == 2
  made = training.split(network)
  assert not made.frozen and any(key.endswith('adn.A.weight') for key in network.variables)


@pytest.mark.parametrize(
  ('step', 'wanted'),
  [
    ({'_target_': 'ScaleIntensityd'}, 'minmax'),
    ({'_target_': 'NormalizeIntensityd', 'channel_wise': True}, 'zscore'),
    ({'_target_': 'NormalizeIntensityd', 'nonzero': True}, 'present'),
    ({'_target_': 'NormalizeIntensityd', 'subtrahend': 3, 'divisor': 0.5}, 'standard:3:0.5'),
    (
      {'_target_': 'ScaleIntensityRanged', 'a_min': 10, 'a_max': 30, 'b_min': -1, 'b_max': 1},
      'standard:20:10',
    ),
    (
      {
        '_target_': 'ScaleIntensityRanged',
        'a_min': 10,
        'a_max': 30,
        'b_min': -1,
        'b_max': 1,
        'clip': True,
      },
      'ct:10:30:20:10',
    ),
    ({'_target_': 'NormalizeIntensityd', '_disabled_': True}, 'none'),
    ({'_target_': 'ScaleIntensityRangePercentilesd', 'lower': 1}, None),
    ({'_target_': 'NormalizeIntensityd', 'subtrahend': '$mean'}, None),
  ],
)
def test_intensities(step, wanted, tmp_path):
  config = {'preprocessing': monai_bundles.transforms(step)}
  network = networks.load(monai_bundles.write(tmp_path / 'b', config=config))
  found = network.stated.get('input.normalise', (None,))[0]
  assert found == wanted
  if wanted is None:
    assert step['_target_'] in network.notes[0] and 'set input.normalise' in network.notes[1]


@pytest.mark.parametrize('apart', [True, False])
def test_channels_that_are_scaled_together(apart, tmp_path):
  step = {'_target_': 'NormalizeIntensityd', 'channel_wise': apart}
  arguments = {**monai_bundles.UNET, 'in_channels': 2}
  config = {'preprocessing': monai_bundles.transforms(step)}
  network = networks.load(monai_bundles.write(tmp_path / 'b', arguments=arguments, config=config))
  assert ('input.normalise' in network.stated) is apart


def test_zscore_over_what_is_present():
  image = jnp.array([0.0, 2.0, 4.0, 0.0]).reshape(1, 4, 1)
  both = jnp.concatenate([image, 0 * image])
  found = normalise.parse('present')(both)
  np.testing.assert_allclose(found[0, :, 0], [0, -1, 1, 0], rtol=1e-5)
  np.testing.assert_array_equal(found[1], 0)


def _added(tensors):
  tensors['other.weight'] = np.zeros(3, np.float32)


def _removed(tensors):
  del tensors['model.0.conv.weight']


def _reshaped(tensors):
  tensors['model.0.conv.weight'] = tensors['model.0.conv.weight'][:3]


def _broken(tensors):
  tensors['model.0.conv.bias'][0] = np.nan


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (_added, r"tensor 'other.weight' \(1 such\) has no place in UNet"),
    (_removed, r"no tensor 'model.0.conv.weight', which the network needs"),
    (_reshaped, r"'model.0.conv.weight' has the shape \[3, 1, 3, 3, 3\]"),
    (_broken, r"tensor 'model.0.conv.bias' has NaN"),
  ],
)
def test_weights_that_do_not_fit(change, said, tmp_path):
  with pytest.raises(errors.UserError, match=said):
    networks.load(monai_bundles.write(tmp_path / 'b', change=change))


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'_target_': 'monai.networks.nets.DiNTS'}, r"DiNTS' is none of .*SwinUNETR.*export it"),
    ({'_target_': 'mine.UNet'}, "'mine.UNet' is none of"),
    ({'channels': '$[4, 6]'}, r"channels is the expression '\$\[4, 6\]'.*export it"),
    ({'channels': '@there'}, "'@there', which is not there"),
    ({'dilation': 2}, "argument 'dilation' is not understood"),
    ({'norm': 'layer_nd'}, "norm 'layer_nd' is not understood"),
    ({'act': ['elu', {'beta': 1}]}, "act 'elu': arguments"),
    ({'kernel_size': 4}, 'even size'),
    ({'spatial_dims': 1}, 'in 1D'),
    ({'strides': ['x']}, 'does not fit UNet'),
    ({'channels': [10**9, 10**9]}, r'needs \[1000000000, 1, 3, 3, 3\]'),
    ({'norm': {}}, 'does not fit UNet|not understood'),
    ({'act': 5}, 'does not fit UNet|not understood'),
  ],
)
def test_networks_that_are_not_understood(changes, said, tmp_path):
  folder = monai_bundles.write(tmp_path / 'b')
  path = folder / 'configs' / 'inference.json'
  content = json.loads(path.read_text())
  content['network_def'].update(changes)
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match=said) as caught:
    networks.load(folder)
  assert '\n' not in str(caught.value)


def test_windows_that_are_too_large_for_attention():
  with pytest.raises(errors.UserError, match='windows of'):
    bundle.NETWORKS['SwinUNETR'](1, 2, window_size=10**6)


def test_files_that_are_missing_or_would_run_code(tmp_path, monkeypatch):
  folder = monai_bundles.write(tmp_path / 'b')
  model, config = folder / 'models' / 'model.pt', folder / 'configs' / 'inference.json'
  with zipfile.ZipFile(folder / 'models' / 'model.ts', 'w') as archive:
    archive.writestr('model/code/__torch__.py', '')
  model.rename(tmp_path / 'kept.pt')
  with pytest.raises(errors.UserError, match=r'model\.ts: TorchScript would run code; export it'):
    networks.load(folder)
  (folder / 'models' / 'model.ts').rename(model)
  with pytest.raises(errors.UserError, match=r'model\.pt: TorchScript would run code; export it'):
    networks.load(folder)
  model.write_bytes((20).to_bytes(8, 'little') + b'{"a": 1}')
  with pytest.raises(errors.UserError, match='is a safetensors file by its content'):
    networks.load(folder)
  model.unlink()
  with pytest.raises(errors.UserError, match=r'has no models/model\.pt'):
    networks.load(folder)
  (tmp_path / 'kept.pt').rename(model)
  text = config.read_text()
  config.write_text('{')
  with pytest.raises(errors.UserError, match='cannot be parsed'):
    networks.load(folder)
  config.unlink()
  (folder / 'configs' / 'inference.yaml').write_text(text)  # JSON is YAML, too
  monkeypatch.setitem(sys.modules, 'yaml', None)
  with pytest.raises(errors.UserError, match='needs PyYAML'):
    networks.load(folder)
  monkeypatch.undo()
  pytest.importorskip('yaml')
  assert networks.load(folder).channels == 1
  (folder / 'configs' / 'inference.yaml').write_text('inferer: {a: 1}\ninferer: {a: 2}\n')
  with pytest.raises(errors.UserError, match="has 'inferer' twice"):
    networks.load(folder)
