"""Reads an ONNX file and refuses what is damaged, hostile or beyond this interpreter.

Nothing of a file is executed. Every refusal is one `UserError` line that names the file.
"""

import collections
import graphlib
import math
import pathlib

import google.protobuf.message
import numpy as np
import onnx
import onnx.inliner

from robustmed import errors
from robustmed.process import links

CONTROL_FLOW = ('If', 'Loop', 'Scan', 'SequenceMap')
NAMED = 4  # nodes that an error names of each missing operator
LARGEST_FILE = 2**31
MOST_NODES = 1_000_000
SMALL = 2**20
LARGEST_WINDOW = 2**16
_WINDOWS = ('pads', 'strides', 'dilations', 'kernel_shape', 'output_padding')
DOMAINS = ('', 'ai.onnx')


def read(path, *, inline: bool = True) -> onnx.ModelProto:
  """Returns the model in a file, its weights inside it, after every check that needs no table.

  inline: without functions.
  """
  path = pathlib.Path(path)
  try:
    size = _regular(path).stat().st_size
    if size > LARGEST_FILE:
      raise errors.UserError(f'{path}: {size} bytes; an ONNX file has at most {LARGEST_FILE}')
    content = path.read_bytes()
  except OSError as error:
    raise errors.UserError(f'{path}: {error.strerror or error}') from error
  model = onnx.ModelProto()
  try:
    model.ParseFromString(content)
  except (google.protobuf.message.DecodeError, RecursionError) as error:
    raise errors.UserError(f'{path}: no ONNX model ({error})') from error
  return checked(model, path, inline=inline)


def _regular(path):
  """Returns `path`; a pipe, which would wait for ever, or a device, without end, is refused."""
  if not path.is_file() and (path.is_symlink() or path.exists()):
    raise errors.UserError(f'{path}: is no regular file (a folder, pipe, device or broken link)')
  return path


