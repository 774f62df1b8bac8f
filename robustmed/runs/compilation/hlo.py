"""What a compiled program does, read off its text: collectives, and work inside of loops."""

import math
import re
from typing import Any, NamedTuple

_KINDS = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
_OPERATION = re.compile(rf'= (.*?) ({_KINDS})(?:-start)?\(')
_SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](S?)')
_LAYOUT = re.compile(r'(?<=\])\{[^}]*\}')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_LOOPED = re.compile(r'(?:body|condition)=%?([\w.-]+)')
_BODY = re.compile(r'\bbody=%?([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'%?([\w.-]+) = s32\[\]S? constant\((\d+)\)')
_COMPARED = re.compile(r'compare\(%?([\w.-]+), %?([\w.-]+)\), direction=LT')
_CONDITION = re.compile(r'\bcondition=%?([\w.-]+)')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\((.*)$')
_SIZE = re.compile(r'\bsize=([\dx]+)')
_DILATED = re.compile(r'\blhs_dilate=([\dx]+)')
_KERNEL = re.compile(r'dim_labels=\w+_(\w+)->')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
# Operations that move no data, and those whose work is that of what they call.
_FREE = {
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
}


class Collectives(NamedTuple):
  """The collective operations of one call of a compiled program."""

  collectives: int
  in_loops: int  # those of them that are inside loops; an attack is a loop
  reduced_bytes: int  # results of all-reduce
  gathered_bytes: int  # results of all others


class Loops(NamedTuple):
  """How much more than what is counted once loops make of a program."""

  flops: float  # of the operations of convolutions and matrix products
  bytes: float  # of what operations read and write


def collectives(text: str) -> Collectives:
  """Counts the collectives in a compiled program's text."""
  blocks = _blocks(text)
  edges = {name: _called(lines) for name, lines in blocks.items()}
  looped, queue = set(), list(_LOOPED.findall(text))
  while queue:
    name = queue.pop()
    if name not in looped:
      looped.add(name)
      queue += edges.get(name, ())
  count = inside = reduced = gathered = 0
  for name, lines in blocks.items():
    for found in filter(None, map(_OPERATION.search, lines)):
      count, inside = count + 1, inside + (name in looped)
      size = _nbytes(found[1])
      if found[2] == 'all-reduce':
        reduced += size
      else:
        gathered += size
  return Collectives(count, inside, reduced, gathered)


def loops(text: str) -> Loops:
  """Compares a program's work with that of a program that goes once through each of its loops.

  XLA's own counts are of the latter. Loops whose number of trips is not known count once.
  """
  # Of layouts only whether an array is in fast memory, S(1), is of use.
  blocks = _blocks(_LAYOUT.sub(lambda found: 'S' if 'S(' in found[0] else '', text))
  times: dict[str, float] = {}

  def visit(name, factor):
    times[name] = times.get(name, 0.0) + factor
    for line in blocks.get(name, ()):
      body = _BODY.findall(line)
      trips = _trips(line, blocks.get(name, ()), blocks) if body else 1
      for other in _called([line]):
        visit(other, factor * trips if other in body else factor)

  visit(next((name for name in blocks if name.startswith('ENTRY ')), ''), 1.0)
  fused = {name for lines in blocks.values() for line in lines for name in _fused(line)}
  once, seen = [0.0, 0.0], [0.0, 0.0]
  for name, factor in times.items():
    rows = _operations(blocks.get(name, ()))
    for place, amount in enumerate((_flops(rows), 0.0 if name in fused else _moved(rows))):
      once[place] += amount
      seen[place] += factor * amount
  return Loops(*(much / little if little else 1.0 for much, little in zip(seen, once)))


def _trips(line, lines, blocks) -> int:
  """How often a loop goes round, 1 where its counter and limit are no constants."""
  if stated := _TRIPS.search(line):
    return int(stated[1])
  condition = _CONDITION.search(line)
  body = '\n'.join(blocks.get(condition[1], ())) if condition else ''
  limits = dict(_CONSTANT.findall(body))
  compared = _COMPARED.search(body)
  if compared and compared[2] in limits:
    return max(1, int(limits[compared[2]]) - _start(line, compared[1], body, lines))
  return max(1, int(*limits.values())) if len(limits) == 1 else 1


def _start(line, counter, body, lines) -> int:
  """The constant that a loop's counter starts at, 0 where it is none."""
  place = re.search(rf'%?{re.escape(counter)} = .*index=(\d+)', body)
  carried = re.search(r' while\(%?([\w.-]+)\)', line)
  if not place or not carried:
    return 0
  whole = '\n'.join(lines)
  made = re.search(rf'%?{re.escape(carried[1])} = .*? tuple\(([^)]*)\)', whole)
  names = (
    [name.strip(' %') for name in re.sub(r'/\*.*?\*/', '', made[1]).split(',')] if made else []
  )
  constants = dict(_CONSTANT.findall(whole))
  return int(constants.get(names[int(place[1])], 0)) if int(place[1]) < len(names) else 0


def _blocks(text: str) -> dict[str, list[str]]:
  """The lines of each computation; the name of the whole program's begins with 'ENTRY '."""
  blocks, name = {}, ''
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line)
    if head and not line.startswith(' '):
      name = (head[1] or '') + head[2]
    blocks.setdefault(name, []).append(line)
  return blocks


def _called(lines) -> set[str]:
  body = '\n'.join(lines)
  branches = (word.strip(' %') for names in _BRANCHES.findall(body) for word in names.split(','))
  return {*_CALLED.findall(body), *branches}


def _fused(line) -> list[str]:
  """Computations whose operations move nothing by themselves."""
  return [] if re.search(r' (?:while|call|conditional)\(', line) else _CALLED.findall(line)


def _operations(lines):
  """(name, type, operation, rest of the line) of a computation's lines."""
  return [found.groups() for found in map(_LINE.match, lines) if found]


def _moved(rows) -> float:
  """Bytes that the operations of a computation read and write in the device's memory."""
  size = {name: _nbytes(kind, slow=True) for name, kind, _, _ in rows}
  read = lambda rest: sum(
    size.get(name, 0) for name in re.findall(r'%([\w.-]+)', rest.split(')')[0])
  )
  return sum(size[name] + read(rest) for name, _, what, rest in rows if what not in _FREE)


def _flops(rows) -> float:
  """Operations of the convolutions and matrix products of a computation."""
  shape = {name: _dimensions(kind) for name, kind, _, _ in rows}
  total = 0.0
  for name, _, what, rest in rows:
    operands = [shape.get(one, ()) for one in re.findall(r'%([\w.-]+)', rest.split(')')[0])]
    if what == 'dot' and operands:
      contracted = _CONTRACTED.search(rest)
      axes = [int(axis) for axis in contracted[1].split(',') if axis] if contracted else []
      total += 2 * math.prod(shape[name]) * math.prod(operands[0][axis] for axis in axes)
    if what == 'convolution' and len(operands) == 2:
      labels = _KERNEL.search(rest)
      inputs = operands[1][labels[1].index('i')] if labels and operands[1] else 1
      window, dilated = _SIZE.search(rest), _DILATED.search(rest)
      taps = math.prod(map(int, window[1].split('x'))) if window else 1
      zeros = math.prod(map(int, dilated[1].split('x'))) if dilated else 1
      total += 2 * math.prod(shape[name]) * inputs * taps / zeros
  return total


def _dimensions(kind: str) -> tuple[int, ...]:
  found = _SHAPE.search(kind)
  return tuple(int(size) for size in found[3].split(',') if size) if found else ()


def _nbytes(shapes: str, *, slow: bool = False) -> int:
  """Bytes of all arrays of a type; with `slow`, without those in other than the main memory."""
  total = 0
  for kind, bits, sizes, fast in _SHAPE.findall(shapes):
    if not (slow and fast):
      width = 1 if kind == 'pred' else max(1, int(bits) // 8)
      total += width * math.prod(int(size) for size in sizes.split(',') if size)
  return total


def costs(compiled: Any) -> tuple[float, float]:
  """(operations, bytes read and written) of one call of a `jax.stages.Compiled` on one device."""
  counted = compiled.cost_analysis() or {}
  more = loops(compiled.as_text())
  return counted.get('flops', 0.0) * more.flops, counted.get('bytes accessed', 0.0) * more.bytes
