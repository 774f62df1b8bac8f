"""Reads XML files of which nothing is ever executed or fetched."""

import math
import pathlib

import defusedxml
from defusedxml import ElementTree

from robustmed import errors
from robustmed.process import files


def read(path: pathlib.Path, *, kind: str):
  """Returns the root element of an XML file; a damaged one is a `UserError`.

  Document types and entities are refused; `kind` says in the message which files have none.
  """
  try:
    with files.regular(path, missing_ok=True).open('rb') as file:
      return ElementTree.parse(file, forbid_dtd=True).getroot()
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
    value = float(text if text is not None else 'nothing')
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise errors.UserError(f'{where}: {key} is {text and text[:60]!r}, not a number')
  return value
