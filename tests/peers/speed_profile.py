"""Says where the CPU time of our attacks goes, by kinds of operations; writes two CSV files.

  taskset -c 1 python tests/peers/speed_profile.py spine hippo brats3d ceph bccd --out FOLDER

Of the workloads of speed.py, on one core: then the operations run one after the other, and the
times that JAX's profiler notes for them add up. profile.csv has a row per workload, layers.csv one
for every shape of convolution that takes at least 1 %. An operation belongs to the module of
robustmed/ops that made it, and is a copy where it only moves numbers. Milliseconds are CPU time
without the profiler, divided in the shares that it found. FLOPs are those of the compiled program,
borders included.
"""

import argparse
import collections
import csv
import math
import os
import pathlib
import re
import statistics
import tempfile
import time
from typing import NamedTuple

import speed

PARTS = {
  'norms.py': 'norms',
  'batch_norm.py': 'norms',
  'pool.py': 'pools and resizes',
  'resize.py': 'pools and resizes',
}
PRODUCTS, COPIES, REST, BETWEEN = 'convolutions', 'copies', 'other elements', 'between'
COLUMNS = (PRODUCTS, 'norms', COPIES, 'pools and resizes', REST, BETWEEN)
# Opcodes that compute nothing.
_MOVES = ('parameter', 'bitcast', 'copy', 'transpose', 'reshape', 'slice', 'pad', 'concatenate')
_MOVES += ('reverse', 'broadcast', 'constant', 'tuple', 'get-tuple-element', 'dynamic-slice')
_MOVES += ('dynamic-update-slice',)
_LINE = re.compile(r'^\s*(?:ROOT )?%([\w.-]+) = (\([^=]*\)|\S+) ([\w-]+)\((.*)$')
_SIZES = re.compile(r'\w+\[([\d,]*)\]')


class Operation(NamedTuple):
  """An operation of a compiled program."""

  part: str  # of `COLUMNS`
  layer: str = ''  # of convolutions: their shape
  flops: float = 0.0


class _Line(NamedTuple):
  result: str
  opcode: str
  rest: str


def operations(text: str) -> dict[str, Operation]:
  """Name -> operation, from the text of a compiled program."""
  bodies: dict[str, dict[str, _Line]] = {}
  body: dict[str, _Line] = {}
  for line in text.splitlines():
    if line.endswith('{') and (head := re.match(r'(?:ENTRY )?%([\w.-]+) ', line)):
      body = bodies[head[1]] = {}
    elif found := _LINE.match(line):
      body[found[1]] = _Line(*found.groups()[1:])
  frames = _frames(text)
  return {
    name: _operation(line, body, bodies, frames)
    for body in bodies.values()
    for name, line in body.items()
  }


def _frames(text) -> dict[str, str]:
  """Number of a stack frame -> the innermost module of robustmed in it."""
  table = lambda name: re.search(rf'^{name}\n((?:\d+ .*\n)*)', text, re.M)
  rows = lambda name: dict(line.split(' ', 1) for line in table(name)[1].splitlines())
  number = lambda row, field: re.search(rf'{field}=(\d+)', row)[1]
  if not table('StackFrames'):
    return {}
  files, places, stack = rows('FileNames'), rows('FileLocations'), rows('StackFrames')
  found: dict[str, str] = {}
  for frame, row in stack.items():  # parents come before what they call
    file = files[number(places[number(row, 'file_location_id')], 'file_name_id')].strip('"')
    parent = str(int(number(row, 'parent_frame_id')) - 1)
    inner = pathlib.Path(file).name if '/robustmed/' in file else ''
    found[frame] = inner or found.get(parent, '')
  return found


def _operation(line, body, bodies, frames) -> Operation:
  called = re.search(r'calls=%([\w.-]+)', line.rest)
  inside = bodies.get(called[1], {}) if called and line.opcode == 'fusion' else {}
  for scope in ({'': line}, inside):
    for one in scope.values():
      if one.opcode in ('convolution', 'dot'):
        return _product(one, inside if scope is inside else body, line)
  if all(one.opcode in _MOVES for one in inside.values()) and (inside or line.opcode in _MOVES):
    return Operation(COPIES)
  frame = re.search(r'stack_frame_id=(\d+)', line.rest)
  module = frames.get(frame[1], '') if frame else ''
  if not frame:  # what the compiler has made of others
    near = [re.search(r'stack_frame_id=(\d+)', one.rest) for one in inside.values()]
    module = next((frames.get(one[1], '') for one in near if one), '')
  return Operation(PARTS.get(module, REST))


def _sizes(text) -> list[int]:
  return [int(size) for size in _SIZES.search(text)[1].split(',') if size]


def _product(one, scope, outer) -> Operation:
  """A convolution or a product of matrices, by its shape and whether it is of a backward pass."""
  operands = [scope[name].result for name in re.findall(r'%([\w.-]+)', one.rest.split(')')[0])]
  positions = math.prod(_sizes(one.result))
  named = re.search(r'op_name="([^"]*)"', one.rest) or re.search(r'op_name="([^"]*)"', outer.rest)
  back = ', input gradient' if named and 'transpose(' in named[1] else ''
  if one.opcode == 'dot':
    axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.rest)[1].split(',')
    inner = math.prod(_sizes(operands[0])[int(axis)] for axis in axes if axis)
    return Operation(PRODUCTS, f'matrix product{back}', 2.0 * positions * inner)
  taps = re.search(r'window=\{size=([\dx]+)', one.rest)
  stride = re.search(r'stride=(\d+)', one.rest)
  label = f'{taps[1] if taps else "1x1"}{f" by {stride[1]}" if stride else ""}{back}'
  kernel = _sizes(operands[1])
  order = re.search(r'dim_labels=\w+_(\w+)->', one.rest)[1]
  inner = math.prod(size for size, axis in zip(kernel, order, strict=True) if axis != 'o')
  return Operation(PRODUCTS, label, 2.0 * positions * inner)


