"""ONNX to JAX: `load(path)` gives `graph(variables, *inputs)`, a pure function of both.

reading       the file: size, external data, damage, operators that are missing
graph         the function: folding of constants at load, shapes, batches
layout        arrays that stay channels last from one convolution to the next
node          what an operator knows of its node; numpy for constants, JAX for the rest
weights       which initialisers are trained; the file with new ones
table         all operators, a line each
elementwise, convolution, pooling, normalisation, resizing, shapes, indexing, reductions, casting
              the operators by family; convolution has the matrix products too
"""

from robustmed.onnx.graph import Graph, Input, build, load
from robustmed.onnx.weights import frozen, replaced

__all__ = ['Graph', 'Input', 'build', 'frozen', 'load', 'replaced']
