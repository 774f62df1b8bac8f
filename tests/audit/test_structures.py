"""What an audit says of structures that are never found, of units, names and the demonstration."""

import re
import types

import numpy as np
import pandas as pd
import pytest

from robustmed.attacks import corruption, pgd
from robustmed.audit import card, page, results, threat
from robustmed.evaluation import checks, grid, statistics
from robustmed.own_data import structures
from robustmed.runs import commandline
from support import runs

FOUND, PENALTY = {'none': 1.0, 'pgd': 2.0}, 40.0


@pytest.fixture
def rows():
  """Two networks, three cases of an organ (class 1) and a lesion (class 2); `blind` never finds the
  lesion, and loses the organ of case 0 under attack."""
  lines = []
  for arm in ('whole', 'blind'):
    for attack, eps in (('none', 0.0), ('pgd', 0.02)):
      for case in range(3):
        line = {'arm': arm, 'attack': attack, 'eps': eps, 'seed': 0, 'index': case, 'group': case}
        for number, name in enumerate(('organ', 'lesion'), start=1):
          lost = arm == 'blind' and (number == 2 or (attack == 'pgd' and case == 0))
          line |= {f'_tp{number}': 0 if lost else 8, f'_fp{number}': 0}
          line |= {f'_fn{number}': 10 if lost else 2}
          line |= {f'HD95_{name}': PENALTY if lost else FOUND[attack]}
        line['DICE'] = 0.9 if arm == 'whole' else 0.45
        lines.append(line)
  return statistics.prepare(pd.DataFrame(lines))


def test_a_class_that_is_never_found_and_a_low_clean_value_are_warnings(rows):
  how = {'metric': 'DICE', 'poor': 0.5, 'classes': ('organ', 'lesion')}
  found = {(c.arm, c.name): c for c in checks.of_untouched(rows, **how)}
  assert {key: one.status for key, one in found.items()} == {
    ('whole', 'clean value'): 'pass',
    ('whole', 'every class is found'): 'pass',
    ('blind', 'clean value'): 'warn',
    ('blind', 'every class is found'): 'warn',
  }
  detail = found['blind', 'every class is found'].detail
  assert detail.startswith('lesion is never found: Dice 0 on all 3 untouched cases that have it; ')
  assert 'organ' not in detail
  assert 'DICE on untouched images is 0.450, below 0.5' in found['blind', 'clean value'].detail
  assert checks.of_untouched(rows, metric='DICE', poor=None) == []
  unknown = checks.of_untouched(rows.assign(DICE=np.nan), **how)
  assert [one.status for one in unknown if one.name == 'clean value'] == ['skipped'] * 2
  assert {one.arm: one.status for one in unknown if one.name == 'every class is found'} == {
    'whole': 'pass',
    'blind': 'warn',
  }


def test_penalties_are_no_distances(rows):
  how = {'names': ('organ', 'lesion'), 'attack': 'pgd', 'eps': 0.02}
  first = lambda line: line['network'] == 'blind'  # comes last
  found = sorted(structures.lines(rows, whole=True, **how), key=first)
  assert [(line['network'], line['class']) for line in found] == [
    ('whole', 'organ'), ('whole', 'lesion'), ('blind', 'organ'), ('blind', 'lesion'),
  ]  # fmt: skip
  assert [line['compared'] for line in found] == [3, 3, 2, 0]
  assert [line['absent_clean'] for line in found] == [0, 0, 0, 3]
  assert [line['absent_attacked'] for line in found] == [0, 0, 1, 3]
  known = [(line['HD95_clean'], line['HD95_attacked']) for line in found]
  assert known[:3] == [(1.0, 2.0)] * 3 and np.isnan(known[3]).all()
  told = structures.words(found[2:], unit='mm', means=(20.0, 30.0))
  assert told == (
    'Of the outlines of structures that are found (2 of 6 over all cases) 95 % lies within 1 mm of '
    'the reference on untouched images, within 2 under attack. Not found at all: organ in 0 of 3 '
    'cases untouched, 1 attacked; lesion in 3 of 3 cases untouched, 3 attacked. '
  )
  assert '(in all cases)' in structures.words(found[:2], unit='mm', means=(1.0, 2.0))
  slices = sorted(structures.lines(rows, whole=False, **how), key=first)
  told = structures.words(slices[2:], unit='mm', means=(20.0, 30.0))
  assert told.startswith('The 95 % distance of outlines is 20 mm on untouched images, 30 under')
  assert 'as far off as its diagonal' in told


