"""Parses a command line into a checked configuration."""

import argparse
import difflib
import importlib.util
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from robustmed import errors
from robustmed.process import files, links, memory, tool
from robustmed.runs.compilation import targets

_PACKAGE = pathlib.Path(__file__).parents[1]
# The configurations that come with the package: in an installed one, or beside it in a checkout.
CONFIGS = next(
  (root / 'configs' for root in (_PACKAGE, _PACKAGE.parent) if (root / 'configs').is_dir()),
  _PACKAGE / 'configs',
)
STAGES = ('all', 'describe', 'plan', 'compile', 'train', 'evaluate', 'report')
_SEEDS = 2**31 - 10**8  # a run adds to its seed for each network and pool
_EPILOG = """\
Any field of the configuration can be set:
  --config.train.steps=100 --config.evaluate.levels="(0.01,0.07)"
so can every setting of an attack, whether the file names it or not:
  --config.evaluate.attacks.pgd_seg.restarts=5

--config takes a file, or the name of a configuration that comes with the package. Other commands:
robustmed doctor (is this machine fit?), robustmed froc, robustmed lidc_masks; each has --help.
Where it is not installed, `python -m robustmed.main` stands for robustmed.

examples:
  robustmed quickstart:smoke --workdir runs/smoke
  robustmed quickstart --stage describe
  robustmed quickstart --workdir runs/quickstart --stage train --arms adv
  robustmed spine --workdir runs/spine --stage plan --jobs 8
  robustmed spine:paper --stage compile --target v5e-16
  robustmed quickstart --workdir runs/other --stage evaluate \\
      --checkpoint runs/quickstart/checkpoints/adv/seed0 \\
      --config.data.source=lumbar_disks --config.data.dir=DIR
"""
# Types of settings whose default is None.
_TYPES = {
  'step_size': float,
  'relative_step': float,
  'max_change': float,
  'bounds': tuple,
  'levels': tuple,
  'keep': str,
}


class Command(NamedTuple):
  config: ml_collections.ConfigDict
  workdir: files.Path | None
  stage: str
  arms: tuple[str, ...]  # () = all
  checkpoint: files.Path | None
  coordinator: str
  num_processes: int
  process_id: int
  distributed: bool
  jobs: int = 1
  target: str = ''
  programs: tuple[str, ...] = ()
  largest: bool = False
  full: bool = False
  allow_memory: bool = False
  follow_links: bool = False
  rerun_flags: tuple[str, ...] = ()  # those of the same run, without --stage and --arms


