"""Kills runs at random moments until they have ended, and compares them with undisturbed ones.

  python tests/soak.py --kills 200 --seed 1 --folder /tmp/soak

A kill is SIGKILL or SIGTERM, of the process or of one of two hosts, after a random part of the CPU
time that an undisturbed run takes, so that a busy machine changes nothing. The same command is then
started again, until it ends by itself; its results must be those of the undisturbed run, byte for
byte, and its networks equal; no lock and no temporary file may be left. Then the next run begins.
Every kill is a line of FOLDER/log.csv, with which the same command goes on. The exit code is 1 if a
result differs, a process hangs, shows a traceback, or ends with another code than its end explains.

The runs are smoke presets with two arms and few attacks (`SHORTER`), and share the compiled
programs of FOLDER/compiled: a kill takes some seconds of CPU time instead of a minute.
"""

import argparse
import collections
import csv
import filecmp
import json
import math
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

from robustmed.process import commit
from support import runs

WORKLOADS = {  # name: (configuration, hosts, devices of each)
  'quickstart': ('quickstart', 1, 2),
  'amat': ('amat_hippocampus', 1, 2),
  'quickstart on two hosts': ('quickstart', 2, 1),
  'amat on two hosts': ('amat_hippocampus', 2, 1),
}
SHORTER = {  # configuration: (arms, attacks)
  'quickstart': (('std', 'adv'), ('pgd_seg', 'noise')),
  'amat_hippocampus': (('std', 'amat'), ('pgd', 'noise')),
}
CONFIG = """
from robustmed.runs import commandline

def get_config(preset=''):
  config = commandline.load_config('{name}:smoke')
  for part, wanted in ((config.arms, {arms}), (config.evaluate.attacks, {attacks})):
    for name in set(part) - set(wanted):
      del part[name]
  return config
"""
# Killed itself; asked to stop (before and after there is a handler); another host was lost.
CODES = {0, -signal.SIGKILL, -signal.SIGTERM, 143, -signal.SIGABRT, 75}
COLUMNS = ('kill', 'workload', 'run', 'signal', 'target', 'after', 'codes', 'seconds')
COLUMNS += ('equal', 'failure')


class Failed(Exception):
  """What went wrong with a run."""


def _start(workload, folder):
  name, hosts, devices = WORKLOADS[workload]
  arms, attacks = SHORTER[name]
  config = folder.parent / f'{name}.py'
  config.write_text(CONFIG.format(name=name, arms=arms, attacks=attacks))
  words = ['--config', config, '--workdir', folder]
  env = {
    'JAX_COMPILATION_CACHE_DIR': str(folder.parent / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  return runs.hosts(*words, processes=hosts, devices=devices, env=env)


def _cpu_seconds(pid) -> float:
  """Returns the CPU time of a process so far; 0 if it has ended."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return 0.0
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


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
  """The kills of one call, which goes on with those of the log in its folder."""

  def __init__(self, folder, *, seed, kills, patience, workloads):
    self._folder, self._seed, self._kills = folder, seed, kills
    self._patience, self._workloads = patience, workloads
    self._log, self._measured = folder / 'log.csv', folder / 'seconds.json'
    self._rows, self._times = [], {}
    if self._log.exists():
      with self._log.open(newline='') as file:
        self._rows = list(csv.DictReader(file))
    if self._measured.exists():
      self._times = json.loads(self._measured.read_text())
      if self._times.pop('commit', None) != commit.of_checkout():
        sys.exit(f'{folder} has undisturbed runs of another commit; take another folder')

  def run(self) -> int:
    """Runs everything; returns how many failures there were."""
    self._folder.mkdir(parents=True, exist_ok=True)
    for name in self._workloads:
      if name not in self._times:
        self._measure(name)
    number = max((int(row['run']) for row in self._rows), default=0)
    while self._count('kill') < self._kills:
      number += 1
      self._one_run(self._workloads[number % len(self._workloads)], number)
    kinds = collections.Counter(
      f'{row["signal"]} of {row["workload"]}' for row in self._rows if row.get('kill')
    )
    print(', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items())), flush=True)
    print(f'{self._count("equal")} runs ended equal, {self._count("failure")} failures', flush=True)
    return self._count('failure')

  def _count(self, column) -> int:
    return sum(bool(row.get(column)) for row in self._rows)

  def _measure(self, name):
    """Makes the reference of a workload; its second run finds all programs compiled."""
    for said in ('undisturbed', 'undisturbed again'):
      folder = self._reference(name)
      shutil.rmtree(folder, ignore_errors=True)
      started = _start(name, folder)
      used = self._until(started, started[0], math.inf)
      _ended(started, allowed={0}, patience=self._patience)
      print(f'{name}: {said}, {used:.1f} s of CPU time', flush=True)
    self._times[name] = used
    self._measured.write_text(json.dumps({**self._times, 'commit': commit.of_checkout()}))

  def _reference(self, name):
    return self._folder / name.replace(' ', '_')

  def _one_run(self, name, number):
    """Kills one run again and again, until it ends by itself."""
    folder, chance = self._folder / 'killed', random.Random(f'{self._seed} {number}')
    shutil.rmtree(folder, ignore_errors=True)
    try:
      while self._count('kill') < self._kills:
        if not self._kill(name, number, folder, chance):
          break
      else:
        _ended(_start(name, folder), allowed={0}, patience=self._patience)
      _compare(self._reference(name), folder)
      self._note(workload=name, run=number, equal='yes')
    except Failed as failure:
      self._note(workload=name, run=number, failure=str(failure))
      shutil.copytree(folder, self._folder / f'failed{number}', dirs_exist_ok=True)

  def _kill(self, name, number, folder, chance) -> bool:
    """Starts a run and kills it; False if it ended first."""
    sent = chance.choice((signal.SIGKILL, signal.SIGTERM))
    started = _start(name, folder)
    target = chance.randrange(len(started))
    after = chance.uniform(0, 0.8 * self._times[name])
    began = time.monotonic()
    if self._until(started, started[target], after) < after:
      _ended(started, allowed={0}, patience=self._patience)
      return False
    started[target].send_signal(sent)
    codes = _ended(started, allowed=CODES, patience=self._patience)
    if codes == [0] * len(codes):  # it ended in the meantime, or had nothing more to save
      return False
    self._note(
      kill=self._count('kill') + 1,
      workload=name,
      run=number,
      signal=sent.name,
      target=target,
      after=f'{after:.2f}',
      codes=' '.join(map(str, codes)),
      seconds=f'{time.monotonic() - began:.1f}',
    )
    return True

  def _until(self, started, one, seconds) -> float:
    """Waits until a process has used this CPU time or all have ended; returns what it used."""
    used, end = 0.0, time.monotonic() + self._patience
    while used < seconds and any(process.poll() is None for process in started):
      if time.monotonic() > end:
        for process in started:
          process.kill()
        raise Failed('hangs')
      time.sleep(0.05)
      used = max(used, _cpu_seconds(one.pid))
    return used

  def _note(self, **row):
    self._rows.append(row)
    print(' '.join(f'{key}={value}' for key, value in row.items()), flush=True)
    with self._log.open('w', newline='') as file:
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
