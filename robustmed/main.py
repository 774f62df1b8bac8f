"""The commands `robustmed` and `python -m robustmed.main`: run an experiment, or another tool."""

import importlib
import sys
import time
from collections.abc import Sequence

from robustmed.process import lost_peers, memory, tool

# First word of a command -> the module whose `main` takes the others.
COMMANDS = {
  'doctor': 'robustmed.doctor',
  'froc': 'robustmed.metrics.froc.tool',
  'lidc_masks': 'robustmed.data.chest.lidc_xml',
}


def command() -> int:
  """Runs the command line of this process; the console command `robustmed`."""
  return main(sys.argv[1:])


def main(words: Sequence[str]) -> int:
  """Runs one command and returns its exit code; a user error is one line on stderr and code 2."""
  if words and words[0] in COMMANDS:
    return importlib.import_module(COMMANDS[words[0]]).main(words[1:])
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
  if memory.ALLOW not in words:
    memory.check_address_space()

  # Imported here so that --help and errors in flags are printed at once.
  from robustmed.runs import commandline

  command = commandline.parse(words)

  from robustmed.process import compile_cache, cpu_flags, hosts

  flags = cpu_flags.tune()
  hosts.initialize(
    coordinator=command.coordinator,
    num_processes=command.num_processes,
    process_id=command.process_id,
    automatic=command.distributed,
  )

  if (
    command.stage != 'compile'
  ):  # which keeps what it finds, and compiles for devices that are not here
    compile_cache.share()
  compile_cache.count()

  from robustmed import papers
  from robustmed.process import links
  from robustmed.runs import stages

  started = time.monotonic()
  with links.following(command.follow_links):
    stages.run(command, papers.find(command.config.experiment), cpu_flags=flags)
  if command.stage not in ('describe', 'plan', 'compile'):
    from robustmed.process import console

    console.say(compile_cache.said(compile_cache.count()))
    console.say(f'done in {console.format_exact_duration(time.monotonic() - started)}')
  return 0


if __name__ == '__main__':
  sys.exit(command())
