import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed.generators import synthesis
from robustmed.papers.synthesis import slices as evaluation
from robustmed.process import console
from support import synths

pytestmark = pytest.mark.slow

KEY = jax.random.key(1)
ORGANS = ('pancreas', 'liver')


def test_a_scrambled_field_keeps_its_spectrum_and_nothing_else():
  rows, columns = np.mgrid[:16, :16] / 16
  field = jnp.asarray(np.stack([np.sin(2 * np.pi * rows), 0.3 + np.cos(2 * np.pi * columns)], -1))
  field = jnp.stack([field, 2 * field]).astype(jnp.float32)
  found = evaluation.scramble_phases(field, jax.random.split(KEY, 2))
  assert found.dtype == jnp.float32 and found.shape == field.shape
  spectrum = lambda values: np.abs(np.fft.fft2(values, axes=(1, 2)))
  np.testing.assert_allclose(spectrum(found), spectrum(field), atol=1e-2)
  assert np.abs(found - field).max() > 0.3


@pytest.mark.parametrize('wanted', [0.02, 0.2])
def test_controls_come_to_the_wanted_size(wanted):
  image = jnp.asarray(synths.batch(3)['image'])
  rng = np.random.default_rng(0)
  draw = lambda c: jnp.asarray(rng.normal(size=(3, 16, 16, c)), jnp.float32)
  fields = synthesis.Fields(draw(2), draw(1), {})
  made = evaluation.scale_to_perceptibility(image, fields, jnp.full((3,), wanted))
  np.testing.assert_allclose(synthesis.perceptibility(made, image), wanted, rtol=0.05)


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  """The threshold network of `synths` under one generator, and another that meets its images."""
  folder, task = tmp_path_factory.mktemp('parts'), synths.task()
  load = lambda arm, seed: task.init(jax.random.key(seed))
  case = evaluation.Case(
    'gen_2', 2.0, lambda seed: synths.variables(), 'one', ('one', 'two'), controls=True
  )
  programs = evaluation.Programs(synths.model(), key=KEY, draws=3, pgd_steps=4)
  batches = lambda: [{**synths.batch(4), 'group': np.array([0, 0, 1, 1], np.int32)}]
  run = lambda cases: evaluation.run(
    cases, programs, seeds=[0], task_of=lambda arm: task, load=load, batches=batches,
    folder=folder, stopper=console.Stopper(),
  )  # fmt: skip
  return run, case, run([case]), folder


def test_rows_of_every_kind(ran):
  _, _, rows, _ = ran
  cells = rows.groupby(['arm', 'attack']).size()
  assert set(cells.index) == {
    *(('one', kind) for kind in ('none', *evaluation.KINDS)),
    ('two', 'none'),
    ('two', 'dv_from_one'),
  }
  assert (cells == 4).all()
  mean = rows.groupby(['arm', 'attack'])[['p', 'X']].mean()
  assert mean.loc[('one', 'none'), 'p'] == 0
  equal = mean.loc[('one', 'dv'), 'p']
  for kind in ('smooth', 'pgd'):
    assert mean.loc[('one', kind), 'p'] == pytest.approx(equal, rel=0.2), kind
  # the same network under another name sees the same
  assert mean.loc[('two', 'dv_from_one'), 'X'] == pytest.approx(mean.loc[('one', 'dv'), 'X'])
  # not above 'smooth': a moved edge changes few pixels by much, which costs this network most
  assert mean.loc[('one', 'pgd'), 'X'] > mean.loc[('one', 'none'), 'X'] + 0.1
  spread = rows[rows['attack'] == 'dv'].loc[lambda t: t['arm'] == 'one', 'spread']
  assert (spread > 1e-4).all()


def test_the_truth_that_moves_with_d_is_used_where_there_is_a_d(ran):
  rows = ran[2].set_index(['arm', 'attack'])
  for kind in ('none', 'v', 'smooth', 'pgd'):
    part = rows.loc[('one', kind)]
    assert (part['_tp1'] == part['_moved_tp1']).all(), kind
  part = rows.loc[('one', 'd')]
  dice = lambda t, name: (
    2 * t[f'{name}tp1'] / (2 * t[f'{name}tp1'] + t[f'{name}fp1'] + t[f'{name}fn1'])
  )
  assert dice(part, '_moved_').mean() > dice(part, '_').mean()


def test_a_finished_case_is_read_and_not_done_again(ran):
  run, case, rows, folder = ran
  broken = case._replace(generator=None)
  pd.testing.assert_frame_equal(run([broken]), rows)
  assert [path.name for path in folder.iterdir()] == [case.file(0)]


def _row(arm, attack, eps, group, index, tp, fp, fn, **more):
  counts = {f'_{m}{kind}{k}': v[k - 1] for m in ('', 'moved_')
            for kind, v in (('tp', tp), ('fp', fp), ('fn', fn)) for k in (1, 2)}  # fmt: skip
  same = {'arm': arm, 'seed': 0, 'attack': attack, 'eps': eps, 'group': group, 'index': index}
  return {**same, **counts, 'X': 1.0, 'p': 0.1, '_pixels': 100.0, **more}


def test_subjects_are_volumes():
  rows = pd.DataFrame(
    [
      _row('u', 'none', 0.0, 0, 0, (4, 10), (0, 0), (0, 0)),
      _row('u', 'none', 0.0, 0, 1, (0, 10), (4, 0), (0, 0)),
      _row('u', 'none', 0.0, 1, 2, (5, 0), (0, 0), (0, 0)),
      _row('u', 'dv', 2.0, 0, 0, (1, 5), (0, 0), (3, 5), p=0.3),
      _row('u', 'dv', 2.0, 0, 1, (0, 5), (0, 0), (0, 5), p=0.9, _pixels=1.0),
      _row('u', 'dv', 2.0, 1, 2, (5, 0), (0, 0), (0, 0), p=0.5),
    ]
  )
  found = evaluation.subjects(rows, ORGANS, min_pixels=50).set_index(['attack', 'group'])
  np.testing.assert_allclose(found.loc[('none', 0), 'DICE_pancreas'], 8 / 12)
  np.testing.assert_allclose(found.loc[('none', 0), 'DICE_liver'], 1.0)
  assert np.isnan(found.loc[('none', 1), 'DICE_liver'])
  np.testing.assert_allclose(found.loc[('none', 1), 'DICE'], 1.0)
  np.testing.assert_allclose(found.loc[('dv', 0), 'DICE_pancreas'], 2 / 5)
  np.testing.assert_allclose(found.loc[('dv', 0), 'p'], 0.3)  # the slice without organs is out
  clean = (8 / 12 + 1) / 2
  cells = {'I_0': ('u', 'none', 0.0), 'I_DV 2': ('u', 'dv', 2.0), 'absent': ('u', 'dv', 3.0)}
  table = evaluation.table(found.reset_index(), ORGANS, cells)
  assert table['image'].tolist() == ['I_0', 'I_DV 2']
  np.testing.assert_allclose(table['pancreas'], [100 * clean, 100 * (2 / 5 + 1) / 2])
  np.testing.assert_allclose(table['p'], [0.1, 0.4])
