"""results/networks: the trained networks, each in the format in which the network came."""

import hashlib
import pathlib

from robustmed.audit import setup
from robustmed.evaluation import trials
from robustmed.networks import training
from robustmed.process import console, files, parallel

FOLDER = 'networks'


def place(results: pathlib.Path, one: setup.Audited, arm: str, trial: trials.Trial) -> pathlib.Path:
  """Returns where the network of an arm is written."""
  suffix = training.export_of(one.network).suffix
  return results / FOLDER / f'{arm}_{trial.folder.replace("/", "_")}{suffix}'


def digest(path: pathlib.Path) -> str:
  """Returns the sha256 of a file, or of all files of a folder."""
  found = hashlib.sha256()
  for file in sorted(files.iter_files(path)) if path.is_dir() else [path]:
    found.update(file.read_bytes())
  return found.hexdigest()


def write(one: setup.Audited, made: training.Split, context, models, *, untrained: str) -> None:
  """Writes the networks of `models` that do not lie there, each with NAME.json that describes it.

  `load.md` has the lines that load them elsewhere.
  """
  export, told = training.export_of(one.network), {}
  for model in models:
    if model.arm == untrained:
      continue
    variables = model.load()  # which all hosts do together
    path = place(context.results, one, model.arm, model.trial)
    told[path.name] = export.loading.replace('FILE', path.name)
    if not parallel.is_writer():
      continue
    if not path.exists():
      export.write(made.join(variables), path)
    described = {
      'input': one.described.input._asdict(),
      'output': one.described.output._asdict(),
    }
    files.write_json(path.with_name(f'{path.stem}.json'), described)
  if told and parallel.is_writer():
    folder = context.results / FOLDER
    shown = '\n'.join(f'## {name}\n\n```python\n{text}\n```\n' for name, text in told.items())
    files.write_text(folder / 'load.md', f'# Trained networks\n\n{shown}')
    console.say(f'{folder} has {", ".join(told)}')
