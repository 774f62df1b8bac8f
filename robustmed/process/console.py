"""What a person watching a run sees: log lines, progress with time left, a polite stop."""

import contextlib
import signal
import sys
import time

from robustmed.process import parallel

INTERVAL = 10.0  # seconds between progress lines when nobody watches a terminal


class Stopped(SystemExit):
  """A SIGTERM arrived and everything was saved: exit code 143."""

  def __init__(self):
    super().__init__(143)


def say(text: str) -> None:
  """One line on stderr, from one host only; stdout is for results."""
  if parallel.is_writer():
    print(f'[robustmed] {text}', file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
  seconds = round(seconds)
  if seconds < 90:
    return f'{seconds} s'
  if seconds < 5400:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'


def clock(seconds: float) -> str:
  """To the second, for what is over: '51 s', '2 min 51 s', '1 h 2 min 3 s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  parts = ((hours, 'h'), (minutes, 'min'), (seconds, 's'))
  first = next((place for place, (count, _) in enumerate(parts) if count), 2)
  return ' '.join(f'{count} {unit}' for count, unit in parts[first:])


class Progress:
  """A bar on a terminal, else one line per interval; silent for what ends within seconds.

  The time left is judged from the first update on, which has seen the compilation.
  """

  def __init__(self, name: str, total: int, *, done: int = 0):
    self._name, self._total, self._done = name, max(1, total), done
    self._since = None  # time and count of the first update that got anywhere
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
      eta = f', {duration(each * (self._total - done))} left'
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
  """Remembers that SIGTERM or SIGINT asked for a stop; loops ask `requested` between steps."""

  def __init__(self):
    self._flag = False

  def requested(self) -> bool:
    """True on every host as soon as one host was asked (a collective: call it on all)."""
    return parallel.any_host(self._flag)

  def ask(self, *_):
    self._flag = True


@contextlib.contextmanager
def stop_on_signal():
  """Yields a `Stopper`; a second signal of the same kind acts at once, as usual."""
  stopper = Stopper()

  def handle(number, frame):
    stopper.ask()
    signal.signal(number, signal.SIG_DFL)

  previous = signal.signal(signal.SIGTERM, handle)
  try:
    yield stopper
  finally:
    signal.signal(signal.SIGTERM, previous)
