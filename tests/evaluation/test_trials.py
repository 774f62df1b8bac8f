import pandas as pd
import pytest

from robustmed.evaluation import trials


@pytest.mark.parametrize(
  ('trial', 'columns', 'text', 'folder', 'said'),
  [
    (trials.Trial(0), {'seed': 0}, 'seed0', 'seed0', 'seed 0'),
    (
      trials.Trial(1, 12),
      {'seed': 1, 'fold': 12},
      'seed1.fold12',
      'seed1/fold12',
      'seed 1, fold 12',
    ),
  ],
)
def test_one_key_names_files_folders_and_columns(trial, columns, text, folder, said):
  assert trial.columns == columns and trials.of({**columns, 'arm': 'std'}) == trial
  assert (str(trial), trial.folder, trial.said) == (text, folder, said)
  assert trials.parse(text) == trial and trial.seed == columns['seed']
  assert trial.fold == trial[1:]


def test_seeds_are_trained_one_after_the_other_each_in_all_folds():
  assert trials.listed(2, 0) == [(0,), (1,)]
  assert trials.listed(2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
  with pytest.raises(ValueError, match='a trial has'):
    trials.Trial(0, 1, 2)


def test_rows_of_a_trial():
  rows = pd.DataFrame({'seed': [0, 0, 1], 'fold': [0, 1, 1], 'a': [1, 2, 3]})
  assert trials.select(rows, trials.Trial(0, 1))['a'].tolist() == [2]
  assert trials.select(rows, trials.Trial(0))['a'].tolist() == [1, 2]
  assert trials.names(rows) == ['seed', 'fold'] and trials.names(rows[['seed']]) == ['seed']
