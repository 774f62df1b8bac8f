"""The study of every finished generator against the segmenters, and arrays for the figures."""

import functools
from collections.abc import Collection

import jax
import numpy as np
import pandas as pd

from robustmed import types
from robustmed.data.abdomen import ct_slices
from robustmed.evaluation import trials
from robustmed.generators import synthesis
from robustmed.papers.synthesis import arms
from robustmed.papers.synthesis import slices as evaluation
from robustmed.process import console, files, parallel
from robustmed.runs import artifacts, costs
from robustmed.training import checkpoints

PARTS, ROWS, SUBJECTS = 'generators', 'generators.parquet', 'subjects.parquet'
PICTURES, LOOKS = 'generators.npz', 'looks.csv'


def evaluate(config, context, models, rows) -> None:
  """Writes results/generators.parquet (slices), subjects.parquet, looks.csv and generators.npz."""
  del models, rows
  seeds = sorted({model.seed for model in context.everyone})
  model = arms.make_model(config)
  root = context.results.parent / 'checkpoints'
  folder = lambda arm, seed: root / arm / f'seed{seed}'
  segmenters = {(one.arm, one.seed): one for one in context.everyone}
  cases = _cases(config, model, folder, seeds, segmenters)
  programs = evaluation.Programs(
    model,
    key=jax.random.key(config.seed),
    draws=config.synthesis.draws,
    pgd_steps=config.synthesis.pgd_steps,
  )
  found = evaluation.run(
    cases,
    programs,
    seeds=seeds,
    task_of=context.exp.task_of,
    load=lambda arm, seed: segmenters[arm, seed].load(),
    batches=lambda: artifacts.evaluation_batches(
      context.source().volumes, context.source(), config
    ),
    folder=context.results / PARTS,
    stopper=context.stopper,
  )
  if parallel.is_writer():
    _save(config, context, found, cases, folder, seeds)
  _save_pictures(config, context, model, cases, segmenters, seeds)


def study_cells(
  config, slices, model, task_of, arm: str, trial: trials.Trial, finished: Collection[str]
) -> dict[str, types.Cost]:
  """{file in results/: cost} of the generators trained against `arm`.

  slices: () -> number of slices of all test subjects. task_of: arm -> its task. finished: all arms
  of the run.
  """
  cost = functools.partial(
    evaluation.cost,
    images=costs.padded(slices(), config.evaluate.batch_size),
    task_of=task_of,
    generator=model.generator,
    pgd_steps=config.synthesis.pgd_steps,
    draws=config.synthesis.draws,
  )
  cases = _among(_planned(config, lambda name: None), finished)
  return {f'{PARTS}/{case.file(trial.seed)}': cost(case) for case in cases if case.target == arm}


def _planned(config, loader) -> list[evaluation.Case]:
  """The cases of a whole run; `loader` gives an arm's (seed) -> variables."""
  options = config.synthesis
  hardened = arms.HARDENED if options.hardened_at else ''
  attacked = [arm for arm in (options.target, options.second, hardened) if arm]
  cases = []
  for name, (xi, target) in arms.generator_cases(config).items():
    others = [] if target == hardened else [arm for arm in attacked if arm != target]
    controls = xi in options.controls_at
    cases.append(evaluation.Case(name, xi, loader(name), target, (target, *others), controls))
  return cases


def _among(cases, finished: Collection[str]) -> list[evaluation.Case]:
  """The cases whose generator and target are finished, each with its finished segmenters."""
  return [
    case._replace(segmenters=tuple(arm for arm in case.segmenters if arm in finished))
    for case in cases
    if case.name in finished and case.target in finished
  ]


def _cases(config, model, folder, seeds, segmenters) -> list[evaluation.Case]:
  """The cases whose generator and segmenters are finished in every seed."""
  finished = {arm for arm, _ in segmenters if all((arm, seed) in segmenters for seed in seeds)}
  loader = lambda name: (
    lambda seed: checkpoints.load_variables(folder(name, seed) / 'variables', model.task)
  )
  planned = _planned(config, loader)
  for case in planned:
    done = all((folder(case.name, seed) / 'variables').exists() for seed in seeds)
    if bool(parallel.broadcast_from_writer(np.array(done))):
      finished.add(case.name)
  return _among(planned, finished)


def _save(config, context, found, cases, folder, seeds):
  if found.empty:
    return
  organs = ct_slices.ORGANS
  table = evaluation.subjects(found, organs, min_pixels=config.synthesis.weights.min_pixels)
  for name, frame in ((ROWS, found), (SUBJECTS, table)):
    with files.replacing(context.results / name) as temporary:
      frame.to_parquet(temporary, index=False)
  looks = []
  for case in cases:
    for seed in seeds:
      path = folder(case.name, seed) / 'best' / 'looks.json'
      if path.is_file():
        same = {'arm': case.name, 'seed': seed, 'xi': case.xi, 'target': case.target}
        looks += [{**same, **row} for row in files.read_json(path)]
  with files.replacing(context.results / LOOKS) as temporary:
    pd.DataFrame(looks).to_csv(temporary, index=False, float_format='%.6g')
  console.say(f'generators against segmenters: {context.results / SUBJECTS}')


def _save_pictures(config, context, model, cases, segmenters, seeds) -> None:
  """Writes slices with all organs under the generator of `pictured`: two draws, fields, outputs."""
  wanted = config.synthesis.pictured
  target = config.synthesis.target
  chosen = [case for case in cases if case.target == target and case.xi == wanted]
  if not chosen or not config.report.pictures:
    return
  case, seed, source = chosen[0], seeds[0], context.source()
  present = [int(example['present'].sum()) for example in source.volumes]
  best = np.flatnonzero(np.array(present) == max(present))
  places = best[:: max(1, len(best) // config.report.pictures)][: config.report.pictures]
  examples = [source.crop(source.volumes[int(place)]) for place in places]
  image = np.stack([example['image'] for example in examples])
  task, variables = context.exp.task_of(target), segmenters[target, seed].load()
  segment = jax.jit(lambda image: task.predict(variables, image)['head0'].argmax(-1))
  generator = case.generator(seed)

  @jax.jit
  def draw(image, key):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(image)))
    fields, _ = model.draw(generator, image, keys, train=False)
    return synthesis.compose(image, fields), fields.displacement, fields.intensity

  stored = {
    'image': image[..., 0],
    'truth': np.stack([example['labels'] for example in examples]),
    'clean': np.asarray(segment(image)),
    'name': np.array([example['name'] for example in examples]),
  }
  for number in range(2):
    attacked, field, intensity = draw(image, jax.random.key(config.seed + number))
    stored |= {
      f'attacked{number}': np.asarray(attacked)[..., 0],
      f'D{number}': np.asarray(field),
      f'V{number}': np.asarray(intensity)[..., 0],
      f'found{number}': np.asarray(segment(attacked)),
    }
  if parallel.is_writer():
    with files.replacing(context.results / PICTURES) as temporary:
      np.savez_compressed(temporary, xi=wanted, arm=case.name, **stored)
