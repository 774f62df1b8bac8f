"""Passes that whole runs make against those forecast, where no other test counts them."""

import pytest

from support import counted, runs

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize('name', ['quickstart', 'two_moons', 'nodules', 'brats3d'])
def test_the_forecast_is_what_was_counted(name, tmp_path):
  config, counts = f'configs/{name}.py:smoke', tmp_path / 'passes.json'
  runs.main('--config', config, '--workdir', tmp_path / 'run', counted=counts)
  counted.check(counts, config)
