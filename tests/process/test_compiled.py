import jax
import pytest

from robustmed.process import compiled


@pytest.mark.slow
def test_programs_are_dropped_where_they_hold_many_mappings_only(monkeypatch):
  traced = []
  double = jax.jit(lambda x: traced.append(1) or 2 * x)
  for share, expected in ((1.0, 1), (0.0, 2)):  # a worker of the suite may hold a quarter
    monkeypatch.setattr(compiled, '_MAPPINGS_SHARE', share)
    double(1.0)
    compiled.drop_programs()
    double(2.0)
    assert len(traced) == expected
