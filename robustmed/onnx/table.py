"""All operators, a line each: the function, and what the interpreter must know of it.

layout: ELEMENTWISE functions get arrays of one rank in one layout, PLAIN ones arrays as the graph
sees them, OWN ones also `layout.Last` and `layout.Grouped`. numpy: the function computes on numpy
arrays, so that shapes stay known. concrete: operands whose values must be known before the call.
"""

from collections.abc import Callable
from typing import NamedTuple

from robustmed.onnx import (
  casting,
  convolution,
  elementwise,
  indexing,
  normalisation,
  pooling,
  reductions,
  resizing,
  shapes,
)

ELEMENTWISE, PLAIN, OWN = 'elementwise', 'plain', 'own'


class Operator(NamedTuple):
  """How one operator is computed."""

  function: Callable
  layout: str = PLAIN
  numpy: bool = True
  concrete: tuple[int, ...] = ()


def _each(function, numpy=True):
  return Operator(function, ELEMENTWISE, numpy)


def _jax(function, layout=OWN, concrete=()):
  return Operator(function, layout, False, concrete)


def _own(function, concrete=()):
  return Operator(function, OWN, True, concrete)


OPERATORS = {
  'Abs': _each(elementwise.unary('abs')),
  'Acos': _each(elementwise.unary('arccos')),
  'Acosh': _each(elementwise.unary('arccosh')),
  'Add': _each(elementwise.binary('add')),
  'And': _each(elementwise.binary('logical_and')),
  'ArgMax': _own(reductions.arg('argmax')),
  'ArgMin': _own(reductions.arg('argmin')),
  'Asin': _each(elementwise.unary('arcsin')),
  'Asinh': _each(elementwise.unary('arcsinh')),
  'Atan': _each(elementwise.unary('arctan')),
  'Atanh': _each(elementwise.unary('arctanh')),
  'AveragePool': _jax(pooling.average),
  'BatchNormalization': _jax(normalisation.batch),
  'Cast': _own(casting.cast),
  'CastLike': _own(casting.cast_like),
  'Ceil': _each(elementwise.unary('ceil')),
  'Celu': _each(elementwise.celu),
  'Clip': _each(elementwise.clip),
  'Concat': _own(shapes.concat),
  'Constant': Operator(shapes.constant),
  'ConstantOfShape': Operator(shapes.constant_of_shape, concrete=(0,)),
  'Conv': _jax(convolution.conv),
  'ConvTranspose': _jax(convolution.conv_transpose),
  'Cos': _each(elementwise.unary('cos')),
  'Cosh': _each(elementwise.unary('cosh')),
  'CumSum': Operator(reductions.cumulative_sum, concrete=(1,)),
  'DepthToSpace': _jax(convolution.depth_to_space),
  'DequantizeLinear': Operator(casting.dequantize),
  'Div': _each(elementwise.divide),
  'Dropout': Operator(elementwise.dropout, OWN, True, (1, 2)),
  'Einsum': Operator(convolution.einsum),
  'Elu': _each(elementwise.elu),
  'Equal': _each(elementwise.binary('equal')),
  'Erf': _each(elementwise.erf, numpy=False),
  'Exp': _each(elementwise.unary('exp')),
  'Expand': Operator(shapes.expand, concrete=(1,)),
  'EyeLike': Operator(shapes.eye_like),
  'Flatten': Operator(shapes.flatten),
  'Floor': _each(elementwise.unary('floor')),
  'Gather': Operator(indexing.gather),
  'GatherElements': Operator(indexing.gather_elements),
  'GatherND': Operator(indexing.gather_nd),
  'Gelu': _each(elementwise.gelu, numpy=False),
  'Gemm': Operator(convolution.gemm),
  'GlobalAveragePool': _jax(pooling.global_average),
  'GlobalMaxPool': _jax(pooling.global_maximum),
  'Greater': _each(elementwise.binary('greater')),
  'GreaterOrEqual': _each(elementwise.binary('greater_equal')),
  'GridSample': _jax(resizing.grid_sample),
  'GroupNormalization': _jax(normalisation.group),
  'HardSigmoid': _each(elementwise.hard_sigmoid),
  'HardSwish': _each(elementwise.hard_swish),
  'Hardmax': _jax(normalisation.hardmax, PLAIN),
  'Identity': _own(elementwise.identity),
  'InstanceNormalization': _jax(normalisation.instance),
  'IsInf': _each(elementwise.is_inf),
  'IsNaN': _each(elementwise.unary('isnan')),
  'LRN': _jax(normalisation.local_response),
  'LayerNormalization': _jax(normalisation.layer, PLAIN),
  'LeakyRelu': _each(elementwise.leaky_relu),
  'Less': _each(elementwise.binary('less')),
  'LessOrEqual': _each(elementwise.binary('less_equal')),
  'Log': _each(elementwise.unary('log')),
  'LogSoftmax': _own(normalisation.log_softmax),
  'LpNormalization': _jax(normalisation.lp, PLAIN),
  'MatMul': Operator(convolution.matmul),
  'Max': _each(elementwise.variadic('maximum')),
  'MaxPool': _jax(pooling.maximum),
  'Mean': _each(elementwise.mean),
  'MeanVarianceNormalization': _jax(normalisation.mean_variance, PLAIN),
  'Min': _each(elementwise.variadic('minimum')),
  'Mish': _each(elementwise.mish),
  'Mod': _each(elementwise.modulo),
  'Mul': _each(elementwise.binary('multiply')),
  'Neg': _each(elementwise.unary('negative')),
  'NonMaxSuppression': Operator(indexing.non_max_suppression, concrete=(2, 3, 4)),
  'NonZero': Operator(indexing.non_zero),
  'Not': _each(elementwise.unary('logical_not')),
  'OneHot': Operator(indexing.one_hot, concrete=(1,)),
  'Or': _each(elementwise.binary('logical_or')),
  'PRelu': _each(elementwise.prelu),
  'Pad': _own(shapes.pad, concrete=(1, 3)),
  'Pow': _each(elementwise.power),
  'QuantizeLinear': Operator(casting.quantize),
  'RMSNormalization': _jax(normalisation.root_mean_square, PLAIN),
  'Range': Operator(shapes.arange, concrete=(0, 1, 2)),
  'Reciprocal': _each(elementwise.reciprocal),
  'ReduceL1': _own(reductions.reduce('l1'), concrete=(1,)),
  'ReduceL2': _own(reductions.reduce('l2'), concrete=(1,)),
  'ReduceLogSum': _own(reductions.reduce('log_sum'), concrete=(1,)),
  'ReduceLogSumExp': _own(reductions.reduce('log_sum_exp'), concrete=(1,)),
  'ReduceMax': _own(reductions.reduce('max'), concrete=(1,)),
  'ReduceMean': _own(reductions.reduce('mean'), concrete=(1,)),
  'ReduceMin': _own(reductions.reduce('min'), concrete=(1,)),
  'ReduceProd': _own(reductions.reduce('prod'), concrete=(1,)),
  'ReduceSum': _own(reductions.reduce('sum'), concrete=(1,)),
  'ReduceSumSquare': _own(reductions.reduce('sum_square'), concrete=(1,)),
  'Relu': _each(elementwise.relu),
  'Reshape': _own(shapes.reshape, concrete=(1,)),
  'Resize': _jax(resizing.resize, concrete=(1, 2, 3)),
  'Round': _each(elementwise.round_half_even),
  'ScatterElements': _jax(indexing.scatter_elements, PLAIN),
  'ScatterND': _jax(indexing.scatter_nd, PLAIN),
  'Selu': _each(elementwise.selu),
  'Shape': _own(shapes.shape),
  'Shrink': _each(elementwise.shrink),
  'Sigmoid': _each(elementwise.sigmoid),
  'Sign': _each(elementwise.unary('sign')),
  'Sin': _each(elementwise.unary('sin')),
  'Sinh': _each(elementwise.unary('sinh')),
  'Size': _own(shapes.size),
  'Slice': _own(shapes.slices, concrete=(1, 2, 3, 4)),
  'Softmax': _own(normalisation.softmax),
  'Softplus': _each(elementwise.softplus),
  'Softsign': _each(elementwise.softsign),
  'SpaceToDepth': _jax(convolution.space_to_depth),
  'Split': _own(shapes.split, concrete=(1,)),
  'Sqrt': _each(elementwise.unary('sqrt')),
  'Squeeze': Operator(shapes.squeeze, concrete=(1,)),
  'Sub': _each(elementwise.binary('subtract')),
  'Sum': _each(elementwise.variadic('add')),
  'Swish': _each(elementwise.swish),
  'Tan': _each(elementwise.unary('tan')),
  'Tanh': _each(elementwise.unary('tanh')),
  'ThresholdedRelu': _each(elementwise.thresholded_relu),
  'Tile': Operator(shapes.tile, concrete=(1, 2)),
  'TopK': Operator(indexing.top_k, concrete=(1,)),
  'Transpose': _own(shapes.transpose),
  'Trilu': Operator(shapes.trilu, concrete=(1,)),
  'Unsqueeze': Operator(shapes.unsqueeze, concrete=(1,)),
  'Upsample': _jax(resizing.upsample, concrete=(1,)),
  'Where': _each(elementwise.where),
  'Xor': _each(elementwise.binary('logical_xor')),
}
