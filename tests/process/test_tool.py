import errno
import os
import subprocess
import sys

import pytest

from robustmed import errors
from robustmed.process import tool


def _raising(error):
  def command(words):
    raise error

  return command


def test_the_code_of_the_command_is_passed_on():
  assert tool.run(len, ['a', 'b', 'c']) == 3


@pytest.mark.parametrize(
  'error, code, line',
  [
    (errors.UserError('no file\nof that name'), 2, 'robustmed: error: no file of that name'),
    (OSError(errno.ENOSPC, 'full', 'x.csv'), 2, 'robustmed: error: no space left on the device'),
    (MemoryError(), 2, 'robustmed: error: out of memory; too much'),
    (RuntimeError('RESOURCE_EXHAUSTED: of memory'), 2, 'robustmed: error: out of memory; too much'),
    (KeyboardInterrupt(), 130, 'robustmed: stopped'),
  ],
)
def test_what_a_user_can_mend_is_one_line(capsys, error, code, line):
  assert tool.run(_raising(error), [], interrupted='stopped', memory='too much') == code
  out, told = capsys.readouterr()
  assert out == '' and told.startswith(line) and told.count('\n') == 1


@pytest.mark.parametrize('error', [ValueError('x'), RuntimeError('y'), OSError(errno.EACCES, 'z')])
def test_bugs_keep_their_traceback(error):
  with pytest.raises(type(error)):
    tool.run(_raising(error), [])


@pytest.mark.parametrize('lines', [1, 100_000])
def test_a_reader_that_has_gone_is_no_error(lines):
  code = (
    'import sys; from robustmed.process import tool; '
    f'command = lambda words: print("x\\n" * {lines}) or 0; sys.exit(tool.run(command, []))'
  )
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, 'wb') as gone:
    done = subprocess.run([sys.executable, '-c', code], stdout=gone, stderr=subprocess.PIPE)
  assert (done.returncode, done.stderr) == (141, b'')


def test_the_parser_complains_with_a_user_error():
  parser = tool.Parser()
  parser.add_argument('--number', type=int)
  with pytest.raises(errors.UserError, match=r'invalid int value.*see --help'):
    parser.parse_args(['--number', 'x'])
