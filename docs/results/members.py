"""Runs the members of a budget on the trained networks of a run, beside PGD and its own attack.

  python docs/results/members.py --run 'BraTS 2D' --examples 16 --config configs/brats2d.py \\
      --config.evaluate.budget=quick --workdir runs/brats2d

Adds to docs/results/members/members.csv, for each member, the mean of its objective beside that of
PGD with as many steps of 2.5 eps / steps, both from the same 3 random starts, and to worst.csv the
mean of the metric under the run's main attack, its best iterate and the worst of both and the
members. With --pairs only members.csv. The workdir is only read.

  python docs/results/members.py --run 'BraTS 2D' --time std --examples 48 ...

adds to robust.csv what the robust share of that network costs in CPU seconds of all threads, beside
all members on all examples by the same compiled programs.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np
import pandas as pd

from robustmed import attacks, papers
from robustmed.attacks import ensemble
from robustmed.attacks.ensemble import search
from robustmed.evaluation import grid
from robustmed.runs import artifacts, commandline, networks

FOLDER = pathlib.Path(__file__).resolve().parent / 'members'
SHORT, STARTS = 0.01, 3
SMALLEST = 4  # examples that a program of `Ensemble.robust` takes


def spread(batches, count):
  """One batch of `count` examples that lie evenly in the batches."""
  whole = jax.tree.map(
    lambda *leaves: np.concatenate(leaves),
    *[{k: batch[k] for k in ('image', 'target', 'mask', 'index', 'group')} for batch in batches],
  )
  real = np.flatnonzero(whole['mask'])
  chosen = real[np.unique(np.linspace(0, len(real) - 1, min(count, len(real))).astype(int))]
  return jax.tree.map(lambda leaf: leaf[chosen], whole)


def compared(exp):
  """{name: probe} of the main attack, its best iterate and the members; of each member, by its
  objective, and PGD: {member: (probe, probe)}."""
  plan = exp.grid
  main = plan.probes[plan.main]
  names = ensemble.settings_of(tuple(exp.task.objectives), 'quick')
  members = [name for name in names if name in plan.probes]
  probes = {plan.main: main, **{name: plan.probes[name] for name in members}}
  if isinstance(main.attack, attacks.LoopAttack) and main.attack.select == 'last':
    best = dataclasses.replace(main.attack, select='best', score_last=True)
    probes['best iterate'] = main._replace(attack=best)
  pairs = {}
  for name in members:
    member = probes[name]
    plain = attacks.pgd(num_steps=member.attack.num_steps)
    plain = dataclasses.replace(plain, threat=member.attack.threat)
    by_own = dataclasses.replace(member.attack, select='best')
    pairs[name] = tuple(member._replace(attack=one) for one in (by_own, plain))
  return probes, pairs


def batch_of(exp, config, trial, count):
  source = exp.data_of(*trial.fold).load()
  return spread(artifacts.evaluation_batches(source.test, source, config), count)


def measured(exp, config, workdir, arms, count, *, pairs_only=False):
  """The rows of all probes, networks and examples, and those of the pairs."""
  plan, made = exp.grid, networks.Networks(exp, config, workdir)
  probes, pairs = compared(exp)
  judge = plan.checks['metric'], plan.checks['higher_is_better']
  eps, rows, means, known = max(plan.probes[plan.main].levels), [], [], {}
  trial, key = exp.trials(config.seeds)[0], jax.random.key(config.seed)
  batch = batch_of(exp, config, trial, count)
  for arm in arms or exp.arms:
    if exp.arms[arm].evaluated is not True:
      continue
    task = exp.task_of(arm)
    same = tuple(id(field) for field in task._replace(init=None))
    if same not in known:
      told = {'key': key, 'main': plan.main, 'judge': judge, 'host': plan.host}
      programs = {
        name: [grid.attack_program(task, one) for one in both] for name, both in pairs.items()
      }
      known[same] = grid.Evaluator(task, probes, **told), programs
    evaluator, programs = known[same]
    variables = made.load(arm, trial)
    for name in () if pairs_only else (grid.CLEAN, *probes):
      level = 0.0 if name == grid.CLEAN else eps
      told = {'attack': name, 'eps_of': lambda _, level=level: level}
      found = grid.scored(evaluator, variables, [batch], **told)
      rows.append(found.assign(arm=arm, attack=name))
    for name, both in programs.items():
      values = [reached(evaluator, one, variables, batch, probes[name], eps, key) for one in both]
      means.append((arm, name, *values))
    print(f'{arm}: done', file=sys.stderr, flush=True)
  means = pd.DataFrame(means, columns=['arm', 'attack', 'member', 'PGD'])
  return pd.concat(rows, ignore_index=True) if rows else None, means, probes, pairs, eps


def reached(evaluator, program, variables, batch, probe, eps, key):
  """The mean of a probe's objective at what a program finds from several starts."""
  padded, values = grid.device_batch(batch), []
  levels = np.full(len(padded['mask']), eps, np.float32)
  for start in range(STARTS):
    images, _ = program(variables, padded, levels, jax.random.fold_in(key, start))
    columns = evaluator.score(variables, padded, images).columns
    values.append(np.asarray(columns[f'_value.{probe.objective}'])[np.asarray(padded['mask'])])
  return float(np.mean(values))