def test_artefacts_have_units_of_their_own():
  probes = {
    'pgd': grid.Probe(pgd(num_steps=1), 'loss', (0.1,)),
    'rician': grid.Probe(corruption(kind='rician'), 'loss', (0.1,)),
    'bent': grid.Probe(corruption(kind='bias_field'), 'loss', (0.1,)),
  }
  assert results.units_of(probes) == {
    'rician': "standard deviation, share of the image's range from 0.5 to 99.5 %",
    'bent': 'largest logarithm of the field',
  }


def _threat(step=None):
  scale = np.array([[255.0]])
  return threat.Threat(
    'type', 'of the range of the stored type', 0 * scale, scale, (0.01, 0.08), None, step, False
  )


def test_levels_in_words_have_one_rounding_and_say_what_whole_numbers_leave():
  made = _threat()
  assert made.plain(0.01).endswith(
    'of the range of the stored type, 2.55 in the units of the files'
  )
  assert '= 2.55 in' in made.text(0.01)
  for said in (_threat(1.0).plain(0.01), _threat(1.0).text(0.01)):
    assert said.endswith('2.55 in the units of the files, 2 after rounding')


@pytest.mark.parametrize(
  ('level', 'said'),
  [
    (0.02, '2 % of the range of the stored type, 5.1 in the units of the files'),
    (np.inf, 'above the largest level, 8 % of the range of the stored type, 20.4 in the units'),
    (np.nan, ''),
  ],
)
def test_every_known_median_has_words(level, said):
  words = results.level_words(_threat(), level)
  assert words.startswith(said) and bool(words) == bool(said)


def test_patients_are_named():
  rows = pd.DataFrame({'group': [4, 4, 8], 'index': [1, 1, 0]})
  study = types.SimpleNamespace(partition=types.SimpleNamespace(patients=('ann', 'bob')))
  assert page.patients(types.SimpleNamespace(study=study), rows) == {4: 'bob', 8: 'ann'}


@pytest.mark.parametrize(
  ('network', 'folder', 'said'),
  [
    ('', '', 'because no --config.network and no --config.data.dir were given'),
    (
      '',
      'data',
      'the network (brightness, never trained) is not yours, because no --config.network',
    ),
    ('a.onnx', '', 'the images (synthetic) are not yours, because no --config.data.dir was given'),
    ('a.onnx', 'data', ''),
  ],
)
def test_a_demonstration_says_that_it_is_one(network, folder, said):
  config = commandline.load_config(f'{runs.ROOT}/configs/audit.py')
  config.network, config.data.dir = network, folder
  told = page.demonstration(config)
  assert said in told and bool(told) == bool(said)


def test_the_card_has_the_warnings_of_its_network_and_what_was_left_out():
  network = {'format': 'ONNX', 'file': 'a.onnx', 'sha256': 'f00d', 'parameters': 3}
  ends = {'broken_where': 'x', 'median': None, 'quartile_1': None, 'quartile_3': None}
  check = {'name': 'every class is found', 'detail': 'lesion is never found'}
  found = {
    'networks': {'a': network, 'b': network},
    'data': {'cases': 6, 'cases_in_folder': 20, 'groups': 5, 'folder': 'f', 'sha256': 'abc'},
    'smallest_breaking_eps': {key: {**ends, 'not_broken': 0, 'cases': 6} for key in 'ab'},
    'attacks': {},
    'threat': {'levels': []},
    'metric': {'name': 'DICE', 'words': 'Dice'},
    'results': [],
    'checks': [{**check, 'arm': 'a', 'status': 'warn'}, {**check, 'arm': 'b', 'status': 'pass'}],
    'provenance': {'date': '2031-02-03T04:05:06', 'preset': 'smoke'},
  }
  text = card.text(found)
  assert text.count('**Check, warn: every class is found.** lesion is never found.') == 1
  assert text.index('**Check, warn') < text.index('## b')
  assert 'Audited on 6 of 20 cases of 5 patients' in text


@pytest.mark.parametrize('preset', ['quick', 'standard'])
def test_the_page_on_audits_states_the_images_and_steps_of_the_presets(preset):
  text = ' '.join((runs.ROOT / 'docs' / 'audit.md').read_text().split())
  said = re.search(rf'`:{preset}` \((?:the default: )?(\d+) images, PGD with (\d+) steps', text)
  config = commandline.load_config(f'{runs.ROOT}/configs/audit.py:{preset}')
  chosen = config.data.most_examples, config.evaluate.attacks.pgd.num_steps
  assert tuple(map(int, said.groups())) == chosen
