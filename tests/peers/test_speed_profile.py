"""What the profile of the benchmark says about a compiled program and the times of its parts."""

import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent
TEXT = """HloModule jit_attacked

FileNames
1 "/x/robustmed/models/net.py"
2 "/x/robustmed/ops/norms.py"
3 "/x/jax/numpy.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%moved (p: f32[8,3]) -> f32[3,8] {
  %p = f32[8,3]{1,0} parameter(0)
  ROOT %t = f32[3,8]{1,0} transpose(%p), dimensions={1,0}
}

ENTRY %main (x: f32[2,8,8,3], k: f32[5,5,3,4], a: f32[8,3]) -> f32[3,8] {
  %x = f32[2,8,8,3]{3,2,1,0} parameter(0)
  %k = f32[5,5,3,4]{3,2,1,0} parameter(1)
  %a = f32[8,3]{1,0} parameter(2)
  %conv.1 = f32[2,4,4,4]{3,2,1,0} convolution(%x, %k), window={size=5x5 stride=2x2 pad=2_2x2_2}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(f)/jvp(net)/conv"}
  %conv.2 = f32[2,8,8,4]{3,2,1,0} convolution(%x, %k), window={size=5x5 pad=2_2x2_2}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(f)/transpose(jvp(net))/conv"}
  %dot.1 = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %sum.1 = f32[2,3]{1,0} fusion(%x), kind=kLoop, calls=%other, metadata={op_name="s" stack_frame_id=3}
  %add.1 = f32[8,3]{1,0} add(%a, %a), metadata={op_name="add" stack_frame_id=1}
  ROOT %moved.1 = f32[3,8]{1,0} fusion(%a), kind=kLoop, calls=%moved
}
"""  # noqa: E501


@pytest.fixture
def speed_profile(monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  import speed_profile

  yield speed_profile
  for name in ('speed', 'speed_profile'):
    sys.modules.pop(name)


def test_operations_are_told_apart_and_counted(speed_profile):
  found = speed_profile.operations(TEXT)
  assert found['conv.1'] == ('convolutions', '5x5 by 2', 2 * (2 * 4 * 4 * 4) * (5 * 5 * 3))
  back = ('convolutions', '5x5, input gradient', 2 * (2 * 8 * 8 * 4) * (5 * 5 * 3))
  assert found['conv.2'] == back
  assert found['dot.1'] == ('convolutions', 'matrix product', 2 * 8 * 8 * 3)
  parts = {name: found[name].part for name in ('sum.1', 'add.1', 'moved.1')}
  assert parts == {'sum.1': 'norms', 'add.1': 'other elements', 'moved.1': 'copies'}


def test_time_within_an_operation_counts_once(speed_profile):
  events = [('while', 0, 100), ('a', 10, 40), ('b', 40, 45), ('a', 60, 90), ('Execute', 0, 200)]
  spent = speed_profile.times([*events, ('c', 120, 130)], {'while', 'a', 'b', 'c'})
  assert spent == {'while': 35, 'a': 60, 'b': 5, 'c': 10}