def of_members(means, run):
  lines = []
  for name, both in means.groupby('attack', sort=False):
    both = both.set_index('arm')
    share = (both.member - both.PGD) / both.PGD.abs()
    lines.append(
      {
        'run': run,
        'attack': name,
        'networks': len(share),
        'PGD': f'{both.PGD.mean():.4g}',
        'member': f'{both.member.mean():.4g}',
        'least above PGD in %': f'{100 * share.min():+.1f}',
        'at': share.idxmin(),
        f'below PGD by more than {SHORT:.0%}': int((share < -SHORT).sum()),
      }
    )
  return lines


def of_worst(rows, probes, pairs, exp, run, eps):
  metric, higher = exp.grid.checks['metric'], exp.grid.checks['higher_is_better']
  wide = rows.pivot_table(index=['arm', 'index'], columns='attack', values=metric, sort=False)
  wide = wide.dropna()
  own = wide[list(probes)]
  worst = own.min(axis=1) if higher else own.max(axis=1)
  best = [name for name in own if name == 'best iterate']
  paper = own[[exp.grid.main, *best]]
  paper = paper.min(axis=1) if higher else paper.max(axis=1)
  moved = (paper - worst).abs()
  attack_of = {name: probes[name].attack for name in pairs}
  by_arm = [
    robust_share(part[list(pairs)], part[grid.CLEAN], higher, attack_of)
    for _, part in wide.groupby(level='arm', sort=False)
  ]
  shares, spent = zip(*by_arm, strict=True)
  return {
    'run': run,
    'metric': metric,
    'eps': f'{eps:g}',
    'examples x networks': len(wide),
    'clean': f'{wide[grid.CLEAN].mean():.3f}',
    'main attack': f'{wide[exp.grid.main].mean():.3f}',
    'best iterate': f'{wide[best[0]].mean():.3f}' if best else '-',
    'worst of all': f'{worst.mean():.3f}',
    'a member is worse in %': f'{100 * float((moved > 1e-6).mean()):.0f}',
    'robust share': f'{np.mean(shares):.2f}',
    'its passes in %': f'{100 * np.mean(spent):.0f}',
  }


def robust_share(own, clean, higher, attack_of):
  """The share that no member halves (an error: doubles), and what `Ensemble.robust` spends.

  Broken examples leave after each member; the others are padded to its bucket sizes. Returned as a
  share of the passes of all members one by one.
  """
  limit = clean.mean() * (0.5 if higher else 2)
  broken = (own <= limit) if higher else (own >= limit)
  left, spent, full, count = ~(clean <= limit if higher else clean >= limit), 0, 0, len(own)
  for name in own:
    passes = attack_of[name].num_gradients + attack_of[name].num_forwards
    full += count * passes
    alive = int(left.sum())
    spent += passes * search.bucket(alive, count, SMALLEST) if alive else 0
    left = left & ~broken[name]
  return float(left.mean()), spent / full