def checked(model: onnx.ModelProto, path, *, inline: bool = True) -> onnx.ModelProto:
  """Returns the model, its weights inside and without functions, or raises `UserError`."""
  path = pathlib.Path(path)
  if not model.graph.node and not model.graph.output:
    raise errors.UserError(f'{path}: no ONNX model (it has no graph)')
  _drop_unused_control_flow(model)
  _refuse_subgraphs(model, path)
  files = collections.Counter()
  for tensor in _tensors(model):
    _load_external(tensor, path, files)
    _check_size(tensor, path)
  _refuse_explosions(model, path)
  try:
    onnx.checker.check_model(model)
    if inline and model.functions:
      model = onnx.inliner.inline_local_functions(model)
  # The checker raises plain RuntimeError, too, on what it cannot convert.
  except (onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
    raise errors.UserError(f'{path}: {_first_line(error)}') from error
  if model.graph.sparse_initializer:
    raise errors.UserError(f'{path}: sparse initialisers are not supported; export dense ones')
  return model


def opset(model, path) -> int:
  """Returns the version of ONNX's own operators that a model is written in."""
  versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
  newest = onnx.defs.onnx_opset_version()
  if not versions or not 1 <= versions[0] <= newest:
    found = versions[0] if versions else 'none'
    raise errors.UserError(f'{path}: operator set {found}; 1 to {newest} are known')
  return versions[0]


def refuse_unknown(model, known, path):
  """Raises a `UserError` that names every operator outside of `known`, and its nodes."""
  missing = collections.defaultdict(list)
  for index, node in enumerate(model.graph.node):
    if node.domain not in DOMAINS:
      missing[f'{node.domain}.{node.op_type} (another domain)'].append(label(node, index))
    elif node.op_type not in known:
      missing[node.op_type].append(label(node, index))
  if missing:
    raise errors.UserError(f'{path} needs operators that are not supported: {_listed(missing)}')


def label(node, index):
  """Returns the name of a node, or its number in the graph."""
  return node.name or f'number {index}'


def _listed(missing):
  parts = []
  for kind, names in missing.items():
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    plural = 'nodes' if len(names) > 1 else 'node'
    parts.append(f'{kind}: {plural} {", ".join(names[:NAMED])}{more}')
  return '; '.join(parts)


def _first_line(error):
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _branches(node) -> bool:
  nested = any(attribute.HasField('g') or attribute.graphs for attribute in node.attribute)
  return nested or (node.op_type in CONTROL_FLOW and node.domain in DOMAINS)


def _drop_unused_control_flow(model):
  """Removes branches and loops that no output depends on, as TorchScript's checks of shapes."""
  if not any(map(_branches, model.graph.node)):
    return
  makers = {name: node for node in model.graph.node for name in node.output}
  needed, left = set(), [value.name for value in model.graph.output]
  while left:
    node = makers.get(left.pop())
    if node is not None and id(node) not in needed:
      needed.add(id(node))
      left.extend(node.input)
  for node in list(model.graph.node):
    if _branches(node) and id(node) not in needed:
      model.graph.node.remove(node)


def _refuse_subgraphs(model, path):
  """Before the checker: it walks nested graphs by recursion."""
  found = collections.defaultdict(list)
  for nodes in (model.graph.node, *(function.node for function in model.functions)):
    for index, node in enumerate(nodes):
      if _branches(node):
        found[f'{node.op_type} (control flow)'].append(label(node, index))
  if found:
    raise errors.UserError(
      f'{path} needs operators that are not supported: {_listed(found)}; export the network '
      'for a fixed path, for example with torch.onnx.export in evaluation mode'
    )


def _refuse_explosions(model, path):
  """Before functions become nodes: thirty that each call the one before twice are a billion."""
  key = lambda known, name: (known.domain, name, getattr(known, 'overload', ''))
  bodies = {key(known, known.name): known.node for known in model.functions}
  calls = lambda nodes: [key(node, node.op_type) for node in nodes]
  try:
    order = [
      *graphlib.TopologicalSorter(
        {name: set(calls(nodes)) for name, nodes in bodies.items()}
      ).static_order()
    ]
  except graphlib.CycleError as error:
    raise errors.UserError(f'{path}: its functions call each other in a circle') from error
  size, weight = {}, {}  # nodes and bytes that a call becomes
  for name in order:
    inner = sum(size[called] for called in calls(bodies[name])) if name in bodies else 1
    size[name] = min(inner, MOST_NODES + 1)
    weight[name] = sum(
      node.ByteSize() + weight[called]
      for node, called in zip(bodies.get(name, ()), calls(bodies.get(name, ())))
    )
  called = calls(model.graph.node)
  if sum(size.get(name, 1) for name in called) > MOST_NODES:
    raise errors.UserError(f'{path}: its functions become more than {MOST_NODES} nodes; refused')
  if sum(weight.get(name, 0) for name in called) > LARGEST_FILE:
    raise errors.UserError(f'{path}: its functions become more than {LARGEST_FILE} bytes; refused')


def _tensors(model):
  yield from model.graph.initializer
  for nodes in (model.graph.node, *(function.node for function in model.functions)):
    for node in nodes:
      for attribute in node.attribute:
        if attribute.HasField('t'):
          yield attribute.t
        yield from attribute.tensors


def _load_external(tensor, path, files):
  """Replaces weights that lie in another file of the model's folder by their bytes.

  files: bytes that were read of each file; many tensors may name the same ones.
  """
  if tensor.data_location != onnx.TensorProto.EXTERNAL:
    return
  told = {entry.key: entry.value for entry in tensor.external_data}
  name = told.get('location', '')
  try:
    place = links.inside(path.parent, path.parent / name)
  except errors.UserError as error:
    raise errors.UserError(f'{path}: the data of {tensor.name!r}: {error}') from error
  try:
    offset, available = int(told.get('offset', 0)), place.stat().st_size
    length = int(told.get('length', available - offset))
    if offset < 0 or length < 0 or offset + length > available:
      raise errors.UserError(
        f'{path}: {name} has {available} bytes, {tensor.name!r} wants {length} from {offset} on'
      )
    files[place.resolve()] += length
    if files[place.resolve()] > max(2 * available, SMALL):
      raise errors.UserError(
        f'{path}: its tensors want more than twice the {available} bytes that are there, in {name}'
      )
    with place.open('rb') as file:
      file.seek(offset)
      tensor.raw_data = file.read(length)
  except OSError as error:
    raise errors.UserError(
      f'{path}: the data of {tensor.name!r}, {name}: {error.strerror or error}'
    ) from error
  except ValueError as error:
    raise errors.UserError(f'{path}: the place of {tensor.name!r} is no number') from error
  tensor.data_location = onnx.TensorProto.DEFAULT
  del tensor.external_data[:]


def _check_size(tensor, path):
  """Raises where a tensor declares more than it holds: its array would be made of nothing."""
  if any(size < 0 for size in tensor.dims):
    raise errors.UserError(f'{path}: {tensor.name!r} has a negative size')
  count = math.prod(tensor.dims)
  held = max(
    len(tensor.raw_data) * 8,
    *(
      64 * len(getattr(tensor, field))
      for field in ('float_data', 'int32_data', 'int64_data', 'double_data', 'uint64_data')
    ),
    64 * len(tensor.string_data),
  )
  # A packed type has at least two bits an element.
  if count * 2 > held:
    raise errors.UserError(
      f'{path}: {tensor.name!r} declares {count} elements and holds the data of fewer'
    )


def array(tensor, path) -> np.ndarray:
  """Returns a tensor of the file as a numpy array."""
  try:
    value = onnx.numpy_helper.to_array(tensor)
  except (ValueError, TypeError, KeyError, RuntimeError) as error:
    raise errors.UserError(f'{path}: {tensor.name!r} is damaged ({_first_line(error)})') from error
  # Not a view of the file's bytes, which would keep all of them.
  return np.array(value)


def attributes(node, path):
  """Returns the attributes of a node as Python numbers, strings, tuples and numpy arrays."""
  found = {}
  for attribute in node.attribute:
    if attribute.ref_attr_name or attribute.type in (
      onnx.AttributeProto.SPARSE_TENSOR,
      onnx.AttributeProto.SPARSE_TENSORS,
      onnx.AttributeProto.TENSORS,
      onnx.AttributeProto.TYPE_PROTO,
      onnx.AttributeProto.TYPE_PROTOS,
    ):
      raise errors.UserError(
        f'{path}: {node.op_type} {node.name!r} has an attribute {attribute.name!r} of a kind that '
        'is not supported'
      )
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
      value = array(value, path)
    elif isinstance(value, bytes):
      value = value.decode('utf-8', 'replace')
    elif not isinstance(value, int | float):
      value = tuple(v.decode('utf-8', 'replace') if isinstance(v, bytes) else v for v in value)
    if attribute.name in _WINDOWS and isinstance(value, tuple):
      largest = max((size for size in value if isinstance(size, int)), key=abs, default=0)
      if abs(largest) > LARGEST_WINDOW:
        raise errors.UserError(
          f'{path}: {node.op_type} {node.name!r}: {attribute.name} of {largest}; at most '
          f'{LARGEST_WINDOW} are supported'
        )
    found[attribute.name] = value
  return found
