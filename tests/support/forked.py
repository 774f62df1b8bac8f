"""The main program, or another one, in a process that has imported the libraries before it begins.

A run at smoke size spends a third of its time on imports. Here one server per test process imports
them once and forks for every run. No JAX backend exists in the server, so that a run makes its own,
under its own environment; its output, signals and exit code are those of a real process.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import signal
import subprocess
import sys
import threading
import unittest.mock

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['support.forked_imports'])


class Process:
  """A run with the methods of `subprocess.Popen` that the tests use.

  `code` is run with sys.argv[1:] = words, as `python -c` does; None is the main program.
  """

  def __init__(self, words, *, env, cwd, code=None):
    (out, out_end), (err, err_end) = _context.Pipe(duplex=False), _context.Pipe(duplex=False)
    _start_server(env)
    given = (code, words, env, str(cwd), out_end, err_end)
    self._process = _context.Process(target=_run, args=given)
    self._process.start()
    self.pid = self._process.pid
    self._texts = [bytearray(), bytearray()]
    self._readers = []
    for end, pipe, text in zip((out_end, err_end), (out, err), self._texts):
      end.close()
      reader = threading.Thread(target=_read, args=(pipe, text), daemon=True)
      reader.start()
      self._readers.append(reader)

  @property
  def returncode(self):
    return self._process.exitcode

  def poll(self):
    return self.returncode

  def wait(self, timeout=None):
    self._process.join(timeout)
    if self.returncode is None:
      raise subprocess.TimeoutExpired('robustmed.main', timeout)
    return self.returncode

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout=None):
    """What it and its children said on stdout and on stderr, when all of them have ended."""
    self.wait(timeout)
    for reader in self._readers:
      reader.join(timeout)
      if reader.is_alive():
        raise subprocess.TimeoutExpired('a child of robustmed.main', timeout)
    return self.said()

  def said(self):
    """What it has said so far."""
    return tuple(bytes(text).decode() for text in self._texts)


def _start_server(env):
  # What is read when Python or JAX is imported must be right from the start.
  tests = str(pathlib.Path(__file__).parents[1])
  env = {**env, 'PYTHONPATH': os.pathsep.join([env['PYTHONPATH'], tests])}
  with unittest.mock.patch.dict(os.environ, env, clear=True):
    multiprocessing.forkserver.ensure_running()


def _read(pipe, text):
  while piece := os.read(pipe.fileno(), 65536):
    text += piece
  pipe.close()


def _run(code, words, env, cwd, out, err):
  from support import forked_imports

  for number, pipe in ((1, out), (2, err)):
    os.dup2(pipe.fileno(), number)
    pipe.close()
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  sys.argv = ['-c', *words]
  try:
    if code is None:
      sys.exit(forked_imports.main.main(words))
    exec(code, {'__name__': '__main__'})
  finally:
    atexit._run_exitfuncs()  # which multiprocessing leaves out
