"""Inputs of the readers of networks from elsewhere and of networks that a run has trained."""

import functools
import json

import numpy as np
import onnx

from fuzz import readers
from robustmed import networks
from robustmed.networks import checkpoint, description
from robustmed.networks.monai import bundle
from robustmed.training import checkpoints
from support import audited, monai_bundles, nnunet_folders, torch_files

_BYTES = ('flip', 'flips', 'zeros', 'remove', 'double')
_JSON = (*_BYTES, 'not_utf8', 'number', 'quote', 'name', 'long_field', 'line_lost', 'line_doubled')
_JSON += ('field_lost', 'wrong_kind', 'missing')
_HIDDEN = ('predict', 'export', 'digest')  # functions, and what names the bytes of the file
_CARD = {
  'experiment': 'train',
  'arm': 'std',
  'seed': 0,
  'model': {'name': 'unet'},
  'image_shape': [16, 16, 1],
  'module': {
    'name': 'unet',
    'channels': 1,
    'num_classes': 3,
    'base_features': 4,
    'poolings': 1,
    'dtype': 'float32',
  },
  'input': {'normalise': 'zscore', 'orientation': 'yx', 'channels': 1},
  'output': {'kind': 'segmentation', 'classes': ['nothing', 'a', 'b'], 'activation': 'none'},
}
_METADATA = {
  'network_data_format': {'outputs': {'pred': {'channel_def': {'0': 'background', '1': 'spleen'}}}}
}
_STEPS = monai_bundles.transforms(
  {'_target_': 'LoadImaged', 'keys': 'image'},
  {'_target_': 'Orientationd', 'keys': 'image', 'axcodes': 'RAS'},
  {'_target_': 'Spacingd', 'keys': 'image', 'pixdim': [1.5, 1.5, 2.0]},
  {'_target_': 'NormalizeIntensityd', 'keys': 'image'},
)
_INFERER = {'_target_': 'SlidingWindowInferer', 'roi_size': [32, 32, 32], 'overlap': 0.5}


def _loaded(folder, *, name):
  found = networks.load(folder / name)
  return {key: value for key, value in found._asdict().items() if key not in _HIDDEN}


def _onnx(folder):
  audited.brightness(folder / 'a.onnx')


def _external(folder):
  audited.brightness(folder / 'a.onnx')
  model = onnx.load(folder / 'a.onnx')
  onnx.save(
    model, folder / 'a.onnx', save_as_external_data=True, location='a.bin', size_threshold=0
  )


def _elsewhere(content, rng):
  """Weights that lie outside of the folder of the model."""
  model = onnx.ModelProto.FromString(content)
  places = ('../outside/a.bin', '/etc/passwd', '../outside/tree/a.bin', 'sub/../../outside/a.bin')
  for tensor in model.graph.initializer:
    for entry in tensor.external_data:
      if entry.key == 'location':
        entry.value = places[int(rng.integers(len(places)))]
  return model.SerializeToString()


def _explosive(content, rng):
  """Forty functions that each call the one before twice."""
  model = onnx.ModelProto.FromString(content)
  own, make = 'local', onnx.helper.make_node
  opsets = [*model.opset_import, onnx.helper.make_opsetid(own, 1)]
  for number in range(40):
    name = f'f{number - 1}'
    nodes = [make(name, ['a'], ['t'], domain=own), make(name, ['t'], ['b'], domain=own)]
    nodes = nodes if number else [make('Identity', ['a'], ['b'])]
    function = onnx.helper.make_function(own, f'f{number}', ['a'], ['b'], nodes, opsets)
    model.functions.append(function)
  model.opset_import.append(opsets[-1])
  first = model.graph.input[0].name
  model.graph.node.append(make('f39', [first], ['more'], domain=own))
  return model.SerializeToString()


def _nnunet(folder):
  nnunet_folders.write(folder).rename(folder / 'results')


def _monai(folder):
  config = {'preprocessing': _STEPS, 'inferer': _INFERER}
  monai_bundles.write(folder / 'bundle', config=config, metadata=_METADATA)


def _yaml(folder):
  _monai(folder)
  place = folder / 'bundle' / 'configs' / 'inference.json'
  lines = json.loads(place.read_text())
  # JSON is YAML, but a file that people write has one entry a line
  place.with_suffix('.yaml').write_text(
    ''.join(f'{key}: {json.dumps(value)}\n' for key, value in lines.items())
  )
  place.unlink()


def _state(folder):
  tensors = {'a.weight': readers.numbers((3, 4)), 'a.bias': readers.numbers((3,))}
  torch_files.save(folder / 'a.pt', tensors)