def parser() -> argparse.ArgumentParser:
  out = tool.Parser(
    prog='python -m robustmed.main',
    description='Trains, attacks and evaluates medical-image networks; one config per experiment.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = out.add_argument
  add(
    '--config',
    metavar='NAME[:PRESET]',
    help='experiment, as spine or configs/spine.py; --config may be left out before it',
  )
  add('--workdir', metavar='DIR', help='where checkpoints, results and the report go')
  add('--stage', choices=STAGES, default='all', help='what to do (default: all)')
  add('--arms', metavar='A,B', help='only these arms (and those they need)')
  add(
    '--jobs',
    type=int,
    metavar='N',
    help='--stage plan: how many machines there are; compile: programs at once (2)',
  )
  add('--target', metavar='KIND-N', help=f'--stage compile: {targets.EXAMPLES}')
  add('--programs', metavar='A,B', help="--stage compile: only these, as train or 'attack pgd'")
  add('--largest', action='store_true', help='--stage compile: also the most examples that fit')
  add('--full', action='store_true', help='--stage compile: optimise as a run does, for longer')
  add('--checkpoint', metavar='DIR', help='attack this saved network instead of training')
  add('--allow-memory', action='store_true', help='train also what seems to need too much memory')
  add(links.FOLLOW, action='store_true', help='data may lie where links in their folder lead to')
  several = out.add_argument_group('several hosts (the same command on each)')
  several.add_argument('--distributed', action='store_true', help="read the cluster's environment")
  several.add_argument(
    '--coordinator', default='', metavar='HOST:PORT', help='or the address of process 0'
  )
  several.add_argument('--num_processes', type=int, default=0)
  several.add_argument('--process_id', type=int, default=-1)
  return out


def parse(words: Sequence[str]) -> Command:
  """Reads the command line; every mistake in it is a `UserError`."""
  words = list(words)
  if words and not words[0].startswith('-'):
    words.insert(0, '--config')
  known, overrides = parser().parse_known_args(words)
  if not known.config:
    raise errors.UserError(
      'no configuration is named: robustmed quickstart:smoke --workdir runs/smoke, or --config '
      'FILE.py; see --help'
    )
  target = targets.chosen(known)
  config = load_config(known.config)
  _apply(config, _names_of_attacks(overrides))
  list_settings(config)
  defaults = dict(_leaves(config))
  _apply(config, overrides)
  _check_values(config, defaults)
  config.lock()
  _check_folder(config)
  _check_seed(config)
  needs_workdir = config.experiment != 'benchmark' and known.stage not in ('describe', 'compile')
  if needs_workdir and not known.workdir:
    raise errors.UserError(f'--stage {known.stage} needs --workdir DIR')
  if known.checkpoint and known.stage not in ('all', 'evaluate', 'report'):
    raise errors.UserError('--checkpoint can be used with --stage evaluate, report or all only')
  wants = known.stage == 'plan' and known.jobs is None
  if wants or (known.jobs is not None and known.stage not in ('plan', 'compile')):
    raise errors.UserError('--stage plan needs --jobs N, compile may have it, and no other stage')
  arms = tuple(arm.strip() for arm in (known.arms or '').split(',') if arm.strip())
  if known.arms is not None and not arms:
    raise errors.UserError('--arms names no arm; leave it out for all of them')
  rerun_flags = ['--config', known.config, *(['--workdir', known.workdir] if known.workdir else [])]
  return Command(
    config=config,
    workdir=files.path_of(known.workdir) if known.workdir else None,
    stage=known.stage,
    arms=arms,
    checkpoint=files.path_of(known.checkpoint) if known.checkpoint else None,
    coordinator=known.coordinator,
    num_processes=known.num_processes,
    process_id=known.process_id,
    distributed=known.distributed,
    jobs=(2 if target else 1) if known.jobs is None else known.jobs,
    target=target,
    programs=tuple(one.strip() for one in (known.programs or '').split(',') if one.strip()),
    largest=known.largest,
    full=known.full,
    allow_memory=known.allow_memory,
    follow_links=known.follow_links,
    rerun_flags=(
      *rerun_flags,
      *overrides,
      *(['--distributed'] if known.distributed else []),
      *([memory.ALLOW] if known.allow_memory else []),
      *([links.FOLLOW] if known.follow_links else []),
    ),
  )


def _check_seed(config) -> None:
  """Raises a `UserError` for a seed that generators of random numbers do not take."""
  seed = config.get('seed', 0)
  if not 0 <= seed < _SEEDS:
    raise errors.UserError(f'config.seed must be a number from 0 to {_SEEDS - 1}, not {seed}')
  if config.get('seeds', 1) < 1:
    raise errors.UserError(f'config.seeds must be at least 1, not {config.seeds}')


def load_config(name: str) -> ml_collections.ConfigDict:
  """Returns the configuration of NAME or NAME:PRESET, NAME a file or one of the package's."""
  path, _, preset = name.partition(':')
  file = _find(path)
  spec = importlib.util.spec_from_file_location(f'robustmed_config_{file.stem}', file)
  if spec is None or spec.loader is None:
    raise errors.UserError(f'{path} is not a Python config file')
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(file.parent.absolute()))  # for modules that configs share
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise errors.UserError(f'{path} is not valid Python: {error}') from None
  finally:
    sys.path.pop(0)
  if not hasattr(module, 'get_config'):
    raise errors.UserError(f'{path} has no function get_config(preset)')
  return module.get_config(preset)


