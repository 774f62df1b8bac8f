"""Reads XML files of which nothing is ever executed or fetched."""

import math
import pathlib
from xml.etree import ElementTree as plain  # its builder of trees alone; nothing is parsed by it

import defusedxml
from defusedxml import ElementTree

from robustmed import errors
from robustmed.data.files import numbers
from robustmed.process import files

_DEEPEST = 200  # elements in elements; the freeing of a tree of 100,000 takes seconds


class _Builder(plain.TreeBuilder):
  """Builds a tree that is not deep."""

  def __init__(self):
    super().__init__()
    self._depth = 0

  def start(self, tag, attributes):
    self._depth += 1
    if self._depth > _DEEPEST:
      raise ValueError(f'elements are nested deeper than {_DEEPEST}')
    return super().start(tag, attributes)

  def end(self, tag):
    self._depth -= 1
    return super().end(tag)


def read(path: pathlib.Path, *, kind: str):
  """Returns the root element of an XML file; a damaged one is a `UserError`.

  Document types and entities are refused; `kind` says in the message which files have none.
  """
  try:
    with files.regular(path, missing_ok=True).open('rb') as file:
      parser = ElementTree.XMLParser(target=_Builder(), forbid_dtd=True)
      return ElementTree.parse(file, parser=parser).getroot()
  except defusedxml.DefusedXmlException as error:
    raise errors.UserError(
      f'{path}: refused, it declares a document type or entities ({type(error).__name__}); '
      f'{kind} has none'
    ) from error
  except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
    raise errors.UserError(f'{path}: cannot be read as XML ({error}); copy it again') from error


def number(node, key: str, *, where: str) -> float:
  """Returns the finite number in the element at `key` below `node`; anything else is a `UserError`
  that begins with `where`."""
  text = node.findtext(key)
  try:
    value = numbers.parsed(text if text is not None else 'nothing')
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise errors.UserError(f'{where}: {key} is {text and text[:60]!r}, not a number')
  return value
