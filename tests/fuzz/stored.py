"""Inputs of the readers of weights and of what a run writes."""

import json

import numpy as np

from fuzz import readers
from robustmed.models import weights
from robustmed.process import files

_JSON = ('content', 'text', 'json', 'place')
_SILENT = ('flip', 'flips', 'zeros', 'remove', 'double', 'not_utf8', 'number', 'quote', 'name')
_SILENT += ('long_field', 'line_lost', 'line_doubled', 'field_lost', 'wrong_kind', 'other_root')
_TENSORS = {'a.weight': readers.numbers((3, 4)), 'a.bias': readers.numbers((3,))}


def _npz(folder):
  np.savez(folder / 'a.npz', **_TENSORS)


def _json(folder):
  content = {'arm': 'plain', 'levels': [0.5, 1], 'model': {'width': 8, 'name': 'unet'}}
  (folder / 'a.json').write_text(json.dumps(content, indent=1))


READERS = (
  readers.Reader(
    'weights:safetensors',
    lambda folder: weights.write(folder / 'a.safetensors', _TENSORS),
    'a.safetensors',
    lambda folder: weights.read(folder / 'a.safetensors'),
    ('robustmed.models.weights',),
    silent=readers.unchecked('a safetensors file', 'flip', 'flips', 'zeros', 'remove', 'double'),
  ),
  readers.Reader(
    'weights:npz',
    _npz,
    'a.npz',
    lambda folder: weights.read(folder / 'a.npz'),
    ('robustmed.models.weights',),
  ),
  readers.Reader(
    'files:npz',
    _npz,
    'a.npz',
    lambda folder: files.read_arrays(folder / 'a.npz'),
    ('robustmed.process.files',),
  ),
  readers.Reader(
    'files:json',
    _json,
    'a.json',
    lambda folder: files.read_json(folder / 'a.json'),
    ('robustmed.process.files',),
    groups=_JSON,
    silent=readers.unchecked('JSON', *_SILENT),
  ),
)