def _find(path: str) -> pathlib.Path:
  """Returns the file of a configuration: as it is named, or one that comes with the package."""
  file = pathlib.Path(path)
  if file.is_file():
    return file
  if file.name == path and not file.suffix:
    known = {found.stem: found for found in sorted(CONFIGS.glob('[!_]*.py'))}
    if path in known:
      return known[path]
    near = difflib.get_close_matches(path, list(known), n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise errors.UserError(
      f'no configuration {path!r} comes with robustmed{hint} (there are: {", ".join(known)}); '
      'the name of a file ends in .py'
    )
  if not file.is_absolute() and (CONFIGS.parent / file).is_file():
    return CONFIGS.parent / file
  near = sorted(str(p) for p in file.parent.glob('[!_]*.py')) if file.parent.is_dir() else []
  known = f' (there are: {", ".join(near)})' if near else ''
  raise errors.UserError(f'no config file {path}{known}')


def _check_folder(config) -> None:
  """Raises a `UserError` if a data folder is named and the source generates its examples."""
  from robustmed import data  # here, so that --help is fast

  fields = config.get('data', {})
  source = data.SOURCES.get(fields.get('source', ''))
  if fields.get('dir', '') and source is not None and 'dir' not in source.DEFAULTS:
    raise errors.UserError(
      f'config.data.dir is {fields.dir!r}, but the source {fields.source!r} makes its examples '
      'itself; take the preset real or paper, or set config.data.source'
    )


def list_settings(config: ml_collections.ConfigDict) -> None:
  """Adds all missing settings to every attack of a configuration, so that each can be overridden.

  An attack is a field `attack`, or an entry of a field `attacks`, that has a `name`. A setting
  whose default is None gets a placeholder of its type.
  """
  from robustmed import attacks  # here, so that --help is fast

  for node in _attack_nodes(config):
    for setting, value in {'levels': None, **attacks.defaults(node.name)}.items():
      if setting in node or (setting == 'levels' and 'objective' not in node):
        continue
      if value is None:
        value = ml_collections.config_dict.placeholder(_TYPES.get(setting, object))
      with node.unlocked():
        node[setting] = value


def _attack_nodes(config):
  for key, value in list(config.items()):
    if not isinstance(value, ml_collections.ConfigDict):
      continue
    inside = list(value.values()) if key == 'attacks' else [value] if key == 'attack' else []
    found = [n for n in inside if isinstance(n, ml_collections.ConfigDict) and 'name' in n]
    yield from found or _attack_nodes(value)


def _names_of_attacks(overrides):
  """The overrides of attacks' names, on which it depends what settings there are."""
  names = []
  for place, word in enumerate(overrides):
    flag, given, _ = word.partition('=')
    path = flag.split('.')
    if path[-1] == 'name' and {'attack', 'attacks'} & set(path[-3:-1]):
      names += [word] if given else overrides[place : place + 2]
  return names


def _apply(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
  for word in overrides:
    if word.startswith('--config.'):
      _check_path(config, word[len('--config.') :].partition('=')[0])
    elif word.startswith('-'):
      raise errors.UserError(f'unknown flag {word}; see --help')
  values = absl_flags.FlagValues()
  argv = ['robustmed', *overrides]
  config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
  try:
    rest = values(argv)
  except (absl_flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
    raise errors.UserError(f'bad configuration override: {error}') from None
  if len(rest) > 1:
    raise errors.UserError(f'unexpected argument {rest[1]!r}; see --help')


def _leaves(config, path: str = ''):
  """Yields (path, value) of all fields."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, f'{path}{key}.')
    else:
      yield f'{path}{key}', value


def _check_values(config: ml_collections.ConfigDict, defaults: Mapping[str, Any]) -> None:
  """Raises a `UserError` for NaN, inf, counts below 0 and lists of other things than by default."""
  for path, value in _leaves(config):
    default = defaults.get(path)
    counted = isinstance(default, int) and default >= 0 and not path.endswith('seed')
    if counted and isinstance(value, int) and value < 0:
      raise errors.UserError(f'config field {path} must be at least 0, not {value}')
    if isinstance(default, tuple | float) and not _is_like(value, default):
      said = f'must be like {str(default)[:100]}, not {str(value)[:100]}'
      raise errors.UserError(f'config field {path} {said}')


def _is_like(value, default) -> bool:
  if isinstance(default, tuple) and default:
    inner = {len(one) for one in default if isinstance(one, tuple)}
    return isinstance(value, tuple | list) and all(
      any(_is_like(one, other) for other in default) and (not inner or len(one) in inner)
      for one in value
    )
  if isinstance(default, str):
    return isinstance(value, str)
  if isinstance(default, int | float):
    same = isinstance(value, int | float) and isinstance(value, bool) == isinstance(default, bool)
    return same and (abs(value) < math.inf or not abs(default) < math.inf)
  return True


def _check_path(config: ml_collections.ConfigDict, path: str) -> None:
  """Raises a `UserError`, which names the nearest field, if there is no field `path`."""
  node, walked = config, []
  for part in path.split('.'):
    if not isinstance(node, ml_collections.ConfigDict):
      raise errors.UserError(
        f'config field {".".join(walked)} is a value and has no field {part!r}'
      )
    if part not in node:
      near = difflib.get_close_matches(part, list(node), n=1, cutoff=0.3)
      where = '.'.join([*walked, near[0]]) if near else ''
      hint = f'; did you mean --config.{where}?' if near else ''
      raise errors.UserError(
        f'unknown config field {path!r}{hint} (known here: {", ".join(sorted(node))})'
      )
    node = node[part]
    walked.append(part)
