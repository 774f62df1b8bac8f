"""Sweeps over several machines: balanced, and nothing before what it needs."""

import itertools
import pathlib
import shlex

import numpy as np
import pytest

from robustmed import errors, main
from robustmed.papers.spine import experiment
from robustmed.papers.synthesis import experiment as synthesis
from robustmed.runs import commandline, costs, plan

QUICK = str(pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py') + ':smoke'


def _arms(found):
  return [[job.arms for job in wave.jobs] for wave in found]


def test_by_hand():
  needs = {'std': (), 'rand': ('std',), 'adv': ('std',), 'other': ()}
  found = plan.waves(
    needs,
    train={'std': 2, 'rand': 1, 'adv': 5, 'other': 3},
    evaluate={'std': 1, 'rand': 1, 'adv': 1, 'other': 2},
    jobs=2,
  )
  assert _arms(found) == [
    [('other',), ('std',)],
    [('adv',), ('rand',)],
    [('other', 'adv'), ('std', 'rand')],
  ]
  assert [wave.stage for wave in found] == ['train', 'train', 'evaluate']
  assert [wave.longest for wave in found] == [3, 5, 3]


def test_a_chain_is_one_job():
  needs = {'a': (), 'b': ('a',), 'c': ('b',), 'd': (), 'e': ('d', 'c')}
  found = plan.waves(needs, train=dict.fromkeys(needs, 1), evaluate={}, jobs=8)
  assert _arms(found) == [[('a', 'b', 'c'), ('d',)], [('e',)]]


def test_trained_arms_are_not_waited_for():
  needs = {'std': (), 'adv': ('std',), 'rand': ('std',)}
  found = plan.waves(needs, train={'adv': 1, 'rand': 1}, evaluate={}, jobs=2)
  assert _arms(found) == [[('adv',), ('rand',)]]


@pytest.mark.parametrize('seed', range(20))
def test_any_plan_respects_needs_and_balances(seed):
  rng = np.random.default_rng(seed)
  names = [f'a{i}' for i in range(rng.integers(1, 12))]
  needs = {
    name: tuple(names[j] for j in range(i) if rng.random() < 0.25) for i, name in enumerate(names)
  }
  train = {name: float(rng.integers(1, 100)) for name in names}
  jobs = int(rng.integers(1, 5))
  found = plan.waves(needs, train=train, evaluate=dict(train), jobs=jobs)
  done = set()
  for wave in found:
    assert 1 <= len(wave.jobs) <= jobs
    if wave.stage == 'evaluate':
      assert done == set(names)
      mean = sum(job.cost for job in wave.jobs) / jobs
      assert wave.longest <= mean + max(train.values())  # the bound of list scheduling
    for job in wave.jobs:
      known = set(done)
      for arm in job.arms:
        if wave.stage == 'train':
          assert set(needs[arm]) <= known and arm not in known
        known.add(arm)
    done |= {arm for job in wave.jobs for arm in job.arms}
  for stage in ('train', 'evaluate'):
    arms = [job.arms for wave in found for job in wave.jobs if wave.stage == stage]
    assert sorted(itertools.chain(*arms)) == sorted(names)


def test_the_command_line_prints_commands_that_it_reads_itself(capsys, tmp_path):
  extra = ['--config.train.steps=4', '--config.evaluate.levels=(0.01, 0.02)']
  words = ['--config', QUICK, '--workdir', str(tmp_path / 'w'), *extra]
  assert main.main([*words, '--stage', 'plan', '--jobs', '8']) == 0
  printed = capsys.readouterr().out.splitlines()
  commands = [shlex.split(line, comments=True) for line in printed if not line.startswith('#')]
  assert all(words[:3] == ['python', '-m', 'robustmed.main'] for words in commands)
  read = [commandline.parse(words[3:]) for words in commands]
  assert [(one.stage, one.arms) for one in read] == [
    ('train', ('std',)),
    ('train', ('adv',)),
    ('train', ('rand',)),
    *[('evaluate', (arm,)) for arm in ('std', 'rand', 'adv')],
    ('evaluate', ()),
    ('report', ()),
  ]
  assert {str(one.workdir) for one in read} == {str(tmp_path / 'w')}
  assert all(tuple(one.config.evaluate.levels) == (0.01, 0.02) for one in read)
  assert sum('wave' in line for line in printed if line.startswith('# wave')) == 3
  assert not (tmp_path / 'w').exists()


def test_jobs_and_plan_go_together():
  for words in (['--stage', 'plan'], ['--jobs', '2']):
    with pytest.raises(errors.UserError, match='needs --jobs N'):
      commandline.parse(['--config', QUICK, '--workdir', 'w', *words])
  with pytest.raises(errors.UserError, match='at least 1, not 0'):
    plan.waves({}, train={}, evaluate={}, jobs=0)


def test_the_disk_shape_study_over_eight_machines():
  command = commandline.parse(
    ['--config', QUICK.replace('quickstart.py', 'spine.py'), '--workdir', 'w']
  )
  exp = experiment.build(command.config)
  found = plan.make(exp, command.config, order=list(exp.arms), unfinished=list(exp.arms), jobs=8)
  trained = [arm for wave in found[:-1] for job in wave.jobs for arm in job.arms]
  assert sorted(trained) == sorted(exp.arms) and len(found[-1].jobs) == 8
  one = plan.make(exp, command.config, order=list(exp.arms), unfinished=list(exp.arms), jobs=1)
  total = sum(job.cost for wave in one for job in wave.jobs)
  assert sum(wave.longest for wave in found) < 0.6 * total


def test_only_networks_that_answer_are_evaluated(monkeypatch):
  monkeypatch.setattr(costs, 'multiply_adds', lambda task: 1)
  command = commandline.parse(
    ['--config', QUICK.replace('quickstart.py', 'synthesis.py'), '--workdir', 'w']
  )
  exp = synthesis.build(command.config)
  found = plan.make(exp, command.config, order=list(exp.arms), unfinished=list(exp.arms), jobs=8)
  assert found[-1].stage == 'evaluate'
  assert {arm for job in found[-1].jobs for arm in job.arms} == {'unet', 'nnunet', 'hardened'}
