"""Configurations of MONAI bundles as plain data: '$...' is never evaluated, '@name' looked up."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from robustmed import errors
from robustmed.process import files

MAX_BYTES = 16 * 2**20
DEEPEST = 50  # references that lead to references


class Unknown(errors.UserError):
  """A value that only running code would give."""


class Config:
  """The content of a configuration file."""

  def __init__(self, content: Mapping[str, Any], path: pathlib.Path):
    self.content, self.path = content, path

  def get(self, key: str) -> Any:
    """Returns a value as it is written, None where there is none; '::' leads to inner ones."""
    value: Any = self.content
    for part in re.split('::|#', key):
      if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        value = value[int(part)]
      elif isinstance(value, Mapping) and part in value:
        value = value[part]
      else:
        return None
    return value

  def literal(self, value: Any, what: str, *, depth: int = 0) -> Any:
    """Returns a value with its references replaced; what only code would give is `Unknown`."""
    if depth > DEEPEST:
      raise Unknown(f'{self.path}: {what} refers to itself')
    if isinstance(value, Mapping):
      if '_target_' in value:
        raise Unknown(f'{self.path}: {what} is an object of {value["_target_"]!r}')
      return {k: self.literal(v, f'{what}::{k}', depth=depth + 1) for k, v in value.items()}
    if isinstance(value, list):
      return [self.literal(v, f'{what}::{n}', depth=depth + 1) for n, v in enumerate(value)]
    if not isinstance(value, str):
      return value
    if re.fullmatch(r'@[\w:#]+', value):
      found = self.get(value[1:])
      if found is None:
        raise Unknown(f'{self.path}: {what} refers to {value!r}, which is not there')
      return self.literal(found, what, depth=depth + 1)
    if value.startswith(('$', '%')) or '@' in value:
      raise Unknown(f'{self.path}: {what} is the expression {value!r}, which is not evaluated')
    return value

  def found(self, key: str) -> Any:
    """Returns what a key leads to, through references to objects such as '@network_def'."""
    value = self.get(key)
    for _ in range(DEEPEST):
      if isinstance(value, str) and re.fullmatch(r'@[\w:#]+', value):
        value = self.get(value[1:])
    return value


def read(folder: pathlib.Path, name: str) -> Config | None:
  """Returns configs/NAME.json (.yaml, .yml) of a bundle, None where there is none."""
  for suffix in ('.json', '.yaml', '.yml'):
    path = folder / 'configs' / f'{name}{suffix}'
    if files.present(path):
      return Config(_content(path), path)
  return None


def _content(path) -> Mapping[str, Any]:
  if path.stat().st_size > MAX_BYTES:
    raise errors.UserError(f'{path}: more than {MAX_BYTES} bytes')
  if path.suffix == '.json':
    found = files.parsed_json(path, said=': cannot be parsed')
  else:
    found = _parsed_yaml(path)
  if not isinstance(found, dict):
    raise errors.UserError(f'{path}: must be an object, not a {type(found).__name__}')
  return found


def _parsed_yaml(path):
  yaml, text = _yaml(path), files.read_text(path)
  try:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
      raise errors.UserError(f'{path}: has aliases, which can stand for values without end')
    return yaml.load(text, _once(yaml))
  except errors.UserError:
    raise
  except Exception as error:  # parsers raise exceptions of their own
    line = str(error).partition('\n')[0][:200]
    raise errors.UserError(f'{path}: cannot be parsed ({type(error).__name__}: {line})') from error


def _once(yaml):
  """A safe loader that refuses a key that an object has twice."""

  class Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
      names = [str(key.value) for key, _ in node.value]
      if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'has {twice[:60]!r} twice')
      return super().construct_mapping(node, deep)

  return Loader


def _yaml(path):
  try:
    import yaml
  except ImportError as error:
    raise errors.UserError(
      f'{path}: needs PyYAML, which is not installed; install it or store the file as .json'
    ) from error
  return yaml
