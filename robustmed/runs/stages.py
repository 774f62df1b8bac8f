"""The stages of every experiment: describe, train, evaluate, report. Each can be resumed."""

import functools
import json
import threading

import jax
import ml_collections

from robustmed import errors, report
from robustmed.data import pipeline
from robustmed.evaluation import grid
from robustmed.evaluation.checks import inspection
from robustmed.process import checksums, console, files, parallel
from robustmed.report import inputs
from robustmed.runs import (
  artifacts,
  commandline,
  description,
  experiment,
  forecast,
  locks,
  logs,
  networks,
  plan,
  preparation,
  side_by_side,
  workdir,
)
from robustmed.runs.compilation import stage as compile_stage
from robustmed.training import checkpoints, loop
from robustmed.training import state as train_state


def run(command: commandline.Command, module, *, cpu_flags: str = '') -> None:
  """Runs the stages of a command; `module` is the experiment's, with `build` (see `papers`)."""
  config = command.config
  if not hasattr(module, 'build'):
    if command.stage == 'describe':
      print(json.dumps(module.describe(config), indent=2))
      return
    if command.stage != 'all' or command.arms:
      raise errors.UserError(
        f'{config.experiment} has no stages and no arms; leave out --stage and --arms'
      )
    module.run(config, workdir=command.workdir)
    return
  exp = module.build(config)
  if exp.grid.main not in exp.grid.probes:
    raise errors.UserError(
      f'config.evaluate.attacks has no {exp.grid.main!r}, which {config.experiment} needs'
    )
  if command.stage == 'describe':
    print(json.dumps(description.describe(exp, config, command.arms), indent=2))
    return
  if command.stage == 'compile':
    compile_stage.run(exp, command, exact=experiment.in_float32(exp, config, module.build))
    return
  if command.stage == 'plan':
    print('\n'.join(plan.commands(exp, command)))
    return
  exact = experiment.in_float32(exp, config, module.build)
  Run(exp, config, command, cpu_flags, exact=exact).go()


