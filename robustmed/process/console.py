"""Log lines, progress with the time left, and an orderly stop after a signal."""

import contextlib
import signal
import sys
import time

from robustmed.process import parallel

INTERVAL = 10.0  # seconds between progress lines where stderr is not a terminal


class Stopped(SystemExit):
  """Ends the process with exit code 143 after a SIGTERM, once everything is saved."""

  def __init__(self):
    super().__init__(143)


def say(text: str) -> None:
  """Prints one line to stderr, on the writer host only; stdout is for results."""
  if parallel.is_writer():
    print(f'[robustmed] {text}', file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
  """Returns a time in its largest fitting unit: '51 s', '2.9 min', '1.6 h'."""
  seconds = round(seconds)
  if seconds < 90:
    return f'{seconds} s'
  if seconds < 5400:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'


def format_exact_duration(seconds: float) -> str:
  """Returns a time to the second: '51 s', '2 min 51 s', '1 h 2 min 3 s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  parts = ((hours, 'h'), (minutes, 'min'), (seconds, 's'))
  first = next((place for place, (count, _) in enumerate(parts) if count), 2)
  return ' '.join(f'{count} {unit}' for count, unit in parts[first:])


class Progress:
  """Shows a bar on a terminal, else one line per interval; nothing for what ends within seconds.

  The time left is estimated from the first update on, which comes after the compilation.
  """

  def __init__(self, name: str, total: int, *, done: int = 0):
    self._name, self._total, self._done = name, max(1, total), done
    self._since = None  # time and count of the first update with progress
    self._shown = time.monotonic()
    self._terminal = sys.stderr.isatty()
    self._drawn = False

  def update(self, done: int, note: str = '') -> None:
    now = time.monotonic()
    if self._since is None and done > self._done:
      self._since = (now, done)
    if now - self._shown < (0.2 if self._terminal else INTERVAL) or not parallel.is_writer():
      return
    self._shown = now
    fraction = done / self._total
    eta = ''
    if self._since is not None and done > self._since[1]:
      each = (now - self._since[0]) / (done - self._since[1])
      eta = f', {format_duration(each * (self._total - done))} left'
    text = f'{self._name} {done}/{self._total}{eta}{"  " + note if note else ""}'
    if self._terminal:
      bar = ('#' * int(24 * fraction)).ljust(24, '.')
      print(f'\r\x1b[K{bar} {text}', end='', file=sys.stderr, flush=True)
      self._drawn = True
    else:
      say(text)

  def close(self) -> None:
    if self._drawn:
      print('\r\x1b[K', end='', file=sys.stderr, flush=True)


class Stopper:
  """Records that a signal requested a stop; loops check `requested` between steps."""

  def __init__(self):
    self._flag = False

  def requested(self) -> bool:
    """Returns True on every host once one got the signal (a collective: call it on all)."""
    return parallel.any_host(self._flag)

  def request(self, *_):
    self._flag = True


@contextlib.contextmanager
def stop_on_signal():
  """Yields a `Stopper` that SIGTERM triggers; a second SIGTERM ends the process at once."""
  stopper = Stopper()

  def handle(number, frame):
    stopper.request()
    signal.signal(number, signal.SIG_DFL)

  previous = signal.signal(signal.SIGTERM, handle)
  try:
    yield stopper
  finally:
    signal.signal(signal.SIGTERM, previous)
