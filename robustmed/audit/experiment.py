"""The audit of trained networks on the user's own labelled images, without any code."""

import functools

import jax
import ml_collections

from robustmed import errors
from robustmed.audit import breaking, label_maps, page, results, setup, threat
from robustmed.data.labelled import study
from robustmed.evaluation import checks, grid, stored_tables
from robustmed.evaluation.smoothing import beside
from robustmed.own_data import segmentation as own_data
from robustmed.process import console
from robustmed.runs import costs, experiment

MAIN, ONE_STEP, NOISE = 'pgd', 'one_step', 'noise'


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of configs/audit.py; reads networks and folder, and prints what it chose.

  Levels and the picture's level that are left open are filled into `config`.
  """
  made = setup.make(config)
  choose(config, made)
  tasks = setup.tasks(made)
  first = next(iter(tasks.values()))
  probes = probes_of(first, config, made)
  facts = study.facts_of(made.study)
  return experiment.Experiment(
    task=first,
    arms={name: _arm(name, task, made.audited[name]) for name, task in tasks.items()},
    data=experiment.Data(
      sizes=lambda: setup.sizes(made),
      load=functools.lru_cache(maxsize=1)(lambda: setup.load(made, tasks)),
      groups=lambda: setup.groups(made),
    ),
    grid=grid_of(probes, made, undefended=next(iter(tasks)), inspected=tuple(tasks)),
    report=lambda folder: page.write(folder, made, config, probes),
    claims=lambda: page.claims_of(made, config),
    artifacts=experiment.Artifacts(
      made.part.write_example(made, facts), made.part.pictures, made.part.lattice_of(made, facts)
    ),
    studies=studies_of(probes, config, made),
  )


def choose(config: ml_collections.ConfigDict, made: setup.Setup) -> None:
  """Fills in what `config` leaves to networks and data, and prints it."""
  with config.unlocked():
    config.evaluate.levels = made.threat.levels
    if not config.report.picture_eps:
      config.report.picture_eps = made.threat.levels[(len(made.threat.levels) - 1) // 2]
  if said := page.demonstration(config):
    console.say(said)
  if config.network or config.networks or config.data.dir:
    for line in (*study.lines(made.study), *sum((one.lines for one in made.audited.values()), ())):
      console.say(line)
    console.say(f'levels: {"; ".join(made.threat.text(eps) for eps in made.threat.levels)}')
    if made.distances is not None:
      console.say(f'distances: {made.distances.words} (report.tolerance)')


def probes_of(task, config: ml_collections.ConfigDict, made: setup.Setup) -> dict[str, grid.Probe]:
  """Returns the probes of config.evaluate: attacks in the units of the threat, artefacts and
  transforms in their own."""
  artefact = made.threat.space(threat.ARTEFACT)
  return {
    name: probe._replace(space=artefact) if name in config.evaluate.corruptions else probe
    for name, probe in experiment.make_probes(task, config, main=MAIN).items()
  }


def grid_of(
  probes, made: setup.Setup, *, undefended: str, inspected: tuple[str, ...]
) -> experiment.Grid:
  """Returns attacks, levels and checks, with one row of results per case."""
  return experiment.Grid(
    probes,
    MAIN,
    checks={
      'metric': made.part.METRIC,
      'higher_is_better': made.part.HIGHER_IS_BETTER,
      'main': MAIN,
      'one_step': ONE_STEP,
      'noise': NOISE,
      'undefended': undefended,
    },
    subjects=functools.partial(made.part.subjects, made),
    host=made.part.host(made),
    inspected=inspected,
    more_checks=functools.partial(
      checks.of_untouched,
      metric=made.part.METRIC,
      poor=made.part.POOR,
      classes=own_data.names(made) if made.part is label_maps else (),
    ),
  )


def studies_of(probes, config: ml_collections.ConfigDict, made: setup.Setup):
  """Returns the search for the smallest breaking eps of each case and the certified bounds."""
  found = []
  if config.evaluate.halvings:
    found.append(
      breaking.study(
        probes,
        attacks=results.bounded(probes, config),
        main=MAIN,
        metric=made.part.BREAKING,
        share=config.report.broken,
        halvings=config.evaluate.halvings,
        case_of=made.part.case_of,
        size=lambda: costs.padded(setup.sizes(made)['test'], config.evaluate.batch_size),
      )
    )
  if smoothing := beside.plan(config.evaluate.get('smoothing', {})):
    if made.part.KIND == 'landmarks' or made.study.regions:
      raise errors.UserError(
        'evaluate.smoothing certifies one label of each pixel or image; there are '
        f'{"regions" if made.study.regions else "landmarks"} here, leave it out'
      )
    found.append(_certified(probes[MAIN], smoothing, made, config))
  return tuple(found)


def _certified(probe: grid.Probe, smoothing: beside.Plan, made: setup.Setup, config):
  """The study that certifies each smoothed network and attacks it at the same radii."""

  def run(context, models, rows) -> None:
    del rows
    tables = [
      stored_tables.Table(
        beside.file_of(model.arm, model.trial),
        functools.partial(table, context, model),
        f'certified bounds of {model.arm}',
        model.arm,
      )
      for model in models
    ]
    stored_tables.fill_missing(
      'certified bounds', tables, folder=context.results, stopper=context.stopper
    )

  def table(context, model):
    found = beside.table(
      context.exp.task_of(model.arm),
      model.load(),
      context.batches(*model.trial.fold),
      objective=probe.objective,
      space=probe.space,
      made=smoothing,
      classes=len(made.study.classes),
      key=jax.random.key(config.seed),
    )
    return found.assign(arm=model.arm)

  def cells(arm, trial, arms):
    del arms
    count = min(smoothing.images, setup.sizes(made)['test'])
    return {beside.file_of(arm, trial): beside.cost(smoothing, count)}

  return experiment.Study('certified beside attacked', run, cells)


def _arm(name, task, audited) -> experiment.Arm:
  network = experiment.Network(
    task, {'network': audited.network.name}, functools.partial(task.init, None)
  )
  return experiment.Arm(
    name=name,
    defense=experiment.make_defense(task, {'name': 'standard'}),
    train={'steps': 0, 'batch_size': 1},
    network=network,
  )
