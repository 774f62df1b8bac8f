"""The summary at the end of tests/soak.py."""

import soak


def test_runs_that_ended_equal_are_no_kills(tmp_path, capsys):
  found = soak.Soak(tmp_path, seed=0, kills=1, patience=1, workloads=[])
  found._note(kill=1, workload='amat', run=1, signal='SIGTERM', target=0)
  found._note(workload='amat', run=1, equal='yes')
  assert found.run() == 0
  assert capsys.readouterr().out.endswith('1 SIGTERM of amat\n1 runs ended equal, 0 failures\n')
  assert soak.Soak(tmp_path, seed=0, kills=1, patience=1, workloads=[]).run() == 0
