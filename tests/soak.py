"""Kills runs at random moments until they have ended, and compares them with undisturbed ones.

  python tests/soak.py --kills 200 --seed 1 --folder /tmp/soak

A kill is SIGKILL or SIGTERM, of the process or of one of two hosts, after a random part of the time
that an undisturbed run takes. The same command is then started again, until it ends by itself; its
results must be those of the undisturbed run, byte for byte, and its networks equal; no lock and no
temporary file may be left. Then the next run begins. Every kill is a line of FOLDER/log.csv. The
exit code is 1 if a result differs, a process hangs, shows a traceback, or ends with another code
than its end explains.
"""

import argparse
import collections
import csv
import filecmp
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0',
)

from support import runs

WORKLOADS = {  # name: (config, hosts, devices of each)
  'quickstart': ('configs/quickstart.py:smoke', 1, 2),
  'amat': ('configs/amat_hippocampus.py:smoke', 1, 2),
  'quickstart on two hosts': ('configs/quickstart.py:smoke', 2, 1),
}
# Killed itself; asked to stop (before and after there is a handler); another host was lost.
CODES = {0, -signal.SIGKILL, -signal.SIGTERM, 143, -signal.SIGABRT, 75}
COLUMNS = ('kill', 'workload', 'run', 'signal', 'target', 'after', 'codes', 'seconds', 'failure')


class Failed(Exception):
  """What went wrong with a run."""


def _start(workload, folder):
  config, hosts, devices = WORKLOADS[workload]
  words = ['--config', config, '--workdir', folder]
  return runs.hosts(*words, processes=hosts, devices=devices)


def _ended(started, *, allowed, patience) -> list[int]:
  """Waits for all processes; returns their exit codes."""
  try:
    codes, texts = runs.ends(started, timeout=patience)
  except subprocess.TimeoutExpired:
    raise Failed('hangs') from None
  finally:
    for process in started:
      process.kill()
      process.wait()
  for code, text in zip(codes, texts):
    if 'Traceback' in text:
      raise Failed(f'traceback: {text[text.index("Traceback") :][-600:]}')
    if code not in allowed:
      raise Failed(f'exit code {code}: {text[-400:]}')
  return codes


def _files(folder):
  return {
    str(path.relative_to(folder)): path for path in sorted(folder.rglob('*')) if path.is_file()
  }


def _compare(reference, folder) -> None:
  """Raises `Failed` unless results are equal byte for byte, and networks in all their values."""
  first, second = _files(reference / 'results'), _files(folder / 'results')
  differ = set(first) ^ set(second)
  differ |= {
    name
    for name in set(first) & set(second)
    if not filecmp.cmp(first[name], second[name], shallow=False)
  }
  if differ:
    raise Failed(f'results differ: {sorted(differ)[:5]}')
  networks = [path.relative_to(reference) for path in reference.glob('checkpoints/*/*/variables')]
  if not networks:
    raise Failed('there are no networks')
  for path in networks:
    if not _equal(reference / path, folder / path):
      raise Failed(f'{path} differs')
  if (folder / 'locks').exists() or [name for name in _files(folder) if '.tmp' in name]:
    raise Failed('locks or temporary files are left')


def _equal(first, second) -> bool:
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as loader:
    trees = [loader.restore(path) for path in (first, second)]
  return jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *trees))


class Soak:
  """The kills of one call."""

  def __init__(self, folder, *, seed, kills, patience, workloads):
    self._folder, self._random, self._kills = folder, random.Random(seed), kills
    self._patience, self._workloads = patience, workloads
    self._done, self._counts = 0, collections.Counter()
    self._rows, self._times = [], {}

  def run(self) -> int:
    """Runs everything; returns how many failures there were."""
    self._folder.mkdir(parents=True, exist_ok=True)
    for name in self._workloads:
      for again in (False, True):  # the second one finds all programs compiled
        folder = self._reference(name)
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        _ended(_start(name, folder), allowed={0}, patience=self._patience)
        self._times[name] = time.monotonic() - began
        print(
          f'{name}: undisturbed{" again" if again else ""} {self._times[name]:.0f} s', flush=True
        )
    number = 0
    while self._done < self._kills:
      number += 1
      self._one_run(self._workloads[number % len(self._workloads)], number)
    print(', '.join(f'{count} {name}' for name, count in sorted(self._counts.items())), flush=True)
    return self._counts['failures']

  def _reference(self, name):
    return self._folder / name.replace(' ', '_')

  def _one_run(self, name, number):
    """Kills one run again and again, until it ends by itself."""
    folder = self._folder / 'killed'
    shutil.rmtree(folder, ignore_errors=True)
    try:
      while self._done < self._kills:
        if not self._kill(name, number, folder):
          break
      else:
        _ended(_start(name, folder), allowed={0}, patience=self._patience)
      _compare(self._reference(name), folder)
      self._counts['runs ended equal'] += 1
      return
    except Failed as failure:
      self._counts['failures'] += 1
      self._note(workload=name, run=number, failure=str(failure))
      shutil.copytree(folder, self._folder / f'failed{number}', dirs_exist_ok=True)

  def _kill(self, name, number, folder) -> bool:
    """Starts a run and kills it; False if it ended first."""
    sent = self._random.choice((signal.SIGKILL, signal.SIGTERM))
    started = _start(name, folder)
    target = self._random.randrange(len(started))
    after = self._random.uniform(0, 0.8 * self._times[name])
    began = time.monotonic()
    while time.monotonic() - began < after:
      if all(process.poll() is not None for process in started):
        _ended(started, allowed={0}, patience=self._patience)
        return False
      time.sleep(0.05)
    started[target].send_signal(sent)
    codes = _ended(started, allowed=CODES, patience=self._patience)
    if codes == [0] * len(codes):  # it ended in the meantime, or had nothing more to save
      return False
    self._done += 1
    self._counts[sent.name] += 1
    self._counts[f'kills of {name}'] += 1
    self._note(
      kill=self._done,
      workload=name,
      run=number,
      signal=sent.name,
      target=target,
      after=f'{after:.2f}',
      codes=' '.join(map(str, codes)),
      seconds=f'{time.monotonic() - began:.1f}',
    )
    return True

  def _note(self, **row):
    self._rows.append(row)
    print(' '.join(f'{key}={value}' for key, value in row.items()), flush=True)
    with (self._folder / 'log.csv').open('w', newline='') as file:
      writer = csv.DictWriter(file, COLUMNS, restval='')
      writer.writeheader()
      writer.writerows(self._rows)


def main(words) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path, required=True, help='of the runs and the log')
  parser.add_argument(
    '--patience', type=float, default=900, help='seconds after which a process counts as hanging'
  )
  parser.add_argument(
    '--only', action='append', choices=tuple(WORKLOADS), help='of the workloads (several times)'
  )
  options = parser.parse_args(words)
  soak = Soak(
    options.folder.absolute(),
    seed=options.seed,
    kills=options.kills,
    patience=options.patience,
    workloads=options.only or list(WORKLOADS),
  )
  return int(soak.run() > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
