"""What is read off compiled programs, by hand; and the workload on real virtual devices."""

import pytest

from robustmed import errors
from robustmed.benchmark import scaling, workloads
from robustmed.runs.compilation import hlo
from support import runs

pytestmark = pytest.mark.slow

PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add.1 (a.2: f32[], b.3: f32[]) -> f32[] {
  %a.2 = f32[] parameter(0)
  ROOT %sum.4 = f32[] add(%a.2, %b.3)
}

%inner.5 (p.6: f32[4,2]) -> f32[4,2] {
  ROOT %r.7 = f32[4,2]{1,0} all-reduce(%p.6), channel_id=1, to_apply=%add.1
}

%body.8 (p.9: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %f.10 = f32[4,2]{1,0} fusion(%g.11), kind=kLoop, calls=%inner.5
}

%condition.12 (p.13: (s32[], f32[4,2])) -> pred[] {
  ROOT %c.14 = pred[] compare(%i.15, %n.16), direction=LT
}

ENTRY %main.17 (x.18: f32[8]) -> f32[8] {
  %w.19 = (s32[], f32[4,2]{1,0}) while(%t.20), condition=%condition.12, body=%body.8
  %s.21 = (f32[10]{0}, bf16[3]{0}) all-reduce-start(%x.18, %y.22), to_apply=%add.1
  %d.23 = (f32[10]{0}, bf16[3]{0}) all-reduce-done(%s.21)
  ROOT %o.24 = pred[16]{0} all-gather(%x.18), dimensions={0}
}
"""


def test_collectives_and_their_bytes_by_hand():
  found = hlo.collectives(PROGRAM)
  assert found == hlo.Collectives(
    collectives=3, in_loops=1, reduced_bytes=4 * 8 + 4 * 10 + 2 * 3, gathered_bytes=16
  )
  quiet = PROGRAM.replace('all-reduce(%p.6), channel_id=1, to_apply=%add.1', 'add(%p.6, %p.6)')
  assert hlo.collectives(quiet).in_loops == 0 and hlo.collectives(quiet).collectives == 2
  assert hlo.collectives('') == hlo.Collectives(0, 0, 0, 0)


def test_the_prediction_by_hand():
  # 2 * 7 / 8 of 100 bytes at 1000 bytes a second: 0.175 s of communication after 0.525 s of work
  assert scaling.efficiency(
    seconds=0.525, reduced_bytes=100, devices=8, link=1000
  ) == pytest.approx(0.75)
  assert scaling.efficiency(seconds=1, reduced_bytes=100, devices=1, link=1) == 1


@pytest.mark.parametrize(
  ('devices', 'peak', 'link', 'row'),
  [
    (8, 494.7e12, 450e9, '| 0.90 | 0.99 | 0.24 | 0.71 |'),
    (256, 197e12, 100e9, '| 0.81 | 0.97 | 0.13 | 0.55 |'),
  ],
)
def test_the_predictions_of_the_documents(devices, peak, link, row):
  cells = [
    scaling.efficiency(
      seconds=images * gradients * 4 * 0.581e9 / (0.3 * peak),
      reduced_bytes=4 * 38_998_721,
      devices=devices,
      link=link,
    )
    for gradients in (43, 1.5)
    for images in (8, 64)
  ]
  assert '| ' + ' | '.join(f'{cell:.2f}' for cell in cells) + ' |' == row
  assert row in (runs.ROOT / 'docs' / 'clusters.md').read_text()


SPEC = {'batch': 1, 'steps': 1, 'width': 1 / 32, 'side': 64, 'total': 2}


@pytest.fixture(scope='module')
def two():
  """The row of the two devices that tests have."""
  return scaling.on_these_devices(**SPEC)


@pytest.mark.long
def test_attacks_do_not_talk_and_a_training_step_sums_its_gradient_once(two):
  assert two['attack'] == {
    'collectives': 0, 'in_loops': 0, 'reduced_bytes': 0, 'gathered_bytes': 0,
  }  # fmt: skip
  assert two['train']['in_loops'] == 0
  gradient = 4 * two['parameters']
  assert gradient <= two['train']['reduced_bytes'] < gradient + 100


def test_a_row_says_where_images_differ(monkeypatch):
  found = lambda spec: {'attacked': 'x' if spec['count'] < 8 else 'y', 'losses': [spec['batch']]}
  monkeypatch.setattr(scaling, '_child', found)
  workload = workloads.WORKLOADS['scaling']
  row = workload.measure(name='scaling', batch=3, steps=1, repeats=1, width=0.5)
  assert [one['equal'] for one in row['devices'].values()] == [True, True, True, False]
  assert list(row['devices']) == ['1', '2', '4', '8'] and row['devices']['4']['losses'] == [3]


def test_a_measurement_that_fails_says_where(monkeypatch):
  monkeypatch.setattr(scaling.sys, 'executable', '/bin/false')
  with pytest.raises(errors.UserError, match='on 4 virtual devices ended with 1'):
    scaling._child({'count': 4})
