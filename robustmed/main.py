"""The command `python -m robustmed.main --config FILE --workdir DIR`."""

import pathlib
import sys
import time
from collections.abc import Sequence

from robustmed.process import lost_peers, tool


def main(words: Sequence[str]) -> int:
  """Runs one command and returns its exit code; a user error is one line on stderr and code 2."""
  code = 1  # of any exception that shows its traceback
  try:
    code = tool.run(
      _run,
      words,
      interrupted='interrupted; run the same command again to continue from the last checkpoint',
      memory='lower --config.train.batch_size (training) or '
      '--config.evaluate.batch_size (attacks), or the width of the model',
    )
  except SystemExit as stopped:
    code = int(stopped.code or 0)
    raise
  finally:
    lost_peers.exit_without_peers(code)
  return code


def _run(words: Sequence[str]) -> int:
  # Imported here so that --help and errors in flags are printed at once.
  from robustmed.runs import commandline

  command = commandline.parse(words)

  from robustmed.process import cpu_flags, hosts

  flags = cpu_flags.tune()
  hosts.initialize(
    coordinator=command.coordinator,
    num_processes=command.num_processes,
    process_id=command.process_id,
    automatic=command.distributed,
  )

  _share_compiled_programs()

  from robustmed import papers
  from robustmed.runs import stages

  started = time.monotonic()
  stages.run(command, papers.find(command.config.experiment), cpu_flags=flags)
  if command.stage not in ('describe', 'plan', 'compile'):
    from robustmed.process import console

    console.say(f'done in {console.format_exact_duration(time.monotonic() - started)}')
  return 0


def _share_compiled_programs() -> None:
  """Turns on the persistent compilation cache in the user's home, unless one is set."""
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    folder = pathlib.Path.home() / '.cache' / 'robustmed' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
