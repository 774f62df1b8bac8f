"""The one exception a user may see without a traceback."""

import contextlib
import difflib


class UserError(Exception):
  """A mistake that the user can fix; the message says what is wrong, where, and what to do.

  Shown as one line, with exit code 2. Any other exception is a bug and shows its traceback.
  """

  exit_code = 2

  def __str__(self):
    return ' '.join(map(_shortened, super().__str__().split()))


def _shortened(word):
  """Returns a word of at most 250 characters: what a damaged file holds can be of any length."""
  return word if len(word) <= 250 else f'{word[:160]}...{word[-80:]}'


@contextlib.contextmanager
def during(what):
  """Adds the note 'while `what`' to any exception of the block; it is shown with the error."""
  try:
    yield
  except Exception as error:
    error.add_note(f'while {what}')
    raise


def lookup(table, name, *, kind):
  """Returns `table[name]`; an unknown name is a `UserError` that lists the known ones."""
  if name in table:
    return table[name]
  near = difflib.get_close_matches(str(name), [str(known) for known in table], n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  known = ', '.join(sorted(str(known) for known in table if known != ''))
  raise UserError(f'unknown {kind} {name!r}{hint} (known: {known})')
