"""ops.conv against lax.conv_general_dilated and its derivatives, in float64."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from robustmed import errors
from robustmed.ops import conv, conv_forms, conv_turned, conv_window


@pytest.fixture(autouse=True)
def _double():
  with jax.enable_x64(True):
    yield


def draw(seed, *shape, dtype=np.float64):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def scalar(function, weights):
  return lambda *args: jnp.sum(weights * jnp.sin(function(*args)))


def assert_same_to_second_order(fast, slow, x, k):
  """Values, both gradients, and both gradients of a penalty on the input and kernel gradients."""
  weights = draw(7, *jax.eval_shape(slow, x, k).shape)

  def penalty(function):
    def value(x, k):
      by_x, by_k = jax.grad(scalar(function, weights), argnums=(0, 1))(x, k)
      return jnp.sum(jnp.cos(by_x)) + jnp.sum(by_k**2)

    return value

  def everything(function):
    first = jax.grad(scalar(function, weights), argnums=(0, 1))
    second = jax.grad(penalty(function), argnums=(0, 1))
    return function(x, k), first(x, k), second(x, k)

  values = jax.jit(lambda: (everything(fast), everything(slow)))
  for a, b in zip(*map(jax.tree.leaves, values()), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9 * (1 + np.abs(b).max()))


# (grid, taps, strides, padding, dilation, groups): every form, and each one's odd corners.
CASES = [
  ((9,), (3,), (1,), ((1, 1),), (1,), 1),
  ((9,), (4,), (3,), ((2, 0),), (1,), 1),
  ((8, 7), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
  ((8, 7), (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1), 1),
  ((8, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  ((8, 7), (3, 2), (1, 1), ((0, 2), (1, 0)), (2, 1), 1),
  ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
  ((8, 8), (7, 5), (2, 2), ((3, 3), (2, 2)), (1, 1), 1),
  ((8, 9), (4, 3), (2, 3), ((1, 1), (0, 2)), (1, 1), 1),
  ((8, 8), (3, 3), (2, 1), ((0, 1), (1, 1)), (1, 1), 1),
  ((9, 8), (3, 3), (2, 2), ((2, 2), (2, 2)), (2, 2), 1),
  ((9, 8), (3, 3), (2, 1), ((-1, 2), (1, -2)), (1, 1), 1),
  ((8, 8), (2, 2), (4, 4), ((0, 0), (0, 0)), (1, 1), 1),
  ((8, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
  ((8, 6), (3, 3), (2, 2), ((1, 1), (1, 0)), (1, 1), 4),
  ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  ((2, 2), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
  ((2, 1), (5, 7), (2, 1), ((2, 2), (3, 3)), (1, 1), 1),
  ((4, 5, 3), (3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 1),
  ((5, 4, 6), (3, 2, 3), (2, 2, 2), ((1, 1), (0, 0), (0, 1)), (1, 1, 1), 1),
  ((6, 4, 4), (2, 1, 1), (1, 2, 2), ((1, 1), (0, 0), (0, 0)), (2, 1, 1), 1),
  ((4, 4, 4), (3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 2),
  ((1, 2, 1), (3, 3, 3), (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), 1),
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_every_form_against_lax(case, monkeypatch):
  """The convolution and its two adjoints; lax's own derivatives are the judge of the adjoints."""
  window = conv_window.Window(*case)
  grid, taps, groups = case[0], case[1], case[-1]
  x, k = draw(0, 2, *grid, 4), draw(1, *taps, 4 // groups, 8)
  y = draw(2, 2, *window.out, 8)
  by_lax = functools.partial(conv_forms.native, window)
  turned = conv_turned.transpose if groups == 1 else conv_forms.native_transpose

  def every_form(x, k, y):
    rows = {'native': (conv_forms.native_transpose(window, y, k), turned(window, y, k))}
    for name, few in (('large', 0), ('few', 10**6)):
      monkeypatch.setattr(conv_forms, 'FEW_POSITIONS', few)
      rows[name] = (
        conv_forms.forward(window, x, k),
        conv_forms.transpose(window, y, k),
        conv_forms.kernel_gradient(window, x, y),
      )
    return rows, (by_lax(x, k), *jax.vjp(by_lax, x, k)[1](y))

  rows, (forward, by_x, by_k) = jax.jit(every_form)(x, k, y)
  expected = {'native': (by_x, by_x)} | dict.fromkeys(('large', 'few'), (forward, by_x, by_k))
  for name, values in expected.items():
    for actual, value in zip(rows[name], values, strict=True):
      limit = 1e-11 * (1 + np.abs(value).max())
      np.testing.assert_allclose(actual, value, atol=limit, err_msg=name)


@pytest.mark.parametrize('case', [CASES[i] for i in (3, 7, 10, 14, 16, 20)], ids=str)
def test_derivatives_to_second_order(case):
  grid, taps, strides, padding, dilation, groups = case
  x, k = draw(0, 2, *grid, 4), draw(1, *taps, 4 // groups, 8)
  options = {'strides': strides, 'padding': padding, 'dilation': dilation, 'groups': groups}
  fast = functools.partial(conv.conv, impl='fast', **options)
  slow = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    dimension_numbers=conv_window.spec(len(grid)),
    feature_group_count=groups,
  )
  assert_same_to_second_order(fast, slow, x, k)


TRANSPOSED = [
  ((4, 5), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
  ((4, 3), (5, 7), (2, 2), (2, 3), (1, 1), (1, 1), 1),
  ((1, 1), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
  ((4, 3), (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
  ((4, 3), (4, 3), (3, 1), (1, 0), (2, 0), (1, 1), 2),
  ((4, 3), (3, 2), (2, 2), (0, 1), (0, 1), (2, 3), 1),
  ((5,), (4,), (2,), (1,), (0,), (1,), 1),
  ((2, 3, 2), (2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), 1),
  ((2, 3, 2), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize('case', TRANSPOSED, ids=str)
def test_transposed_convolution_is_torch_s(case):
  """Against the dilated convolution with padding d(k-1)-p and d(k-1)-p+output_padding."""
  grid, taps, strides, padding, extra, dilation, groups = case
  x, k = draw(0, 2, *grid, 4), draw(1, *taps, 6 // groups, 4)
  reach = [d * (t - 1) for t, d in zip(taps, dilation)]
  pads = [(r - p, r - p + e) for r, p, e in zip(reach, padding, extra)]

  def slow(x, k):
    return lax.conv_general_dilated(
      x,
      conv_forms.swap(k, groups),
      (1,) * len(grid),
      pads,
      lhs_dilation=strides,
      rhs_dilation=dilation,
      dimension_numbers=conv_window.spec(len(grid)),
      feature_group_count=groups,
    )

  options = {
    'strides': strides,
    'padding': padding,
    'output_padding': extra,
    'dilation': dilation,
    'groups': groups,
  }
  fast = functools.partial(conv.conv_transpose, impl='fast', **options)
  native = functools.partial(conv.conv_transpose, impl='native', **options)
  values = jax.jit(lambda *a: (fast(*a), native(*a), slow(*a)))(x, k)
  np.testing.assert_allclose(values[0], values[2], atol=1e-10)
  np.testing.assert_allclose(values[1], values[2], atol=1e-10)
  if case in (TRANSPOSED[0], TRANSPOSED[-1]):
    assert_same_to_second_order(fast, slow, x, k)


@pytest.mark.parametrize(('taps', 'pads'), [(3, (1, 2)), (5, (2, 3)), (7, (3, 4))])
def test_exact_doubling(taps, pads):
  """Padding k//2 with output padding 1 is a 2-dilated convolution padded (k-1-k//2, k-k//2)."""
  x, k = draw(0, 1, 6, 6, 2), draw(1, taps, taps, 3, 2)
  y = conv.conv_transpose(x, k, strides=2, padding=taps // 2, output_padding=1)
  assert y.shape == (1, 12, 12, 3)
  flipped = k[::-1, ::-1].swapaxes(2, 3)
  expected = lax.conv_general_dilated(
    x, flipped, (1, 1), (pads, pads), (2, 2), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(y, expected, atol=1e-10)


@pytest.mark.parametrize('impl', ['fast', 'native'])
def test_transposed_padding_may_differ_at_both_ends(impl):
  x, k = draw(0, 1, 5, 6, 2), draw(1, 3, 2, 4, 2)
  whole = conv.conv_transpose(x, k, strides=2, impl=impl)
  cropped = conv.conv_transpose(x, k, strides=2, padding=((1, 0), (0, 2)), impl=impl)
  np.testing.assert_allclose(cropped, whole[:, 1:, :-2], atol=1e-10)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 1), (0, 3))])
@pytest.mark.parametrize('lhs_dilation', [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize('layout', [('NCHW', 'OIHW', 'NCHW'), ('NHWC', 'HWIO', 'NCHW')])
def test_general_form_takes_every_layout(padding, lhs_dilation, layout):
  shapes = {'NCHW': (2, 4, 7, 6), 'NHWC': (2, 7, 6, 4), 'OIHW': (6, 2, 3, 2), 'HWIO': (3, 2, 2, 6)}
  x, k = draw(0, *shapes[layout[0]]), draw(1, *shapes[layout[1]])
  args = ((1, 1), padding, lhs_dilation, (1, 2), layout, 2)
  if isinstance(padding, str) and lhs_dilation != (1, 1):
    with pytest.raises(ValueError, match='padding'):
      conv.conv_general_dilated(x, k, *args, impl='fast')
    return
  weights = draw(2, *lax.conv_general_dilated(x, k, *args).shape)
  fast = scalar(lambda x, k: conv.conv_general_dilated(x, k, *args, impl='fast'), weights)
  slow = scalar(lambda x, k: lax.conv_general_dilated(x, k, *args), weights)
  both = jax.jit(lambda *a: (jax.grad(fast, (0, 1))(*a), jax.grad(slow, (0, 1))(*a)))
  for a, b in zip(*both(x, k), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_cases_without_a_fast_form_fall_to_lax():
  x, k = draw(0, 4, 6, 6, 4, dtype=np.float32), draw(1, 3, 3, 4, 6, dtype=np.float32)
  numbers = conv_window.spec(2)
  options = [
    {'batch_group_count': 2},
    {'lhs_dilation': (2, 2), 'window_strides': (3, 1)},
    {'padding': ((-6, 0), (0, 0))},
    {'preferred_element_type': jnp.float64},
  ]
  for option in options:
    args = {'window_strides': (1, 1), 'padding': ((1, 1), (1, 1)), 'dimension_numbers': numbers}
    args |= option
    expected = lax.conv_general_dilated(x, k, **args)
    actual = conv.conv_general_dilated(x, k, **args, impl='fast')
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_flax_hook():
  x = draw(0, 2, 8, 8, 3, dtype=np.float32)
  fast = nn.Conv(5, (3, 3), strides=2, conv_general_dilated=conv.conv_general_dilated)
  variables = fast.init(jax.random.key(0), x)
  plain = nn.Conv(5, (3, 3), strides=2)
  np.testing.assert_allclose(fast.apply(variables, x), plain.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept_and_rounding_is_that_of_lax(dtype):
  x, k = draw(0, 2, 16, 16, 8, dtype=dtype), draw(1, 3, 3, 8, 8, dtype=dtype)
  exact = conv.conv(x.astype(jnp.float64), k.astype(jnp.float64), padding=1, strides=2)

  def run(few, impl):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(conv_forms, 'FEW_POSITIONS', few)
      y, back = jax.vjp(lambda x: conv.conv(x, k, padding=1, strides=2, impl=impl), x)
      return y, *back(y)

  for y, by_x in jax.jit(lambda: [run(*c) for c in itertools.product((0, 512), conv.IMPLS)])():
    assert y.dtype == dtype and by_x.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float64), exact, atol=300 * jnp.finfo(dtype).eps)


def test_inside_a_loop_and_under_vmap():
  x, k = draw(0, 3, 2, 6, 6, 2), draw(1, 3, 3, 2, 2)

  def loop(x):
    body = lambda _, x: x + 0.1 * jax.grad(lambda x: jnp.sum(conv.conv(x, k, padding=1) ** 2))(x)
    return lax.fori_loop(0, 3, body, x)

  batched = jax.vmap(loop)(x)
  np.testing.assert_allclose(batched, lax.map(loop, x), rtol=1e-9)
  kernels = jnp.stack([k, 2 * k, -k])
  actual = jax.vmap(lambda x, k: conv.conv(x, k, padding=1))(x, kernels)
  np.testing.assert_allclose(actual[1], 2 * conv.conv(x[1], k, padding=1), rtol=1e-9)


@pytest.mark.parametrize(('grid', 'strides'), [((16, 16), 1), ((16, 16), 2), ((9, 8, 8), 2)])
def test_gradients_inside_a_loop_stay_canonical(grid, strides, monkeypatch):
  """Any other order of axes is a naive kernel inside a loop: the compiler turns none there."""
  x = jnp.ones((2, *grid, 4), jnp.float32)
  k = jnp.ones((*(3,) * len(grid), 4, 8), jnp.float32)

  def step(_, carry):
    value = lambda x, k: jnp.sin(conv.conv(x, k, strides=strides, padding=1, impl='fast')).sum()
    return jax.tree.map(jnp.add, carry, jax.grad(value, (0, 1))(*carry))

  monkeypatch.setattr(conv_forms, 'FEW_POSITIONS', 0)
  loop = jax.jit(lambda *carry: lax.fori_loop(0, 3, step, carry))
  labels = re.findall(r'dim_labels=([^\s,]+)', loop.lower(x, k).compile().as_text())
  assert len(labels) >= 3 and set(labels) == {'b01f_01io->b01f'}


def test_using_forces_what_is_traced_inside():
  x, k = draw(0, 1, 8, 8, 2), draw(1, 3, 3, 2, 2)

  def names(**options):
    call = lambda x, k: conv.conv_transpose(x, k, strides=2, padding=1, **options)
    return str(jax.make_jaxpr(call)(x, k))

  default, fast = names(), names(impl='fast')
  with conv.using('native'):
    forced, own = names(), names(impl='fast')
    with conv.using('fast'):
      assert names() == fast
  assert 'lhs_dilation=(2, 2)' in forced and forced == names(impl='native')
  assert 'lhs_dilation=(2, 2)' not in fast and own == fast
  assert names() == default == fast
  with (
    pytest.raises(errors.UserError, match="unknown convolution impl 'naive'"),
    conv.using('naive'),
  ):
    pass


def test_mistakes_are_named():
  x, k = draw(0, 1, 6, 6, 2), draw(1, 3, 3, 2, 2)
  with pytest.raises(errors.UserError, match='strides has 3 entries for 2'):
    conv.conv(x, k, strides=(1, 1, 1))
  with pytest.raises(errors.UserError, match='output_padding'):
    conv.conv_transpose(x, k, strides=2, output_padding=2)
  with pytest.raises(errors.UserError, match=r"unknown convolution impl 'fats'.*'fast'"):
    conv.conv(x, k, impl='fats')


@pytest.mark.parametrize(('taps', 'grid'), [((9, 8), (20, 16)), ((5, 4, 5), (10, 9, 7))])
def test_large_windows_side_by_side_are_cut_out_by_a_reshape(taps, grid):
  """The patch embedding of a transformer; 16^3 taps would be 4096 slices."""
  x, k = draw(0, 2, *grid, 2), draw(1, *taps, 2, 3)
  fast = functools.partial(conv.conv, strides=taps, impl='fast')
  slow = functools.partial(conv.conv, strides=taps, impl='native')
  assert_same_to_second_order(fast, slow, x, k)
  text = str(jax.make_jaxpr(fast)(x, k))
  assert 'conv_general_dilated' not in text and text.count(' slice') <= 1
  y = slow(x, k)
  other = lambda impl: conv.conv_transpose(y, k, strides=taps, impl=impl)
  np.testing.assert_allclose(other('fast'), other('native'), atol=1e-10)