def timed(exp, config, workdir, arm, count):
  """A line: what `Ensemble.robust` of one network costs, at half of its clean mean."""
  plan, task = exp.grid, exp.task_of(arm)
  probes, pairs = compared(exp)
  metric, higher = plan.checks['metric'], plan.checks['higher_is_better']
  members = [
    attacks.Member(name, probes[name].attack, task.objectives[probes[name].objective])
    for name in pairs
  ]
  sign = -1 if higher else 1
  badness = lambda outputs, batch: sign * task.metrics(outputs, batch)[metric]
  made = attacks.Ensemble(task.predict, tuple(members), badness)
  trial = exp.trials(config.seeds)[0]
  batch = batch_of(exp, config, trial, count)
  batch = jax.tree.map(jax.numpy.asarray, {**batch, 'clean': batch['image']})
  variables = networks.Networks(exp, config, workdir).load(arm, trial)
  eps = max(plan.probes[plan.main].levels)
  told = {'eps': eps, 'key': jax.random.key(config.seed), 'smallest': SMALLEST}
  run = lambda at: made.robust(variables, batch, broken_at=at, **told)
  clean = float(np.mean(jax.jit(badness)(task.predict(variables, batch['image']), batch)))
  limit = clean * (0.5 if higher else 2)
  # at infinity nothing is ever broken, so that nothing leaves; both are compiled first
  levels, spent = (limit, float('inf')), []
  for at in levels:
    run(at)
  for at in levels:
    start = time.process_time()
    found = jax.block_until_ready(run(at))
    spent.append((found, time.process_time() - start))
  (chosen, own), (whole, full) = spent
  assert whole.passes == whole.full
  return {
    'network': arm,
    'eps': f'{eps:g}',
    'examples': len(batch['image']),
    'members': len(members),
    'robust share': f'{chosen.share:.2f}',
    'passes in %': f'{100 * chosen.passes / chosen.full:.0f}',
    'CPU seconds': f'{own:.1f}',
    'of all members': f'{full:.1f}',
    'CPU seconds in %': f'{100 * own / full:.0f}',
  }


def add(path, lines, run):
  """Puts the lines of a run in place of what the file had of it."""
  known = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None
  fresh = pd.DataFrame(lines).astype(str)
  if known is not None:
    fresh = pd.concat([known[known['run'] != run], fresh], ignore_index=True)
  fresh.to_csv(path, index=False)


def parsed(words):
  """Returns the script's own flags, and the run's command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--run', required=True, help='its name in the tables')
  parser.add_argument('--examples', type=int, default=16)
  parser.add_argument(
    '--time', default='', metavar='ARM', help='only times the robust share of ARM'
  )
  parser.add_argument('--pairs', action='store_true', help='only members beside PGD')
  asked, rest = parser.parse_known_args(words)
  return asked, commandline.parse(rest)


def main(words):
  asked, command = parsed(words)
  exp = papers.find(command.config.experiment).build(command.config)
  if asked.time:
    line = timed(exp, command.config, command.workdir, asked.time, asked.examples)
    add(FOLDER / 'robust.csv', [{'run': asked.run, **line}], asked.run)
    return
  told = command.config, command.workdir, command.arms, asked.examples
  rows, means, probes, pairs, eps = measured(exp, *told, pairs_only=asked.pairs)
  add(FOLDER / 'members.csv', of_members(means, asked.run), asked.run)
  if not asked.pairs:
    add(FOLDER / 'worst.csv', [of_worst(rows, probes, pairs, exp, asked.run, eps)], asked.run)


if __name__ == '__main__':
  main(sys.argv[1:])