def times(events, known) -> collections.Counter:
  """Name -> nanoseconds in operations of the program, those that they contain not counted.

  events: (name, begin, end) of one thread.
  """
  spent: collections.Counter = collections.Counter()
  stack: list[tuple[str, float]] = []
  for name, begin, end in sorted(events, key=lambda one: (one[1], -one[2])):
    if name not in known:
      continue
    while stack and stack[-1][1] <= begin:
      stack.pop()
    if stack:
      spent[stack[-1][0]] -= end - begin
    spent[name] += end - begin
    stack.append((name, end))
  return spent


def _traced(run) -> list[list[tuple[str, float, float]]]:
  """Events of each thread that the profiler notes while `run` goes."""
  import jax

  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      run()
    (path,) = pathlib.Path(folder).glob('**/*.xplane.pb')
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    lines = [line for plane in planes for line in plane.lines]
    spans = lambda line: [(one.name, one.start_ns, one.end_ns) for one in line.events]
    return [spans(line) for line in lines]


def _cpu_seconds(run, rounds) -> float:
  def once():
    begin = time.process_time()
    run()
    return time.process_time() - begin

  return statistics.median(once() for _ in range(rounds))


def _peak(rounds) -> float:
  """GFLOP/s of a product of matrices of 1536 x 1536 numbers."""
  import jax
  import jax.numpy as jnp

  square = jnp.ones((1536, 1536))
  product = jax.jit(jnp.dot)
  run = lambda: product(square, square).block_until_ready()
  run()
  return 2 * 1536**3 / _cpu_seconds(run, rounds) / 1e9


def profile(name, args):
  """Returns (row of the workload, rows of its convolutions)."""
  from robustmed.benchmark import workloads

  count, attacked, data = speed.attack_of(name, args)
  compiled = attacked.lower(*data).compile()
  known = operations(compiled.as_text())
  run = lambda: compiled(*data).block_until_ready()
  run()
  cpu = 1000 * _cpu_seconds(run, args.rounds) / count
  traced = _traced(run)
  loops = {key for key, one in known.items() if key.startswith('while')}
  spent = collections.Counter()
  for events in traced:
    spent.update(times(events, known))
  parts: collections.Counter = collections.Counter()
  layers: dict[str, list[float]] = {}
  calls = collections.Counter(key for events in traced for key, *_ in events if key in known)
  for key, nanoseconds in spent.items():
    one = known[key]
    # What a loop does itself is to wait for the next operation.
    parts[BETWEEN if key in loops else one.part] += nanoseconds
    if one.layer:
      layer = layers.setdefault(one.layer, [0.0, 0.0])
      layer[0] += nanoseconds
      layer[1] += one.flops * calls[key]
  total = sum(parts.values())
  share = lambda nanoseconds: f'{100 * nanoseconds / total:.1f}'
  rate = lambda spent, flops: f'{flops / (spent / total * cpu * count * 1e6):.0f}'
  flops = sum(layer[1] for layer in layers.values())
  row = {
    'workload': name,
    'steps': args.steps or workloads.WORKLOADS[name].steps,
    'CPU ms a gradient': f'{cpu:.4g}',
    **{f'% {part}': share(parts[part]) for part in COLUMNS},
    'GFLOP a gradient': f'{flops / count / 1e9:.4g}',
    'GFLOP/s of convolutions': rate(parts[PRODUCTS], flops),
    'GFLOP/s of a matrix product': f'{_peak(args.rounds):.0f}',
  }
  own, peak = list(row.values())[-2:]
  row['% of it'] = f'{100 * float(own) / float(peak):.0f}'
  found = [
    {'workload': name, 'convolution': layer, '%': share(spent), 'GFLOP/s': rate(spent, flops)}
    for layer, (spent, flops) in sorted(layers.items(), key=lambda one: -one[1][0])
    if spent >= 0.01 * total
  ]
  return row, found


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workloads', nargs='+', choices=speed.NAMES)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--size', type=int, default=48, help='side of the cubes of brats3d')
  parser.add_argument('--batch', type=int, default=0)
  parser.add_argument('--steps', type=int, default=0)
  parser.add_argument('--width', type=float, default=1.0)
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder of the two tables')
  args = parser.parse_args()
  if hasattr(os, 'sched_getaffinity') and len(os.sched_getaffinity(0)) > 1:
    raise SystemExit('the operations of several threads overlap; begin with taskset -c 1')
  tables = {'profile': [], 'layers': []}
  for name in args.workloads:
    row, layers = profile(name, args)
    tables['profile'].append(row)
    tables['layers'] += layers
    print(*[row, *layers], sep='\n', flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
      with (args.out / f'{table}.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
  main()
