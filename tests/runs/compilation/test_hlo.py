"""What is read off the text of compiled programs, on texts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.runs.compilation import hlo

# A convolution before a loop of 1 ... 5, in it a product of matrices and an array in fast memory.
PROGRAM = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(4,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:T(4,128)S(1)} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0:T(4,128)S(1)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[]{:T(128)}, f32[4,8]{1,0:T(4,128)S(1)}) tuple(%i, %y)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(4,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %six = s32[]{:T(128)} constant(6), metadata={op_name="n"}
  ROOT %less = pred[]{:T(512)} compare(%i, %six), direction=LT
}

ENTRY %main (image: f32[1,8,8,2], kernel: f32[3,3,2,4]) -> f32[4,8] {
  %image = f32[1,8,8,2]{3,2,1,0} parameter(0)
  %kernel = f32[3,3,2,4]{3,2,1,0} parameter(1)
  %c = f32[1,8,8,4]{3,2,1,0} convolution(%image, %kernel), WINDOW, dim_labels=b01f_01io->b01f
  %one = s32[]{:T(128)} constant(1)
  %x = f32[4,8]{1,0:T(4,128)S(1)} bitcast(%c)
  %start = (s32[]{:T(128)}, /*index=1*/f32[4,8]{1,0:T(4,128)S(1)}) tuple(%one, %x)
  %loop = (s32[], f32[4,8]{1,0:T(4,128)S(1)}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
""".replace('WINDOW', 'window={size=3x3 pad=1_1x1_1}')
CONVOLUTION = 2 * 8 * 8 * 4 * 2 * 9
PRODUCT = 2 * 4 * 8 * 8


def test_work_in_loops_counts_as_often_as_they_go_round():
  found = hlo.loops(PROGRAM)
  assert found.flops == pytest.approx((CONVOLUTION + 5 * PRODUCT) / (CONVOLUTION + PRODUCT))
  # read and written: the convolution's three arrays, the weights in the loop, and the comparison
  outside, inside, compared = 4 * (128 + 72 + 256), 4 * 64, 1 + 4 + 4
  want = (outside + 5 * inside + compared) / (outside + inside + compared)
  assert found.bytes == pytest.approx(want)


def test_a_stated_number_of_trips_goes_before_the_condition():
  stated = PROGRAM.replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
  )
  assert hlo.loops(stated).flops == pytest.approx(
    (CONVOLUTION + 9 * PRODUCT) / (CONVOLUTION + PRODUCT)
  )


def test_zeros_between_inputs_are_no_work():
  dilated = PROGRAM.replace('pad=1_1x1_1', 'pad=1_1x1_1 lhs_dilate=2x2')
  part = CONVOLUTION / 4
  assert hlo.loops(dilated).flops == pytest.approx((part + 5 * PRODUCT) / (part + PRODUCT))


def test_a_program_without_products_or_loops():
  assert hlo.loops('') == (1.0, 1.0)


def test_operations_of_a_loop_of_products_are_counted_in_full():
  w = jax.ShapeDtypeStruct((16, 16), np.float32)

  def chain(w):
    return jax.lax.fori_loop(0, 7, lambda i, x: jnp.tanh(x @ w), w)

  flops, moved = hlo.costs(jax.jit(chain).lower(w).compile())
  product = 7 * 2 * 16**3
  assert product <= flops < 1.5 * product and moved > 7 * 3 * 16 * 16 * 4
