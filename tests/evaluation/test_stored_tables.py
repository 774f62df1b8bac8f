import jax
import pandas as pd
import pytest

from robustmed.evaluation import stored_tables
from robustmed.process import checksums, compiled, console
from support import toys


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_a_damaged_table_is_computed_again(tmp_path, capsys, suffix):
  made = []

  def table(name):
    def make():
      made.append(name)
      return pd.DataFrame({'value': [1.5, 2.5]})

    return stored_tables.Table(f'{name}.{suffix}', make, name, '')

  def fill():
    with checksums.keep(tmp_path):
      stored_tables.fill_missing(
        'tables', [table('a'), table('b')], folder=tmp_path, stopper=console.Stopper()
      )

  fill()
  fill()
  assert made == ['a', 'b']
  whole = (tmp_path / f'b.{suffix}').read_bytes()
  toys.flip_bit(tmp_path / f'b.{suffix}')
  fill()
  assert made == ['a', 'b', 'b'] and (tmp_path / f'b.{suffix}').read_bytes() == whole
  (line,) = capsys.readouterr().err.splitlines()
  assert f'b.{suffix} is damaged and is computed again' in line


def test_compiled_programs_are_dropped_before_they_hold_too_many_mappings(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, '_count_mappings', lambda: 40_000)
  monkeypatch.setattr(compiled, '_max_mappings', lambda: 65_530)

  def make():
    return pd.DataFrame({'value': [1.0]})

  tables = [stored_tables.Table(f'{name}.csv', make, name, '') for name in 'ab']
  dropped = []
  monkeypatch.setattr(jax, 'clear_caches', lambda: dropped.append(True))
  stored_tables.fill_missing('tables', tables, folder=tmp_path, stopper=console.Stopper())
  assert len(dropped) == 2
  monkeypatch.setattr(compiled, '_count_mappings', lambda: 30_000)
  again = [tables[0]._replace(file='c.csv')]
  stored_tables.fill_missing('tables', again, folder=tmp_path, stopper=console.Stopper())
  assert len(dropped) == 2
