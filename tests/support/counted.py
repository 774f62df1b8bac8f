"""The main program with a count of the passes through networks that it makes.

Every program of `parallel.each_device` is traced once more for each shape that it is called with.
The trace has a mark where a network begins, and one where a derivative by its image or by its
parameters ends; what is in a loop counts as often as the loop runs. The programs that run have the
marks as well: they are the identity and compile to nothing.
"""

import collections
import contextlib
import json

import flax.linen as nn
import jax
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from robustmed import main, papers
from robustmed.process import parallel
from robustmed.runs import commandline, description

mark = core.Primitive('mark')
mark.def_impl(lambda x, **_: x)
mark.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(mark, lambda context, x, **_: [x])
batching.primitive_batchers[mark] = lambda args, dims, **kw: (mark.bind(*args, **kw), dims[0])
_inside = [False]
FACTOR = 1.5


def _jvp(primals, tangents, *, what, **kw):
  (x,), (t,) = primals, tangents
  out = mark.bind(x, what=what, **kw)
  if isinstance(t, ad.Zero):
    return out, t
  return out, mark.bind(t, what={'image': 'tangent', 'params': 'slope'}.get(what, 'other'), **kw)


def _transpose(cotangent, x, *, what, **kw):
  if isinstance(cotangent, ad.Zero):
    return [cotangent]
  ends = {'tangent': 'by_image', 'slope': 'by_params'}
  return [mark.bind(cotangent, what=ends.get(what, 'other'), **kw)]


ad.primitive_jvps[mark] = _jvp
ad.primitive_transposes[mark] = _transpose


def _applied(inner):
  """`nn.Module.apply` with marks on what it is given, unless another module calls it."""

  def apply(module, variables, *args, **kwargs):
    if _inside[0] or not args or not getattr(args[0], 'ndim', 0):
      return inner(module, variables, *args, **kwargs)
    part = kwargs.get('method')
    name = type(module).__name__ + (f'.{part}' if part else '')
    named = {'network': name, 'size': len(args[0])}
    # Some parameters, as those of outputs without a loss, have no derivative: several are marked.
    leaves, shape = jax.tree.flatten(variables['params'])
    for place in {0, len(leaves) // 2, len(leaves) - 1}:
      leaves[place] = mark.bind(leaves[place], what='params', place=place, **named)
    params = jax.tree.unflatten(shape, leaves)
    image = mark.bind(args[0], what='image', place=0, **named)
    _inside[0] = True
    try:
      return inner(module, {**variables, 'params': params}, image, *args[1:], **kwargs)
    finally:
      _inside[0] = False

  return apply


def _marks(jaxpr, times, found):
  for eqn in jaxpr.eqns:
    if eqn.primitive is mark:
      named = eqn.params
      found[named['network'], named['what'], named['place']] += times * named['size']
    within = times * (eqn.params['length'] if eqn.primitive.name == 'scan' else 1)
    has_equations = lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=has_equations):
      if has_equations(value):
        _marks(getattr(value, 'jaxpr', value), within, found)
  return found


def _counting(each_device, total):
  """`parallel.each_device` whose programs add their marks to `total` whenever they are called."""

  def make(function, *, split, gathered=True):
    run, known = each_device(function, split=split, gathered=gathered), {}

    def call(*args):
      leaves, structure = jax.tree.flatten(args)
      shapes = tuple((np.shape(leaf), str(getattr(leaf, 'dtype', ''))) for leaf in leaves)
      if (structure, shapes) not in known:
        jaxpr = jax.make_jaxpr(run.mapped(args))(*run.cut(args)).jaxpr
        known[structure, shapes] = _marks(jaxpr, 1, collections.Counter())
      for what, count in known[structure, shapes].items():
        total[what] += count * parallel.local_device_count()
      return run(*args)

    call.__dict__.update(run.__dict__)
    return call

  return make


def by_network(total):
  """{network: {kind: passes}}; a pass with a derivative by the parameters is a training pass."""
  found = {}
  for network in {name for name, *_ in total}:
    count = lambda what, own=network: max(
      (total[key] for key in total if key[:2] == (own, what)), default=0
    )
    passes = count('by_params')
    gradients = max(0, count('by_image'))
    forwards = max(0, count('image') - passes - gradients)
    found[network] = {'gradients': gradients, 'forwards': forwards, 'passes': passes}
  return found


@contextlib.contextmanager
def counting():
  """Yields a counter of the marks of all programs that are made within."""
  total, apply, each_device = collections.Counter(), nn.Module.apply, parallel.each_device
  nn.Module.apply, parallel.each_device = _applied(apply), _counting(each_device, total)
  try:
    yield total
  finally:
    nn.Module.apply, parallel.each_device = apply, each_device


def run(words, path):
  """The main program on `words`; {network: {kind: passes}} is written to `path`."""
  with counting() as total:
    code = main.main(words)
  with open(path, 'w') as file:
    json.dump(by_network(total), file, indent=2)
  return code


def check(path, config, arms=()):
  """Asserts that what a run of `config` (path:preset) counted into `path` is what was forecast."""
  config = commandline.load_config(config)
  exp = papers.find(config.experiment).build(config)
  forecast = description.describe(exp, config, arms, light=True)['passes']['by_kind']
  with open(path) as file:
    networks = json.load(file)
  counted = {kind: sum(network[kind] for network in networks.values()) for kind in forecast}
  parts = [name for name in networks if '.' in name]
  assert sum(counted.values()) > 100
  told = f'forecast {forecast}, counted {counted}'
  pairs = [(sum(forecast.values()), sum(counted.values()))]
  if not parts:  # a training of parts in turn is no one pass
    pairs += [(forecast[kind], counted[kind]) for kind in forecast]
  for found, wanted in pairs:
    assert wanted / FACTOR <= found <= wanted * FACTOR, told
