"""What a compiled program needs of a device: memory, operations, seconds, from its compilation."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from robustmed.runs.compilation import hlo, programs, targets

# Of the peak of matrix products, what convolutions are taken to reach in `seconds`.
REACHED = 0.3
SPARE = 0.05  # of the memory, that is left free where the largest batch is looked for
_NEEDED = re.compile(
  r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm'
  r'|memory required for [\w ]+ \(([\d.]+)([KMGT])\) exceeds available HBM'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Found(NamedTuple):
  """A compilation, as plain data; sizes are bytes of one device."""

  arguments: int = 0
  temporaries: int = 0
  code: int = 0
  flops: float = 0.0  # loops counted as often as they go round
  bytes: float = 0.0  # read and written, at most
  collectives: int = 0
  in_loops: int = 0
  reduced_bytes: int = 0
  compiled_in: float = 0.0  # seconds
  cpu: float = 0.0  # seconds of processors, those of other programs that are compiled meanwhile too
  needed: int = 0  # where it does not fit

  @property
  def held(self) -> int:
    return self.needed or self.arguments + self.temporaries + self.code


def compile_program(lowered: Any, options: Mapping[str, Any] | None = None) -> Found:
  """Compiles with options of the compiler, see `targets.options`.

  A program that does not fit into the memory is a result, not an error.
  """
  begin, before = time.monotonic(), time.process_time()
  took = lambda: {
    'compiled_in': round(time.monotonic() - begin, 1),
    'cpu': round(time.process_time() - before, 1),
  }
  try:
    compiled = lowered.compile(compiler_options=dict(options or {}))
  except RuntimeError as error:
    over = _NEEDED.search(str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or not over:
      raise
    size, unit = (word for word in over.groups() if word)
    needed = int(float(size) * _UNITS[unit])
    return Found(needed=needed, **took())
  memory, text = compiled.memory_analysis(), compiled.as_text()
  flops, moved = hlo.costs(compiled)
  seen = hlo.collectives(text)
  return Found(
    arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    flops=flops,
    bytes=moved,
    collectives=seen.collectives,
    in_loops=seen.in_loops,
    reduced_bytes=seen.reduced_bytes,
    **took(),
  )


def seconds(found: Found, chip: targets.Chip, *, devices: int, reached: float = 1.0) -> float:
  """One call, at the share `reached` of the peak or as fast as the memory, and the sums of a ring.

  0 where nothing is known of the device.
  """
  if not chip.flops:
    return 0.0
  sums = 2 * (devices - 1) / devices * found.reduced_bytes / chip.link
  return max(found.flops / (reached * chip.flops), found.bytes / chip.bandwidth) + sums


def largest(program: programs.Program, found: Found, chip: targets.Chip) -> int:
  """At least about how many examples fit on one device, all temporaries counted as theirs."""
  if found.needed or not chip.memory or not program.each:
    return 0
  fixed = found.code + max(0, found.arguments - program.each * program.example_bytes)
  one = found.temporaries / program.each + program.example_bytes
  return int((chip.memory - fixed) / max(one, 1))


def confirmed(
  program: programs.Program,
  found: Found,
  chip: targets.Chip,
  *,
  compiled: Callable[[int], Found],
) -> int:
  """How many examples fit on one device, of those that were compiled; 0 where `found` does not fit.

  The memory with twice as many examples, compiled(number), gives a straight line. Where it reaches
  the capacity, less `SPARE`, is compiled; if that does not fit, the largest that did is returned.
  """
  if found.held > chip.memory or not program.each:
    return 0
  twice = compiled(2 * program.each)
  if twice.held > chip.memory:
    return program.each
  slope = max((twice.held - found.held) / program.each, program.example_bytes, 1)
  number = int(program.each + ((1 - SPARE) * chip.memory - found.held) / slope)
  if number <= 2 * program.each:
    return 2 * program.each
  return number if compiled(number).held <= chip.memory else 2 * program.each


def advice(
  program: programs.Program, found: Found, chip: targets.Chip, *, full: bool = True
) -> str:
  """One line on a program that does not fit, '' for others.

  Where it was not compiled in full, see `targets.options`, that is said to be worth a try.
  """
  memory = chip.memory
  if not memory or found.held <= memory:
    return ''
  gib = targets.GIB
  line = (
    f'{program.label} does not fit: it needs {found.held / gib:.1f} GiB of {memory / gib:.4g} GiB '
    f'with {program.each} examples a device, {(found.held - memory) / gib:.1f} GiB too much; '
  )
  line += (
    ''
    if full
    else f"first try --full --programs '{program.kind} {program.name}', which may need less; "
  )
  fewer = int(program.each * memory / found.held)
  if program.each == 1 or not fewer:
    return line + 'lower config.model.width, or set config.model.dtype=bfloat16'
  if program.kind in (programs.TRAIN, programs.AUGMENT):
    whole = max(
      n
      for n in range(1, program.batch + 1)
      if not program.batch % n and (n <= fewer * program.devices or n == 1)
    )
    return line + f'--config.train.micro_batch={whole} needs less'
  return line + f'--config.evaluate.batch_size={fewer * program.devices} needs less'
