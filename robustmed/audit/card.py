"""report/card.md: a section for the model card of each network."""

from collections.abc import Mapping
from typing import Any

from robustmed.audit import results


def text(found: Mapping[str, Any]) -> str:
  """Returns the card of the content of audit.json."""
  return '\n'.join(['# Robustness', '', *(_of(found, name) for name in found['networks'])])


def shown(line: Mapping[str, Any] | None) -> str:
  """Returns '0.81 [0.75, 0.86]', without brackets where there is no interval."""
  if line is None or line['mean'] is None:
    return 'not known'
  interval = '' if line['low'] is None else f' [{line["low"]:.2f}, {line["high"]:.2f}]'
  return f'{line["mean"]:.2f}{interval}'


def _of(found, name) -> str:
  network, data = found['networks'][name], found['data']
  smallest = found['smallest_breaking_eps'][name]
  words = {None: 'not known', 'above': 'above the largest level'}
  level = lambda value: words.get(value) or f'{value:.4g}'
  cases = f'{data["cases"]}'
  if data['cases'] < data['cases_in_folder']:
    cases += f' of {data["cases_in_folder"]}'
  attacks = [n for n in found['attacks'] if found['attacks'][n]['settings']['name'] != 'corruption']
  lines = [
    f'## {name}',
    '',
    f'{network["format"]} file `{network["file"]}`, sha256 `{network["sha256"]}`, '
    f'{network["parameters"]:,} parameters.',
    f'Audited on {cases} cases of {data["groups"]} patients (`{data["folder"]}`, sha256 '
    f'`{data["sha256"][:16]}`) on {found["provenance"]["date"][:10]}, preset '
    f'`{found["provenance"]["preset"]}`.',
    '',
    f'| change of the image | {" | ".join(attacks)} |',
    f'|---|{"---|" * len(attacks)}',
  ]
  clean = shown(results.cell(found, name, 'none', 0.0))
  lines.append(f'| none | {" | ".join([clean] * len(attacks))} |')
  for one in found['threat']['levels']:
    cells = [shown(results.cell(found, name, attack, one['eps'])) for attack in attacks]
    lines.append(f'| {one["eps"]:g}: {one["plain"]} | {" | ".join(cells)} |')
  lines += [
    '',
    f'Mean {found["metric"]["words"]} per case, with a 95 % interval over patients where there are '
    'several.',
    f'Smallest eps at which {smallest["broken_where"]}: median '
    f'{level(smallest["median"])}, quartiles {level(smallest["quartile_1"])} and '
    f'{level(smallest["quartile_3"])}; {smallest["not_broken"]} of {smallest["cases"]} cases '
    'withstood every level.',
    '',
    *(
      f'**Check, {check["status"]}: {check["name"]}.** {check["detail"]}.\n'
      for check in found['checks']
      if check['arm'] == name and check['status'] in ('warn', 'fail')
    ),
    '**Limits.** Attacks give upper bounds of robustness: a stronger attack can only lower these '
    'numbers. Nothing is said of images from other scanners or of other diseases.',
    '',
  ]
  return '\n'.join(lines)
