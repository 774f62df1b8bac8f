import pytest

from robustmed.runs.compilation import estimate, programs, targets

GIB = targets.GIB
CHIP = targets.Chip(memory=16 * GIB, flops=100e12, bandwidth=1e12, link=100e9)


def _program(kind=programs.TRAIN, *, batch=64, devices=16, example_bytes=1000):
  each = -(-batch // devices)
  return programs.Program(
    kind, 'adv', None, 10, batch, each * devices, devices, 0, example_bytes=example_bytes
  )


def test_seconds_are_those_of_the_slowest_part_and_of_the_sums():
  found = estimate.Found(flops=2e12, bytes=1e9, reduced_bytes=10**9)
  sums = 2 * 15 / 16 * 1e9 / 100e9
  assert estimate.seconds(found, CHIP, devices=16) == pytest.approx(0.02 + sums)
  assert estimate.seconds(found, CHIP, devices=1, reached=0.5) == pytest.approx(0.04)
  moved = found._replace(bytes=1e12)
  assert estimate.seconds(moved, CHIP, devices=1, reached=0.5) == pytest.approx(1.0)
  assert estimate.seconds(found, targets.CHIPS['cpu'], devices=8) == 0


def test_the_largest_batch_fits():
  # 4 examples a device take 2 GiB of 16 beside 4 GiB that are there for any number
  found = estimate.Found(arguments=3 * GIB + 4000, temporaries=2 * GIB - 4000, code=GIB)
  assert estimate.largest(_program(), found, CHIP) == 24
  assert estimate.largest(_program(), estimate.Found(needed=20 * GIB), CHIP) == 0


@pytest.mark.parametrize(
  ('bytes_of', 'asked', 'fit'),
  [
    (lambda n: 4 * GIB + n * GIB // 2, [8, 22], 22),  # 4 + 22 / 2 = 15 of 16, 0.8 are spared
    (lambda n: 4 * GIB + n * n * GIB // 16, [8, 17], 8),  # more than a line: 17 do not fit
    (lambda n: 4 * GIB + n * 2 * GIB, [8], 4),
    (lambda n: n * 5 * GIB, [], 0),
  ],
)
def test_the_largest_batch_is_on_the_line_of_two_and_is_compiled(bytes_of, asked, fit):
  found, compiled = (lambda n: estimate.Found(temporaries=bytes_of(n))), []

  def compile_with(number):
    compiled.append(number)
    return found(number)

  program = _program()
  assert program.each == 4
  assert estimate.confirmed(program, found(4), CHIP, compiled=compile_with) == fit
  assert compiled == asked


@pytest.mark.parametrize(
  ('kind', 'batch', 'flag'),
  [
    ('train', 64, '--config.train.micro_batch=32 needs less'),  # 3 of 4 a device; divides 64
    ('attack', 64, '--config.evaluate.batch_size=48 needs less'),
    ('train', 16, 'lower config.model.width, or set config.model.dtype=bfloat16'),
  ],
)
def test_what_does_not_fit_says_by_how_much_and_what_mends_it(kind, batch, flag):
  program = _program(kind, batch=batch)
  found = estimate.Found(needed=20 * GIB)
  line = estimate.advice(program, found, CHIP)
  assert line.startswith(f'{kind} adv does not fit: it needs 20.0 GiB of 16 GiB') and flag in line
  assert '4.0 GiB too much' in line and '--full' not in line
  quick = estimate.advice(program, found, CHIP, full=False)
  assert f"first try --full --programs '{kind} adv', which may need less; " in quick
  assert not estimate.advice(program, estimate.Found(temporaries=15 * GIB), CHIP)


class Full:
  def __init__(self, message):
    self.message = message

  def compile(self, compiler_options):
    raise RuntimeError(self.message)


def test_a_program_that_is_too_large_is_a_result():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.'
  assert estimate.compile_program(Full(message)).held == 20.5 * GIB
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(256.00G) exceeds available HBM (15.75G).'
  )
  assert estimate.compile_program(Full(message)).held == 256 * GIB
  with pytest.raises(RuntimeError, match='other'):
    estimate.compile_program(Full('other'))