class Run:
  """One experiment in one workdir; `exact` is what evaluates its networks."""

  def __init__(self, exp, config, command, cpu_flags='', *, exact=None):
    self.exp: experiment.Experiment = exp
    self.exact: experiment.Experiment = exact or exp
    self.config: ml_collections.ConfigDict = config
    self.command: commandline.Command = command
    self.folder: files.Path = command.workdir
    self.order, self.extra = experiment.training_order(exp.arms, command.arms)
    self._cpu_flags = cpu_flags
    self.networks = networks.Networks(exp, config, self.folder, self.exact)
    # (*fold) -> its source; networks of one fold follow each other.
    self.source = functools.lru_cache(maxsize=1)(self._load)
    self._preparing, self._checks = threading.Lock(), {}  # arm -> of the memory of its steps

  def go(self) -> None:
    with checksums.keep(*(self.folder / name for name in workdir.SUMMED)):
      self._go()

  def _go(self):
    stage, config = self.command.stage, self.config
    other = self.command.checkpoint
    imported = self.networks.imported(other) if other else None
    claimed = {
      'config': config.to_dict(),
      'checkpoint': checkpoints.digest(other) if other else None,
    }
    new = workdir.claim(self.folder, claimed)
    try:
      with locks.hold(self.folder, self._lock_names(stage, imported)):
        locks.remove_stale(self.folder)
        self._run_stages(stage, imported)
    except BaseException:
      if new:
        workdir.release(self.folder)
      raise
    parallel.barrier('end')

  def _lock_names(self, stage, imported) -> list[str]:
    """The locks that this call must hold. A report needs none."""
    evaluated = {model.arm for model in imported} if imported else self._evaluated()
    out = [f'evaluate.{arm}' for arm in evaluated] if stage in ('all', 'evaluate') else []
    if stage in ('all', 'train') and not imported:
      out += [f'train.{arm}' for arm in {name for name, _ in self.networks.untrained(self.order)}]
    return out

  def _run_stages(self, stage, imported) -> None:
    facts = parallel.describe()
    flags = f', XLA_FLAGS added: {self._cpu_flags}' if self._cpu_flags else ''
    console.say(
      f'{facts["devices"]} x {facts["device"]} ({facts["platform"]}) on {facts["hosts"]} host(s)'
      f'{flags}'
    )
    for line in description.announcement(self.exp) if stage != 'report' else ():
      console.say(line)
    for name in self.extra:
      console.say(
        f'arm {name!r} was not asked for but is needed; it is trained unless it has finished'
      )
    with console.stop_on_signal() as stopper:
      training = stage in ('all', 'train') and not imported
      if training:
        untrained = {name for name, _ in self.networks.untrained(self.order)}
        arms = [self.exp.arms[name] for name in self.order if name in untrained]
        self._checks = description.require_memory(self.exp, arms, allowed=self.command.allow_memory)
        self.exp.data.check(self.order, untrained, self.folder)
      if stage != 'report':
        self._forecast(stage, imported)
      if training:
        self.train(stopper)
      if stage in ('all', 'evaluate'):
        self.evaluate(stopper, imported)
    if stage in ('all', 'report') and parallel.is_writer():
      self.report()

  # Stages -------------------------------------------------------------------------------------

  def train(self, stopper) -> None:
    def run(training):
      name, trial = training
      _stop_if_asked(stopper)
      with errors.during(f'training arm {name!r} ({trial.said})'):
        self._train_arm(self.exp.arms[name], trial, stopper)

    side_by_side.train(
      self.networks.untrained(self.order), run, arms=self.exp.arms, stopper=stopper
    )
    if parallel.is_writer():
      with locks.exclusive(self.folder, 'logs'):
        logs.merge(self.folder)

  def _train_arm(self, arm, trial, stopper) -> None:
    options, batch_size, seed = arm.train, arm.train['batch_size'], trial.seed
    folder = self.networks.folder(arm.name, trial)
    load, made = (lambda other: self.networks.load(other, trial)), arm.prepared
    share = side_by_side.share_of(options)
    with self._preparing:  # what several arms need is prepared once
      source = self.source(*trial.fold)
      finished = preparation.Finished(load, source, self.config, seed, folder, stopper)
      initial = load(arm.init_from) if arm.init_from else None
      initial = made.variables(finished) if made.variables else initial
      source = made.source(finished) if made.source else source
      defense = made.defense(finished) if made.defense else arm.defense

    if options['steps']:
      idle = f'; {share.idle} of {share.devices} devices are idle' if share.idle else ''
      console.say(
        f'training {arm.name} ({trial.said}): {options["steps"]} steps of {batch_size}{idle}'
      )
    state = loop.fit(
      arm.name,
      task=self.exp.task_of(arm.name),
      defense=defense,
      batches=functools.partial(self._train_batches, source, options, seed),
      config=options,
      folder=folder / 'state',
      log=logs.path(self.folder, arm.name, trial),
      key=_key(self.config.seed, seed, arm.key),
      num_examples=preparation.memory_slots(defense, source.train),
      stopper=stopper,
      augment=(arm.augment or self.exp.data.augment)(source),
      initial=initial,
      scorer=made.selection(finished) if made.selection else None,
      padded=share.padded > batch_size,
      before=self._checks.get(arm.name),
    )
    checkpoints.write_card(
      folder,
      {
        'experiment': self.config.experiment,
        'arm': arm.name,
        **trial.columns,
        **self.networks.card(arm.name),
        **self.exp.described(),
      },
    )
    final = self.networks.final(arm.name, trial)
    checkpoints.save_variables(final, train_state.variables(state))

  def _train_batches(self, source, options, seed, start):
    """This process's share of the batches from step `start` on."""
    return pipeline.train_batches(
      source.train,
      batch_size=side_by_side.share_of(options).padded // parallel.process_count(),
      examples=options['batch_size'],
      seed=self.config.seed + 1000 * seed,
      shard_index=parallel.process_index(),
      shard_count=parallel.process_count(),
      start_step=start,
      sampling=source.sampling,
    )

  def evaluate(self, stopper, imported=None) -> None:
    models = imported or self.networks.models(self._evaluated())
    evaluator = self.networks.evaluator()
    parts = self.folder / 'results' / 'parts'
    grid.run(
      evaluator,
      models,
      batches=self._test_batches,
      folder=parts,
      stopper=stopper,
      source=self.networks.model,
    )
    inspection.fill(
      [model for model in models if model.arm in self.exact.grid.inspected],
      task_of=self.exact.task_of,
      probe=self.exact.grid.probes[self.exact.grid.main],
      judge=self.exact.grid.checks,
      batches=self._test_batches,
      folder=parts,
      stopper=stopper,
    )
    _stop_if_asked(stopper)
    # The results include what earlier calls evaluated. The lock makes the last of several jobs that
    # end together write the cells of all of them.
    with locks.exclusive(self.folder, 'results'):
      everyone = imported or grid.finished(
        evaluator, self.networks.models(self.exp.arms), folder=parts
      )
      rows = grid.gather(evaluator, everyone, folder=parts)
      if parallel.is_writer():
        folder = self.folder / 'results'
        seen = inspection.read(everyone, folder=parts)
        artifacts.save_rows(self.exact.grid, rows, folder=folder, seed=self.config.seed, more=seen)
    context = artifacts.Context(
      self.exact,
      self.config,
      self.folder / 'results',
      evaluator,
      self._test_batches,
      self.source,
      stopper,
      everyone,
    )
    with errors.during('saving attacked examples'):
      artifacts.save_pictures(context, models, rows)
      _stop_if_asked(stopper)
      artifacts.save_worst(context, models, rows)
    _stop_if_asked(stopper)
    for study in self.exact.studies:
      with errors.during(f'evaluating {study.name}'):
        study.run(context, models, rows)
    if parallel.is_writer() and self.command.stage == 'evaluate':
      self._print_table()
      print(f'rows: {self.folder / "results" / "rows.parquet"}')
      print(f'summary: {self.folder / "results" / "summary.csv"}')

  def report(self) -> None:
    if not (self.folder / 'results' / 'rows.parquet').exists():
      raise errors.UserError(
        f'{self.folder} has no results yet; run --stage evaluate (or all) before --stage report'
      )
    report.write(self.folder, spec=self.exp.report(self.folder))
    self._print_table()
    print(f'report: {self.folder / "report" / "report.html"}')

  # Parts --------------------------------------------------------------------------------------

  def _load(self, *fold):
    source = self.exp.data_of(*fold).load()
    workdir.claim_data(self.folder, source.info)
    return source

  def _evaluated(self) -> list[str]:
    """The arms to evaluate: those asked for, and the needs of those that are left to studies."""
    asked = [name for name in self.order if name not in self.extra]
    arms = self.exp.arms
    found = [[name] if arms[name].evaluated is not False else arms[name].needs for name in asked]
    return list(
      dict.fromkeys(name for names in found for name in names if arms[name].evaluated is not False)
    )

  def _test_batches(self, *fold):
    source = self.source(*fold)
    return artifacts.evaluation_batches(source.test, source, self.config)

  def _forecast(self, stage, imported) -> None:
    models = imported or self.networks.models(self._evaluated())
    untrained = [] if imported else self.networks.untrained(self.order)
    work = forecast.remaining(
      self.exp,
      self.config,
      untrained=[name for name, _ in untrained] if stage != 'evaluate' else (),
      models=models if stage != 'train' else (),
      results=self.folder / 'results',
      finished=[name for name in self.exp.arms if not self.networks.untrained([name])],
    )
    with errors.during('measuring the speed for the forecast'):
      main = self.exp.grid.probes[self.exp.grid.main].objective
      batches = functools.partial(self._test_batches, *self.exp.trials()[0].fold)
      learning = forecast.learning(self.exp, self._train_sample, without=self._checks)
      forecast.announce(work, objective=main, batches=batches, learning=learning)

  def _train_sample(self, arm):
    """The first batch of an arm's training and its augmentation."""
    source = self.source(*self.exp.trials()[0].fold)
    batch = next(self._train_batches(source, arm.train, 0, 0))
    batch = parallel.pad(batch, parallel.round_up(len(batch['mask'])))
    return batch, (arm.augment or self.exp.data.augment)(source)

  def _print_table(self) -> None:
    table = inputs.read_summary(self.folder)
    metric = self.exp.grid.checks['metric']
    shown = table[(table.metric == metric) & table.attack.isin([grid.CLEAN, self.exp.grid.main])]
    pivot = shown.pivot_table(index='arm', columns='eps', values='mean', sort=False)
    order = [name for name in self.order if name in pivot.index]
    pivot = pivot.reindex([*order, *[n for n in pivot.index if n not in order]])[sorted(pivot)]
    print(f'\n{metric} under {self.exp.grid.main} (columns: eps, {self.exp.task.units})')
    print(pivot.to_string(float_format=lambda value: f'{value:.3f}'))
    for check in inputs.read_checks(self.folder):
      if check.status in ('warn', 'fail'):
        print(f'check {check.status}: {check.name} ({check.arm}): {check.detail}')


def _key(config_seed: int, seed: int, own: int) -> jax.Array:
  key = jax.random.fold_in(jax.random.key(config_seed), seed)
  return jax.random.fold_in(key, own) if own else key


def _stop_if_asked(stopper: console.Stopper) -> None:
  if stopper.requested():
    console.say('stopped; run the same command to resume')
    raise console.Stopped
