"""`python -m robustmed.main --config FILE --workdir DIR`: flags in, exit code out."""

import errno
import sys
from collections.abc import Sequence

from robustmed import errors


def main(words: Sequence[str]) -> int:
  """Runs one command. A user's mistake is one line on stderr and exit code 2."""
  try:
    return _run(words)
  except errors.UserError as error:
    print(f'robustmed: error: {error}', file=sys.stderr)
    return error.exit_code
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    print(f'robustmed: error: no space left on the device: {error.filename}', file=sys.stderr)
    return 2
  except (MemoryError, RuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print(
      'robustmed: error: out of memory; lower the batch size or the model width', file=sys.stderr
    )
    return 2
  except KeyboardInterrupt:
    print(
      'robustmed: interrupted; the same command goes on from the last checkpoint', file=sys.stderr
    )
    return 130


def _run(words: Sequence[str]) -> int:
  # Imported here so that --help and mistakes in flags answer at once.
  from robustmed import commandline

  command = commandline.parse(words)

  from robustmed import parallel

  flags = parallel.tune_cpu()
  parallel.start(
    coordinator=command.coordinator,
    num_processes=command.num_processes,
    process_id=command.process_id,
    automatic=command.distributed,
  )

  from robustmed.experiments import stages

  stages.run(command, cpu_flags=flags)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
