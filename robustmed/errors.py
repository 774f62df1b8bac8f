"""The one exception a user may see without a traceback."""

import contextlib
import difflib
import re

# Steers a terminal, or is half a character: neither printed nor stored.
NO_TEXT = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')


class UserError(Exception):
  """A mistake that the user can fix; the message says what is wrong, where, and what to do.

  Shown as one line, with exit code 2. Any other exception is a bug and shows its traceback.
  """

  exit_code = 2

  def __str__(self):
    line = ' '.join(_shortened(_shown(word), 250) for word in super().__str__().split())
    return _shortened(line, 500)


def _shown(word):
  """Returns a word without what steers a terminal or is no text: those characters as escapes."""
  return NO_TEXT.sub(lambda match: repr(match[0])[1:-1], word)


def _shortened(text, most):
  """Returns a text without its middle if it is longer: what files hold can be of any length."""
  return text if len(text) <= most else f'{text[: most * 2 // 3 - 5]}...{text[-(most // 3) :]}'


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
