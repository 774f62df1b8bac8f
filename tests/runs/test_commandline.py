import errno
import json
import math
import pathlib
import shutil
from typing import NamedTuple

import pytest

from robustmed import errors, main
from robustmed.runs import commandline, experiment

QUICK = str(pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py')


def _parse(*words):
  return commandline.parse(['--config', QUICK, '--workdir', 'w', *words])


def test_overrides_keep_their_types():
  command = _parse(
    '--config.train.steps=7',
    '--config.evaluate.levels=(0.1,0.2)',
    '--config.arms.adv.defense.eps=0.5',
    '--config.data.source',
    'lumbar_disks',
    '--arms',
    'std,adv',
  )
  config = command.config
  assert config.train.steps == 7
  assert tuple(config.evaluate.levels) == (0.1, 0.2)
  assert config.arms.adv.defense.eps == 0.5
  assert config.data.source == 'lumbar_disks'
  assert command.arms == ('std', 'adv') and command.stage == 'all'
  assert command.workdir.is_absolute()


def test_arms_keep_the_order_of_the_config():
  assert list(_parse().config.arms) == ['std', 'rand', 'adv']


@pytest.mark.parametrize(
  'words, message',
  [
    (['--config.train.stpes=7'], r'did you mean --config\.train\.steps\?'),
    (['--config.trian.steps=7'], r'did you mean --config\.train\?'),
    (['--config.train.steps.more=7'], 'is a value'),
    (['--config.train.steps=many'], 'steps=many'),
    (['--stage', 'fly'], 'invalid choice'),
    (['--bogus=1'], 'unknown flag --bogus=1'),
    (['extra'], "unexpected argument 'extra'"),
    (['--checkpoint', 'x', '--stage', 'train'], 'used with --stage evaluate, report or all'),
    (['--arms', ''], 'names no arm'),
    (['--config.data.dir=/x'], "the source 'phantom_lumbar_disks' makes its examples itself"),
  ],
)
def test_mistakes_are_user_errors(words, message):
  with pytest.raises(errors.UserError, match=message):
    _parse(*words)


@pytest.mark.parametrize(
  ('config', 'word', 'good'),
  [
    ('two_moons:smoke', 'data.box', ('((-1,1),(0,2.5))',)),
    ('quickstart:smoke', 'evaluate.levels', ('(1,0.5)', '(0.5,)', '()')),
  ],
)
def test_lists_hold_what_their_defaults_hold(config, word, good):
  parse = lambda value: commandline.parse(
    ['--config', config, '--workdir', 'w', f'--config.{word}={value}']
  )
  for value in good:
    parse(value)
  for value in ('(1,"a")', '("a","b")', '(True,)', '((1,),)', '(None,)', '(1e999,1)'):
    with pytest.raises(errors.UserError, match=f'config field {word} must be like '):
      parse(value)


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '1e999'])
def test_numbers_are_finite(value):
  said = r'optimisers\.main\.warmup_share must be like 0\.25, not (nan|-?inf)'
  with pytest.raises(errors.UserError, match=said):
    _parse(f'--config.train.optimisers.main.warmup_share={value}')


def test_links_are_followed_where_the_user_says_so():
  assert not _parse().follow_links
  command = _parse('--follow-links')
  assert command.follow_links and '--follow-links' in command.rerun_flags


@pytest.mark.parametrize(
  'config, message',
  [
    ('configs/nope.py', 'no config file'),
    (QUICK + ':huge', r"unknown preset 'huge'.*known: .*smoke"),
  ],
)
def test_bad_config_names(config, message):
  with pytest.raises(errors.UserError, match=message):
    commandline.parse(['--config', config, '--workdir', 'w'])


def test_config_files_that_are_no_configs(tmp_path):
  broken = tmp_path / 'a.py'
  broken.write_text('def (:\n')
  empty = tmp_path / 'b.py'
  empty.write_text('x = 1\n')
  with pytest.raises(errors.UserError, match='not valid Python'):
    commandline.load_config(str(broken))
  with pytest.raises(errors.UserError, match='no function get_config'):
    commandline.load_config(str(empty))


