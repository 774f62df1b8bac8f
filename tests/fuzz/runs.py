"""Inputs of the readers of what a run writes: results, logs, locks and prepared data."""

import functools
import json
import pathlib

import numpy as np
import pandas as pd

from fuzz import readers
from robustmed import data
from robustmed.data import store
from robustmed.evaluation import checks, statistics
from robustmed.process import checksums, files
from robustmed.report import inputs
from robustmed.runs import artifacts, locks, workdir
from robustmed.training import loop
from support import raw_folders

_BYTES = ('flip', 'flips', 'zeros', 'remove', 'double')
_JSON = (*_BYTES, 'not_utf8', 'number', 'quote', 'name', 'long_field', 'line_lost', 'line_doubled')
_JSON += ('field_lost', 'wrong_kind')
_WORDS = (
  *(*_BYTES, 'truncate', 'shorten', 'extend', 'number', 'name', 'line_lost', 'line_doubled'),
  *('quote', 'long_field', 'comma', 'not_utf8'),
)
_PLAIN = ('content', 'text', 'json', 'place')
_TEXT = ('content', 'text', 'place')
_CONFIG = {'experiment': 'quickstart', 'arms': {'std': {}}, 'evaluate': {'levels': [0.1, 0.2]}}


def _rows():
  lines = [
    (arm, attack, eps, index, 0, index // 2, 0.9 - eps * (1 + index / 9))
    for arm in ('std', 'adv')
    for attack, eps in (('none', 0.0), ('pgd', 0.1), ('pgd', 0.2))
    for index in range(6)
  ]
  columns = [*('arm', 'attack', 'eps', 'index', 'seed', 'group', 'DICE')]
  return pd.DataFrame(lines, columns=columns)


def _run(folder):
  """A workdir with results."""
  results = folder / 'results'
  results.mkdir()
  (folder / 'logs').mkdir()
  rows = _rows()
  rows.to_parquet(results / 'rows.parquet')
  summary = statistics.summary(rows, metrics=['DICE'])
  summary.to_csv(results / 'summary.csv', index=False)
  summary[summary.attack == 'pgd'].to_csv(results / 'worst.csv', index=False)
  shares = {'arm': ['std', 'adv'], 'eps': 0.1, '_member': 'pgd', 'share': 1.0}
  pd.DataFrame(shares).to_csv(results / 'worst_members.csv', index=False)
  rows[rows.attack == 'pgd'].to_parquet(results / 'worst.parquet')
  found = checks.run(rows, metric='DICE', higher_is_better=True)
  (results / 'checks.json').write_text(json.dumps([c._asdict() for c in found], indent=1))
  examples = {'arm': ['adv', 'std'], 'attack': ['pgd'] * 2, 'eps': [0.1] * 2, 'index': [1, 2]}
  images = dict.fromkeys(('image', 'adversarial'), readers.numbers((2, 4, 4, 1)))
  np.savez(results / 'examples.npz', **{k: np.array(v) for k, v in examples.items()}, **images)
  log = {'arm': 'std', 'seed': 0, 'step': range(9), 'seconds': range(9), 'loss': 0.5}
  pd.DataFrame(log).to_csv(folder / 'logs' / 'train.csv', index=False)
  (folder / 'config.json').write_text(json.dumps(_CONFIG, indent=1))
  (folder / 'data.json').write_text(json.dumps(_INFO, indent=1))
  made = {'date': '2031-02-03T04:05:06+00:00', 'commit': 'c0ffee', 'version': '9'}
  (folder / 'evaluated.json').write_text(json.dumps(made, indent=1))
  (folder / 'env.json').write_text(json.dumps({'python': '3', 'versions': {'jax': '1'}}, indent=1))


def _summed(folder):
  """The same as a run writes it, with check sums."""
  _run(folder)
  with checksums.keep(folder / 'results'):
    for path in sorted((folder / 'results').iterdir()):
      with files.replacing(path) as temporary:
        temporary.write_bytes(path.read_bytes())


def _summed_inputs(folder):
  with checksums.keep(folder / 'results'):
    return inputs.read(folder), files.read_arrays(folder / 'results' / 'examples.npz')


def _arms(folder):
  """What a resumed run reads of stored pictures."""
  return artifacts.stored_arms(folder / 'results' / 'examples.npz')


def _log(folder):
  rows = ''.join(f'{step},{step / 2},{0.5}\n' for step in (1, 2, 3))
  (folder / 'std.csv').write_text(f'step,seconds,std/loss\n{rows}')


_ENDS = ('empty', 'truncate', 'shorten', 'extend')
_LOCK = {'host': 'elsewhere', 'boot': 'b', 'pid': 1, 'born': '2', 'started': 's', 'token': 't'}


def _lock(folder):
  (folder / 'locks').mkdir()
  (folder / 'locks' / 'train.std.json').write_text(json.dumps({**_LOCK, 'beat': 3}, indent=1))


def _taken(folder):
  held, before = locks.Held(folder), (locks.WATCH, locks._POLL)
  locks.WATCH, locks._POLL = 0.2, 0.05
  try:
    return held.try_acquire('train.std') is None
  finally:
    locks.WATCH, locks._POLL = before
    held.release()


_SOURCE = raw_folders.CONFIGS['phantom_abdomen']


def _place() -> str:
  """The folder of the prepared data."""
  fields, source = data.fields_of(_SOURCE), data.SOURCES['phantom_abdomen']
  marked = source.fingerprint(fields)
  return str(store.location(source.Builder, root=pathlib.Path('cache'), fingerprint=marked))


def _loaded(folder):
  found = data.load({**_SOURCE, 'cache_dir': str(folder / 'cache')})
  info = {key: value for key, value in found.info.items() if key != 'folder'}
  return info, [list(split) for split in (found.train, found.validation, found.test)]


def _claimed(folder):
  return workdir.claim(folder, _CONFIG)


_INFO = {'name': 'a', 'fingerprint': 'f', 'sizes': {'train': 3}, 'groups': {'train': 2}}


def _report(name, *, silent=(), groups=('content', 'place')):
  return readers.Reader(
    f'report:{name}',
    _run,
    name,
    inputs.read,
    ('robustmed.report.inputs',),
    groups=groups,
    silent=readers.unchecked('its format', *silent),
  )


def _store(name, *, groups):
  return readers.Reader(
    f'prepared:{name}',
    lambda folder: _loaded(folder),
    f'{_place()}/{name}',
    _loaded,
    ('robustmed.data.store', 'robustmed.process.checksums'),
    groups=groups,
  )


READERS = (
  *(
    readers.Reader(
      f'sums:{name}',
      _summed,
      f'results/.sha256/{name}.sha256',
      _summed_inputs,
      ('robustmed.process.checksums',),
      groups=_TEXT,
    )
    for name in ('rows.parquet', 'summary.csv', 'checks.json', 'examples.npz')
  ),
  _report('results/rows.parquet', silent=_BYTES),
  _report('results/summary.csv', silent=_WORDS, groups=_TEXT),
  _report('results/worst.csv', silent=(*_WORDS, 'missing'), groups=_TEXT),
  _report('results/worst_members.csv', silent=(*_WORDS, 'missing'), groups=_TEXT),
  _report('results/checks.json', silent=(*_JSON, 'missing', 'other_root'), groups=_PLAIN),
  _report('results/examples.npz', silent=('missing',)),
  _report('logs/train.csv', silent=(*_WORDS, 'missing'), groups=_TEXT),
  _report('config.json', silent=(*_JSON, 'missing', 'other_root'), groups=_PLAIN),
  _report('env.json', silent=(*_JSON, 'missing', 'other_root'), groups=_PLAIN),
  _report('data.json', silent=(*_JSON, 'missing', 'other_root'), groups=_PLAIN),
  _report('evaluated.json', silent=(*_JSON, 'missing', 'other_root'), groups=_PLAIN),
  readers.Reader(
    'artifacts:examples.npz',
    _run,
    'results/examples.npz',
    _arms,
    ('robustmed.runs.artifacts',),
    silent=readers.unchecked('nothing', 'missing'),
  ),
  readers.Reader(
    'workdir:config.json',
    _run,
    'config.json',
    _claimed,
    ('robustmed.runs.workdir',),
    groups=_PLAIN,
    silent=readers.unchecked('JSON', *_JSON, 'missing'),
  ),
  readers.Reader(
    'workdir:data.json',
    lambda folder: (folder / 'data.json').write_text(json.dumps(_INFO, indent=1)),
    'data.json',
    lambda folder: workdir.claim_data(folder, _INFO),
    ('robustmed.runs.workdir',),
    groups=_PLAIN,
  ),
  readers.Reader(
    'log:std.csv',
    _log,
    'std.csv',
    functools.partial(lambda folder: loop.rows_until(folder / 'std.csv', 2)),
    ('robustmed.training.loop',),
    groups=_TEXT,
    silent=readers.unchecked('CSV', *_WORDS, 'missing', 'empty', 'nul'),
  ),
  readers.Reader(
    'lock:train.std.json',
    _lock,
    'locks/train.std.json',
    _taken,
    ('robustmed.runs.locks',),
    groups=_PLAIN,
    silent=readers.unchecked('a lock', *_JSON, *_ENDS, 'missing', 'link_folder'),
  ),
  *(
    _store(name, groups=_PLAIN)
    for name in ('groups.json', 'counts.json', 'facts.json', 'features.json', 'dataset_info.json')
  ),
  _store('SHA256SUMS', groups=_TEXT),
)
