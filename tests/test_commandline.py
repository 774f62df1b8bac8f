import pathlib

import pytest

from robustmed import commandline, errors, main

QUICK = str(pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py')


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
    (['--checkpoint', 'x'], 'goes with --stage evaluate'),
  ],
)
def test_mistakes_are_user_errors(words, message):
  with pytest.raises(errors.UserError, match=message):
    _parse(*words)


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
