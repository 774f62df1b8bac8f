"""Failures that are known and not mended: {(reader, damage): (outcome, reason)}."""

from collections.abc import Sequence

from fuzz import harness

KNOWN: dict[tuple[str, str], tuple[str, str]] = {}


def divided(
  results: Sequence[harness.Result],
) -> tuple[list[harness.Result], list[harness.Result]]:
  """Returns (failures, known failures) of the results."""
  failures, excused = [], []
  for result in results:
    if result.outcome in harness.PASSED:
      continue
    known = KNOWN.get((result.case.reader, result.case.damage))
    (excused if known and known[0] == result.outcome else failures).append(result)
  return failures, excused


# Modules that open files and have no reader of their own in the table: {module: why}.
_PARQUET = 'tables of a study by files.read_with, as report:results/rows.parquet'
_SHIPPED = 'a file of the package'
_SYSTEM = 'a file of the system'
_WORDS = 'only fingerprints or copies what it opens'
OTHERS = {
  **dict.fromkeys(
    (
      *('audit.page', 'audit.results', 'evaluation.checks.inspection', 'evaluation.grid'),
      *('papers.amat.report', 'papers.amat.segmentation', 'papers.brats.evaluation'),
      *('papers.nodules.evaluation', 'papers.nodules.report', 'papers.nodules.scans'),
      *('papers.spine.ood', 'papers.spine.sections', 'papers.synthesis.report', 'runs.logs'),
      'papers.synthesis.slices',
    ),
    _PARQUET,
  ),
  **dict.fromkeys(
    (
      'networks.shipped',
      *(f'papers.{name}.published' for name in ('amat', 'brats', 'spine', 'synthesis', 'nodules')),
    ),
    _SHIPPED,
  ),
  **dict.fromkeys(
    (
      *('doctor', 'process.commit', 'process.compiled', 'process.cpu_flags', 'process.leftovers'),
      *('process.memory', 'process.parallel', 'process.tool'),
    ),
    _SYSTEM,
  ),
  **dict.fromkeys(
    ('runs.compilation.__main__', 'runs.compilation.stage'),
    'what parts of one run left for each other, by files.read_json',
  ),
  **dict.fromkeys(
    ('audit.handback', 'audit.setup', 'report.pages', 'attacks.stored.steps'), _WORDS
  ),
  'benchmark.scaling': 'what its own process printed',
  'runs.networks': 'turns its own values into JSON and back',
  'papers.brats.pairing': 'JSON of a workdir by files.read_json, as workdir:config.json',
  'papers.brats.report': 'JSON of a workdir, as workdir:config.json',
  'papers.synthesis.evaluation': 'JSON of a run by files.read_json',
  'runs.preparation': 'arrays by files.read_arrays, as files:npz',
  'training.selection': 'JSON by files.read_json, as files:json',
  'data.abdomen.ct_slices': 'the split file, by files.read_json',
  'data.labelled.survey': 'its own notes, by files.read_json; damaged ones are made again',
  'networks.nnunet_files': 'the spacing beside a TIFF file, by files.parsed_json',
  'training.step': 'opens nothing: it restores a state',
  'networks.nnunet_predict': 'opens nothing: it restores the grid of an image',
}
