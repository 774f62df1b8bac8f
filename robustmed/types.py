"""Every contract of the system on one screen. b = batch, always the leading axis."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any

# {'image': [b, *spatial, c], 'target': pytree of [b, ...], 'mask': [b] bool (False = padding),
#  'index': [b] int32 (stable sample id), 'group': [b] int32 (patient, volume, scan)};
#  in training also 'draw': [b] int32, the example's number in the run's global stream of draws, and
#  for losses 'progress': [b], the fraction of training done
Batch = Mapping[str, Any]
Objective = Callable[[Array], Array]  # image -> [b]; an attack maximises it per example
Monitor = Callable[[Array], PyTree]  # image -> pytree of [b, ...], evaluated at every scored point


class Flags(NamedTuple):
  """Signs that an attack could not search, [b] bool each: do not count these as robust."""

  no_gradient: Array  # no step had a gradient other than 0
  not_finite: Array  # the objective was NaN or infinite at a scored point
  not_moved: Array  # x is the centre, though eps is above 0
  wrong_eps: Array  # eps is negative or NaN, and was taken as 0


class AttackResult(NamedTuple):
  """What an attack returns; every field is per example."""

  x: Array  # the chosen iterate, [b, ...]
  value: Array  # objective at x, [b]
  distance: Array  # norm of x - centre under the threat, [b]
  monitored: PyTree = None  # the monitor's values, reduced; [num_points, b, ...] for fold='trace'
  last_x: Array | None = None  # with keep='both': the last iterate ...
  best_x: Array | None = None  # ... and the best one
  flags: Flags | None = None


class Attack(Protocol):
  """Changes `x`, an image, a latent code or any array [b, ...], by at most `eps`, scalar or [b].

  `eps` may be traced. `key` is one key (example i uses fold_in(key, i)) or [b] keys.
  """

  minimise: bool  # the objective is decreased instead of increased
  judged: bool  # the monitor, then [b] and larger where worse, chooses the iterate that is returned
  num_gradients: int  # input gradients per example
  num_forwards: int  # forward passes per example without a gradient

  def __call__(
    self,
    objective: Objective,
    x: Array,
    *,
    eps: Array | float,
    key: Array,
    monitor: Monitor | None = None,
    start_radius: Array | float | None = None,
  ) -> AttackResult: ...


class Strata(NamedTuple):
  """Kinds of examples; only losses of one kind can be compared with each other."""

  names: tuple[str, ...]
  of: Callable[[Batch], Array]  # batch -> [b] int32, places in `names`


class Task(NamedTuple):
  """Pure functions that bind a network's outputs to losses, attack objectives and metrics."""

  init: Callable[..., PyTree]  # (key) -> variables {'params': ..., 'batch_stats': ...}
  predict: Callable[..., PyTree]  # (variables, image) -> outputs, inference mode
  forward: Callable[..., tuple[PyTree, PyTree]]  # (variables, image, key) -> (outputs, state)
  losses: Callable[..., dict[str, Array]]  # (outputs, batch) -> {term: [b]}
  objectives: Mapping[str, Callable[..., Array]]  # name -> (outputs, batch) -> [b]
  # batch['image'] is the input of the network, batch['clean'] the same image before the attack
  metrics: Callable[..., dict[str, Array]]  # (outputs, batch) -> {name: [b]}
  image_shape: tuple[int, ...]  # one example, channels last
  units: str = ''  # what eps is measured in, printed beside it
  # (outputs) -> {'_saturated': [b], ...}: what the checks of the results read
  diagnostics: Callable[..., dict[str, Array]] = lambda outputs: {}
  # (outputs, batch) -> {output: ([b, ...], its target of the same shape)}, in the same units: that
  # an output moves with the image as its target does is one of the checks
  compared: Callable[..., dict[str, tuple[Array, Array]]] = lambda outputs, batch: {}
  # losses with terms that couple the examples of a batch, e.g. a Dice of the whole batch: the
  # gradient of their masked mean is that of the coupled loss. In training only, never in attacks
  coupled: Callable[..., dict[str, Array]] | None = None
  # (outputs, temperature) -> (the outputs with their logits divided by it, the same as targets for
  # another network), for distillation
  soften: Callable[..., tuple[PyTree, PyTree]] | None = None
  strata: Strata | None = None  # None: the losses of all examples can be compared
  # `attacks.space.Space`: what attacks move and eps is measured in, in training and evaluation,
  # where that is not the image
  space: Any = None


class Phase(NamedTuple):
  """One update inside a train step: which parameters, which optimiser, which loss.

  loss: (params, context) -> (values [b], aux), context being a `LossContext`.
  """

  name: str
  loss: Callable[..., tuple[Array, dict[str, Any]]]
  subset: str | None = None  # regular expression on 'a/b/c' parameter paths; None = all
  optimiser: str = 'main'
  repeat: int = 1
  # (params, context) -> `LossContext.made`, leaves [b, ...]: what the loss takes no gradient of, so
  # that it need not be made for each of several passes over a batch
  prepare: Callable[..., PyTree] | None = None


class LossContext(NamedTuple):
  """The inputs of a phase's loss beside the parameters; all are traced."""

  state: PyTree  # non-parameter collections, e.g. batch statistics
  memory: PyTree  # the defense's memory
  batch: Batch
  keys: Array  # [b] one key per example, independent of batch size and device count
  key: Array  # one key per step and device, for dropout
  progress: Array  # fraction of training done, in [0, 1]
  made: PyTree = ()  # what `Phase.prepare` made of this batch; (): the loss makes it itself


class Cost(NamedTuple):
  """Passes through networks, for forecasts; of a defense per example and step."""

  gradients: float = 0.0  # input gradients of attacks
  forwards: float = 0.0  # forward passes alone
  passes: float = 1.0  # training passes, forward and backward
  others: tuple[tuple[Task, Any], ...] = ()  # (task, `Cost`) of other networks than the task's own


class Defense(NamedTuple):
  """How a network is trained: the updates of one step, and a memory carried between steps.

  init: (num_examples) -> memory; num_examples is above every batch['index']. update: (memory, aux,
  batch) -> memory, with aux and batch gathered from all devices, so that every device computes the
  same memory. summaries: table name -> (memory -> {column: number}), logged while training.
  """

  phases: tuple[Phase, ...]
  init: Callable[[int], PyTree] = lambda num_examples: ()
  update: Callable[..., PyTree] = lambda memory, aux, batch: memory
  cost: Cost = Cost()
  coupled: bool = False  # trains on the task's coupled losses; shown in reports
  summaries: Mapping[str, Callable[[PyTree], dict[str, Array]]] = {}
