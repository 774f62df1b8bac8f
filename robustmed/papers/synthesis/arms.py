"""The arms of the synthesis experiment that are not plain segmenters: generators, hardening."""

import functools

import jax
import ml_collections

from robustmed import errors, types
from robustmed.data import pipeline, store
from robustmed.data.abdomen import ct_slices
from robustmed.generators import hardening, synthesis, training
from robustmed.runs import experiment

HARDENED = 'hardened'


def generator_name(xi: float, target: str, first: str) -> str:
  return f'gen_{xi:g}' if target == first else f'gen_{xi:g}_{target}'


def make_model(config: ml_collections.ConfigDict) -> synthesis.Model:
  side, options = config.data.side, config.synthesis.network.to_dict()
  known = dict.fromkeys((*synthesis.GENERATOR, *synthesis.CRITIC))
  for name in options:
    errors.lookup(known, name, kind='field of synthesis.network')
  return synthesis.make(options, image_shape=(side, side, 1))


def make_weights(config: ml_collections.ConfigDict) -> training.Weights:
  options = config.synthesis.weights.to_dict()
  for name in options:
    errors.lookup(dict.fromkeys(training.Weights._fields), name, kind='field of synthesis.weights')
  return training.Weights(**options)


def generator_cases(config: ml_collections.ConfigDict) -> dict[str, tuple[float, str]]:
  """Arm -> (xi, arm that it attacks) of every generator, in the order of training."""
  options = config.synthesis
  wanted = [(options.target, xi) for xi in options.levels]
  wanted += [(options.second, xi) for xi in options.second_levels if options.second]
  wanted += [(HARDENED, xi) for xi in options.fresh_levels if options.hardened_at]
  for _, xi in wanted:
    if not 0 <= xi < float('inf'):
      raise errors.UserError(f'synthesis levels must be finite and at least 0, not {xi:g}')
  return {generator_name(xi, arm, options.target): (float(xi), arm) for arm, xi in wanted}


def make(config, task, arms, model: synthesis.Model) -> dict[str, experiment.Arm]:
  """The generators and the hardened segmenter, which trains on their images."""
  options, weights = config.synthesis, make_weights(config)
  rules = dict(config.synthesis.to_dict()['train'])
  # The hardened network has the model of the target, from whose weights it starts.
  own_task = lambda arm: arms[options.target if arm == HARDENED else arm].network.task or task
  for arm in (options.target, *([options.second] if options.second else [])):
    errors.lookup(arms, arm, kind='arm that a generator attacks')
  made = {}
  for name, (xi, target) in generator_cases(config).items():
    victim = own_task(target)
    defense_of = functools.partial(training.make, model, victim, xi=xi, weights=weights)
    made[name] = experiment.Arm(
      name=name,
      defense=defense_of(segmenter=()),
      train=experiment.train_options(config, {'train': rules}),
      network=experiment.Network(
        model.task, {'generator': {**options.network.to_dict(), 'xi': xi}}
      ),
      augment=lambda source: None,
      evaluated=False,
      prepared=experiment.Prepared(
        needs=(target,),
        defense=lambda finished, defense_of=defense_of, target=target: defense_of(
          segmenter=finished.load(target)
        ),
        source=_whole_slices,
        cost=functools.partial(_looks, config, model, victim, rules),
        selection=functools.partial(_selection, config, model, victim, xi=xi, target=target),
      ),
    )
  if options.hardened_at:
    made[HARDENED] = _hardened(config, model, arms[options.target], task, made)
  return made


def _hardened(config, model, target, task, generators) -> experiment.Arm:
  options = config.synthesis
  names = tuple(generator_name(xi, options.target, options.target) for xi in options.hardened_at)
  for name in names:
    errors.lookup(generators, name, kind='generator to harden against')
  fields = options.hardening.to_dict()
  rules = fields.pop('train')
  known = dict.fromkeys(('share', 'follow'))
  for name in fields:
    errors.lookup(known, name, kind='field of synthesis.hardening')
  defense_of = functools.partial(
    hardening.make, model, target.network.task or task, coupled=target.defense.coupled, **fields
  )
  return experiment.Arm(
    name=HARDENED,
    defense=defense_of(variables=()),
    train=experiment.train_options(config, {'train': rules}),
    init_from=options.target,
    network=target.network,
    prepared=experiment.Prepared(
      needs=names,
      defense=lambda finished: defense_of(variables=tuple(map(finished.load, names))),
      source=_whole_slices,
    ),
  )


def _looks(config, model, victim, rules, examples) -> types.Cost:
  """The cost of looking at all checkpoints of a generator (`_selection`)."""
  count = rules['steps'] // rules['checkpoint_every'] * min(config.synthesis.judged, examples)
  looks = types.Cost(forwards=count, passes=0)
  return types.Cost(
    passes=0,
    others=((model.generator, looks), (victim, looks._replace(forwards=2 * count))),
  )


def _whole_slices(finished):
  """The run's source with whole slices as training examples."""
  source = finished.source
  return source._replace(sampling=ct_slices.whole_slice_sampling(source))


def _selection(config, model, victim, finished, *, xi, target):
  """The `training.selection.Judge` of a generator's weights.

  It validates on config.synthesis.judged slices with organs, evenly spaced over the validation
  split, or over the training split if there is none.
  """
  source, count = finished.source, config.synthesis.judged
  split = 'validation' if source.validation is not None else 'train'
  shown = ct_slices.slices_with_organs(source, split)
  shown = shown[:: max(1, len(shown) // count)][:count]
  chosen = store.Part(getattr(source, split), shown.tolist())
  batches = lambda: pipeline.eval_batches(
    chosen,
    batch_size=min(config.evaluate.batch_size, len(chosen)),
    shard_index=0,
    shard_count=1,
    crop=source.crop,
  )
  key = jax.random.fold_in(jax.random.key(config.seed), 0x10D6E)
  return training.make_validation(
    model,
    victim,
    xi=xi,
    segmenter=finished.load(target),
    batches=batches,
    key=key,
    min_pixels=config.synthesis.weights.min_pixels,
    tolerance=config.synthesis.tolerance,
  )