def _checkpoint(folder):
  import jax

  module = checkpoint.module_of(_CARD['module'])
  shapes = jax.eval_shape(
    lambda key: module.init(key, np.zeros((1, 16, 16, 1), np.float32), train=False),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)
  checkpoint.write(_CARD, jax.tree.map(draw, shapes), folder / 'std')


def _sidecar(folder):
  (folder / 'a.onnx').write_bytes(b'')
  card = {part: _CARD[part] for part in ('input', 'output')}
  (folder / 'a.json').write_text(json.dumps(card, indent=1))


def _described(folder):
  network = networks.from_function(lambda variables, image: image, {}, channels=1)
  return description.make(network, {}, path=folder / 'a.onnx')


def _network(
  name, make, target, *, inner, modules, silent=_BYTES, groups=('content', 'place'), **more
):
  return readers.Reader(
    f'network:{name}',
    make,
    target,
    functools.partial(_loaded, name=inner),
    modules,
    groups=groups,
    silent=readers.unchecked('its format', *silent),
    **more,
  )


_PLAIN = ('content', 'text', 'json', 'place')
_BUNDLE = ('robustmed.networks.monai.bundle', 'robustmed.networks.monai.config')
_PLANS = ('robustmed.networks.nnunet_plans', 'robustmed.networks.nnunet_folder')
_ONNX = ('robustmed.networks.onnx_file', 'robustmed.onnx.reading')
READERS = (
  _network(
    'onnx', _onnx, 'a.onnx', inner='a.onnx', modules=_ONNX, special={'explosive': _explosive}
  ),
  _network(
    'onnx:external',
    _external,
    'a.bin',
    inner='a.onnx',
    modules=_ONNX,
    silent=(*_BYTES, 'noise', 'extend'),
  ),
  _network(
    'onnx:location',
    _external,
    'a.onnx',
    inner='a.onnx',
    modules=_ONNX,
    special={'elsewhere': _elsewhere},
  ),
  *(
    _network(
      f'nnunet:{name.rpartition("/")[2]}',
      _nnunet,
      f'results/{name}',
      inner='results',
      modules=_PLANS,
      silent=_JSON if name.endswith('.json') else (),
      groups=_PLAIN if name.endswith('.json') else ('content', 'place'),
    )
    for name in ('plans.json', 'dataset.json', 'fold_0/checkpoint_final.pth')
  ),
  *(
    _network(
      f'monai:{name.rpartition("/")[2]}',
      _yaml if name.endswith('yaml') else _monai,
      f'bundle/{name}',
      inner='bundle',
      modules=_BUNDLE,
      silent=silent,
      groups={'json': _PLAIN, 'yaml': ('content', 'text', 'place')}.get(
        name.rpartition('.')[2], ('content', 'place')
      ),
    )
    for name, silent in (
      ('configs/inference.json', _JSON),
      (
        'configs/inference.yaml',
        (*_BYTES, *_JSON[5:12], 'missing', 'truncate', 'shorten', 'comma'),
      ),
      ('configs/metadata.json', (*_JSON, 'other_root')),
      ('models/model.pt', ()),
    )
  ),
  readers.Reader(
    'state:a.pt',
    _state,
    'a.pt',
    lambda folder: bundle.read_state(folder / 'a.pt'),
    ('robustmed.data.files.torch_archive',),
  ),
  _network(
    'checkpoint:network.json',
    _checkpoint,
    'std/network.json',
    inner='std',
    modules=('robustmed.networks.checkpoint',),
    silent=_JSON[:-1],
    groups=_PLAIN,
  ),
  *(
    _network(
      f'checkpoint:{name}',
      _checkpoint,
      f'std/variables/{name}',
      inner='std',
      modules=('robustmed.networks.checkpoint',),
      silent=(),
    )
    for name in ('_METADATA', 'manifest.ocdbt', 'ocdbt.process_0/manifest.ocdbt', 'SHA256SUMS')
  ),
  readers.Reader(
    'card:network.json',
    lambda folder: (folder / 'network.json').write_text(json.dumps(_CARD, indent=1)),
    'network.json',
    checkpoints.read_card,
    ('robustmed.training.checkpoints',),
    groups=_PLAIN,
    silent=readers.unchecked('JSON', *_JSON),
  ),
  readers.Reader(
    'sidecar:a.json',
    _sidecar,
    'a.json',
    _described,
    ('robustmed.networks.description',),
    groups=_PLAIN,
    silent=readers.unchecked('JSON', *_JSON),
  ),
)
