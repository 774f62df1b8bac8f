"""Derivative rules of convolution: three bilinear maps that are each other's adjoints.

With the trilinear form <y, F(x, k)>: F(x, k) = y is the convolution, T(y, k) = x its adjoint by x
and W(x, y) = k its adjoint by k. The derivatives of each of the three are the other two, so every
order of reverse differentiation uses these fast forms (forward mode is not supported).
"""

import functools

import jax

from robustmed.ops import conv_forms


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def forward(window, x, k):
  """F: x [b, *size, inputs], k [*taps, inputs / groups, features] -> [b, *out, features]."""
  return conv_forms.forward(window, x, k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def transpose(window, y, k):
  """T: y [b, *out, features], k as in `forward` -> [b, *size, inputs]."""
  return conv_forms.transpose(window, y, k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def kernel_gradient(window, x, y):
  """W: x as in `forward`, y as in `transpose` -> a kernel."""
  return conv_forms.kernel_gradient(window, x, y)


def _save_operands(rule):
  return lambda window, a, b: (rule(window, a, b), (a, b))


forward.defvjp(
  _save_operands(forward),
  lambda window, saved, g: (
    transpose(window, g, saved[1]),
    kernel_gradient(window, saved[0], g),
  ),
)
transpose.defvjp(
  _save_operands(transpose),
  lambda window, saved, g: (
    forward(window, g, saved[1]),
    kernel_gradient(window, g, saved[0]),
  ),
)
kernel_gradient.defvjp(
  _save_operands(kernel_gradient),
  lambda window, saved, g: (
    transpose(window, saved[1], g),
    forward(window, saved[0], g),
  ),
)