def test_a_configuration_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
  by_path = commandline.load_config(f'{QUICK}:smoke').to_dict()
  monkeypatch.chdir(tmp_path)
  assert commandline.load_config('quickstart:smoke').to_dict() == by_path
  assert commandline.load_config('configs/quickstart.py:smoke').to_dict() == by_path
  # without --config, and those that share modules
  words = ['brats2d:smoke', '--workdir', 'w', '--config.seed=3']
  command = commandline.parse(words)
  assert command.config.preset == 'smoke' and command.config.seed == 3
  assert command.rerun_flags[:2] == ('--config', 'brats2d:smoke')
  own = tmp_path / 'configs' / 'quickstart.py'
  own.parent.mkdir()
  own.write_text('from ml_collections import ConfigDict\nget_config = lambda _: ConfigDict()\n')
  assert commandline.load_config('configs/quickstart.py').to_dict() == {}


def test_configurations_lie_in_an_installed_package(tmp_path, monkeypatch):
  shutil.copytree(commandline.CONFIGS, tmp_path / 'robustmed' / 'configs')
  monkeypatch.setattr(commandline, 'CONFIGS', tmp_path / 'robustmed' / 'configs')
  assert commandline.load_config('amat_heart:smoke').preset == 'smoke'
  assert commandline.load_config('configs/harden.py:smoke').preset == 'smoke'
  with pytest.raises(errors.UserError, match=r"'spin' comes with robustmed; did you mean 'spine'"):
    commandline.load_config('spin:real')


def test_a_command_without_a_configuration_says_what_to_type():
  for words in ([], ['--workdir', 'x']):
    with pytest.raises(errors.UserError, match='named: robustmed quickstart:smoke --workdir'):
      commandline.parse(words)


def test_main_turns_a_mistake_into_one_line_and_code_2(capsys):
  assert main.main(['--config', 'configs/nope.py']) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith('robustmed: error: no config file') and err.count('\n') == 1


def test_workdir_is_needed_for_all_but_describe():
  with pytest.raises(errors.UserError, match='needs --workdir'):
    commandline.parse(['--config', QUICK])
  assert commandline.parse(['--config', QUICK, '--stage', 'describe']).workdir is None


def test_help_speaks_and_ends_well(capsys):
  with pytest.raises(SystemExit) as ended:
    main.main(['--help'])
  assert ended.value.code == 0
  text = capsys.readouterr().out
  for word in ('--config', '--workdir', '--stage', '--arms', '--checkpoint', 'examples:'):
    assert word in text


def test_every_setting_of_an_attack_can_be_set():
  attacks = '--config.evaluate.attacks'
  config = _parse(
    f'{attacks}.pgd_seg.restarts=5',
    f'{attacks}.pgd_seg.max_change=0.5',
    f'{attacks}.pgd_seg.levels=(0.07,)',
    f'{attacks}.pgd_seg.rule=adamax',
    f'{attacks}.noise.bounds=(0.0,2.0)',
    '--config.arms.adv.defense.attack.random_start=false',
  ).config
  pgd = config.evaluate.attacks.pgd_seg
  assert (pgd.restarts, pgd.max_change, tuple(pgd.levels), pgd.rule) == (5, 0.5, (0.07,), 'adamax')
  assert pgd.score_last is False and pgd.num_steps == 20  # what the file says stays
  assert tuple(config.evaluate.attacks.noise.bounds) == (0.0, 2.0)
  assert config.arms.adv.defense.attack.random_start is False
  plain = json.loads(json.dumps(config.to_dict()))
  assert plain['evaluate']['attacks']['pgd_seg']['step_size'] is None
  probes = experiment.make_probes(_AnyTask({'seg': None}), config)
  assert probes['pgd_seg'].attack.restarts == 5 and probes['pgd_seg'].levels == (0.07,)
  assert probes['fgsm'].levels == tuple(config.evaluate.levels)
  assert probes['noise'].attack.threat.bounds == (0.0, 2.0)


class _AnyTask(NamedTuple):
  objectives: dict
  space: object = None


@pytest.mark.parametrize('words', [('.name=square',), ('.name', 'square')])
def test_another_attack_brings_its_own_settings(words):
  fgsm = '--config.evaluate.attacks.fgsm'
  config = _parse(fgsm + words[0], *words[1:], f'{fgsm}.share=0.5', f'{fgsm}.num_steps=7').config
  assert config.evaluate.attacks.fgsm.share == 0.5
  probe = experiment.make_probes(_AnyTask({'seg': None}), config)['fgsm']
  assert probe.attack.num_steps == 7 and probe.attack.num_gradients == 0


