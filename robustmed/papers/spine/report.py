"""The report of the disk-shape study: its tables and figures beside the paper's."""

import pathlib

from robustmed.papers.spine import claims, published, sections
from robustmed.papers.spine import figures as drawings
from robustmed.report import inputs, spec

LINES = {
  'std': '--',
  'rand': ':',
  'rand_only': (0, (1, 3)),
  'adv_r': '-.',
  'adv_s': (0, (6, 1)),
  'adv_rs': '-',
}
MODELS = tuple(f'{shape}_{kind}' for shape in drawings.COLOURS for kind in LINES)


def spec_of(config, task, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figures are drawn into report/figures."""
  held = inputs.read(folder)
  page = sections.Page(config, folder, held)
  return spec.ReportSpec(
    title='Lumbar disk shapes under attack',
    description=(
      'One network finds a lumbar disk in an MR image: its 176-point contour and its mask. It was '
      'trained on virtual disks of statistical shape models with 3, 5 or 10 components (P03, P05, '
      'P10), each time on clean images (std), with random noise (rand: on the image, as the text '
      'says; rand_only: noise alone, as the released code does), and on images that attack its '
      'contour (adv_r), its mask (adv_s) or both (adv_rs). Every network then meets attacks that '
      'change a disk image a little. Some meet attacks that make them see a disk in a lung; those '
      'called rec also give the image back, to tell foreign images by.',
      page.data_line(),
    ),
    panels=(
      spec.Panel('DICE_seg', 'pgd_seg', True, 'Table 3: Dice of the segmentation', (0.0, 1.0)),
      spec.Panel('Error_reg', 'pgd_reg', False, 'Table 1: contour error (pixels)', None),
      spec.Panel('DICE_reg', 'pgd_reg', True, 'Table 2: Dice of the contour', (0.0, 1.0)),
    ),
    level_units=task.units,
    arms=tuple(_style(name) for name in MODELS),
    claims=claims.of_paper(config, page.ood),
    paper=published.tables(),
    notes=_notes(config),
    sections=page.sections(),
    headline_eps=claims.EPS,
  )


def _among(outside) -> str:
  fixed = [name for name, options in outside.items() if not options.get('random_start', True)]
  return f'all but {", ".join(fixed)}' if fixed else 'all'


def _style(name: str) -> spec.Arm:
  shape, kind = name.split('_', 1)
  return spec.Arm(name, '', drawings.COLOURS[shape], LINES[kind])


def _notes(config) -> tuple[str, ...]:
  reading = config.reading
  wording = {True: 'as in the code', False: 'as in the text'}
  return (
    'rand: the text adds uniform noise to the image; the released code feeds the noise alone. Both '
    'are trained: `rand` and `rand_only`.',
    'Warm start of rand and adv arms from their std arm (code, not in the text): '
    f'{"yes" if reading.warm_start else "no"}, {wording[bool(reading.warm_start)]}.',
    'Training budget climbs to 0.07 in 100 stairs (code, not in the text): '
    f'{"yes" if reading.eps_ramp else "no"}, {wording[bool(reading.eps_ramp)]}.',
    'Training attacks ascend the mean absolute error and BCE + Dice (code) or eqs. 4 and 5 '
    f'(text): {reading.attack_objectives}. Evaluation attacks ascend eqs. 4 and 5 in both.',
    '`P10_adv_rs_scratch`, of the paper preset, is the text to the letter: from scratch, constant '
    "budget, eqs. 4 and 5, 2e-3, Adamax's default.",
    "Attacks from outside: one joint objective against the network's own outputs (code), here "
    '`ood`; the separate objectives of the text, here `ood_reg` and `ood_seg`, against the same '
    'outputs, the segmentation as a probability (code).',
    'Attacks from outside start at a random point of their budget (Algorithm 1): '
    f'{_among(config.ood.attacks)}. Lung slices that they go out from: {config.ood.ct_slices}, one '
    'for all examples in the paper.',
    'The warp is consistent to half a pixel, where the released code shifts by half a pixel; its '
    'spline kernel is r in both.',
    'Dice of two empty masks is 1; of an empty and a filled one 0.',
    "The paper's rows come from 128x128 crops of private MR images; contour errors here are in "
    f'pixels of {config.data.side}x{config.data.side} images.',
  )