@pytest.mark.parametrize(
  'word, message',
  [
    ('evaluate.attacks.pgd_seg.restart=5', r'mean --config\.evaluate\.attacks\.pgd_seg\.restarts'),
    ('evaluate.attacks.fgsm.restarts=5', "unknown config field 'evaluate.attacks.fgsm.restarts'"),
    ('evaluate.attacks.fgsm.name=fgms', "unknown attack 'fgms'; did you mean 'fgsm'"),
    ('evaluate.attacks.pgd.name=pgd', "unknown config field 'evaluate.attacks.pgd.name'"),
    ('arms.adv.defense.levels=(1,)', "unknown config field 'arms.adv.defense.levels'"),
    ('arms.adv.defense.attack.levels=(1,)', "unknown config field 'arms.adv.defense.attack.level"),
    ('evaluate.attacks.pgd_seg.step_size=big', 'step_size=big'),
  ],
)
def test_mistakes_in_settings_of_attacks(word, message):
  with pytest.raises(errors.UserError, match=message):
    _parse(f'--config.{word}')


@pytest.mark.parametrize('seed', [-1, 2**31, 99999999999999999999])
def test_a_seed_that_no_generator_takes_is_a_mistake(seed):
  with pytest.raises(errors.UserError, match=r'config\.seed must be a number from 0 to'):
    _parse(f'--config.seed={seed}')


def test_counts_below_0_are_a_mistake():
  for field in ('report.pictures', 'train.steps', 'evaluate.batch_size'):
    with pytest.raises(errors.UserError, match=f'{field} must be at least 0, not -1'):
      _parse(f'--config.{field}=-1')


def test_a_run_of_no_trainings_is_a_mistake():
  with pytest.raises(errors.UserError, match=r'config\.seeds must be at least 1'):
    _parse('--config.seeds=0')


@pytest.mark.parametrize('level', [0, -1, 1e308, math.inf, math.nan])
def test_levels_beyond_all_units_are_a_mistake(level):
  config = _parse().config
  with config.unlocked():
    config.evaluate.levels = (level,)
  with pytest.raises(errors.UserError, match='attack levels must be above 0 and at most 1e'):
    experiment.make_probes(_AnyTask({'seg': None}), config)


@pytest.mark.parametrize('error', [RuntimeError('RESOURCE_EXHAUSTED: 9 bytes'), MemoryError()])
def test_a_machine_without_memory_is_one_line(error, monkeypatch, capsys):
  def fail(words):
    error.add_note('For simplicity, JAX has removed its internal frames')
    with errors.during('outer'), errors.during("training arm 'adv' (seed 1)"):
      raise error

  monkeypatch.setattr(main, '_run', fail)
  assert main.main([]) == 2
  err = capsys.readouterr().err
  start = "robustmed: error: out of memory while training arm 'adv' (seed 1); lower --config.train."
  assert err.startswith(start)
  assert 'evaluate.batch_size' in err and err.count('\n') == 1


def test_a_full_disk_is_one_line_however_it_is_wrapped(monkeypatch, capsys):
  def wrapped(words):
    try:
      raise OSError(errno.ENOSPC, 'No space left on device', '/x/y')
    except OSError as error:
      raise KeyError('the table') from error

  def alone(words):
    raise OSError(errno.EDQUOT, 'Disk quota exceeded', '/x/y')

  def spoken(words):
    with errors.during('writing'):
      raise RuntimeError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']")

  for fail, where in ((wrapped, ''), (alone, ' for /x/y'), (spoken, ' while writing')):
    monkeypatch.setattr(main, '_run', fail)
    assert main.main([]) == 2
    line = f'no space left on the device{where}; free some and run the same command again'
    assert capsys.readouterr().err == f'robustmed: error: {line}\n'


def test_a_bug_of_ours_is_not_made_pretty(monkeypatch):
  def fail(words):
    with errors.during('training'):
      raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(main, '_run', fail)
  with pytest.raises(PermissionError) as caught:
    main.main([])
  assert caught.value.__notes__ == ['while training']
