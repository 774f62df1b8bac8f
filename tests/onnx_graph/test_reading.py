"""Files that are damaged, hostile or beyond the interpreter: each is one line that names it."""

import os

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from robustmed import errors
from robustmed import onnx as ours
from robustmed.process import links
from support import onnx_models

node = helper.make_node


def _refused(path, match):
  with pytest.raises(errors.UserError, match=match) as caught:
    ours.load(path)
  text = str(caught.value)
  assert str(path) in text and '\n' not in text and len(text) < 600, text


def _saved(tmp_path, model):
  path = tmp_path / 'network.onnx'
  path.write_bytes(model.SerializeToString())
  return path


def _simple(nodes=None, weights=None, **more):
  nodes = nodes or [node('Mul', ['x', 'w'], ['y'], 'scale')]
  weights = {'w': np.ones((4, 3), np.float32)} if weights is None else weights
  return onnx_models.model(
    nodes, inputs={'x': [4, 3]}, outputs={'y': [4, 3]}, weights=weights, **more
  )


def test_files_that_are_no_model(tmp_path):
  path = tmp_path / 'network.onnx'
  _refused(path, 'No such file')
  _refused(tmp_path, 'no regular file')
  for content in (b'', b'PK\x03\x04 zip', b'\x08\x08' * 40, os.urandom(3000)):
    path.write_bytes(content)
    _refused(path, 'no ONNX model|operator set|IR')


def test_a_file_that_was_cut_off(tmp_path):
  content = onnx_models.unet().SerializeToString()
  path = tmp_path / 'network.onnx'
  for share in (0.2, 0.5, 0.9, 0.999):
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(errors.UserError) as caught:
      ours.load(path)
    assert str(path) in str(caught.value)


def test_flipped_bytes_give_a_line_or_a_graph(tmp_path):
  """Whatever is damaged: a graph that loads, or one line; never another exception."""
  content = onnx_models.unet().SerializeToString()
  path, random = tmp_path / 'network.onnx', np.random.default_rng(0)
  refused = 0
  for _ in range(150):
    damaged = bytearray(content)
    for place in random.integers(0, len(content), 4):
      damaged[place] = random.integers(0, 256)
    path.write_bytes(bytes(damaged))
    try:
      ours.load(path)
    except errors.UserError as error:
      refused += 1
      assert str(path) in str(error)
  assert refused > 20


def test_unknown_operators_are_all_named_with_their_nodes(tmp_path):
  nodes = [
    node('Det', ['x'], ['a'], 'first'),
    node('FusedConv', ['a'], ['b'], 'second', domain='com.vendor'),
    node('Det', ['b'], ['c']),
    node('STFT', ['c', 'w'], ['y'], 'last'),
  ]
  model = _simple(nodes)
  model.opset_import.append(helper.make_opsetid('com.vendor', 1))
  _refused(
    _saved(tmp_path, model),
    r'not supported: Det: nodes first, number 2; com\.vendor\.FusedConv \(another domain\): '
    r'node second; STFT: node last',
  )


def test_control_flow_is_refused_by_name(tmp_path):
  branch = helper.make_graph(
    [node('Identity', ['x'], ['z'])], 'branch', [], [helper.make_tensor_value_info('z', 1, None)]
  )
  choice = node('If', ['w'], ['y'], 'choice', then_branch=branch, else_branch=branch)
  model = _simple([choice], {'w': np.asarray(True)})
  _refused(_saved(tmp_path, model), r'If \(control flow\): node choice')


def test_subgraphs_that_nest_deeply(tmp_path):
  graph = helper.make_graph([node('Identity', ['x'], ['z'])], 'inner', [], [])
  for depth in range(20):
    graph = helper.make_graph([node('Abs', ['x'], ['z'], f'n{depth}', body=graph)], 'g', [], [])
  model = _simple()
  model.graph.node[0].attribute.append(helper.make_attribute('body', graph))
  path = tmp_path / 'network.onnx'
  path.write_bytes(model.SerializeToString())
  _refused(path, 'no ONNX model|control flow')


def test_cyclic_and_unsorted_graphs(tmp_path):
  ring = [
    node('Add', ['x', 'b'], ['a'], 'one'),
    node('Add', ['a', 'x'], ['b'], 'two'),
    node('Add', ['a', 'b'], ['y'], 'three'),
  ]
  _refused(_saved(tmp_path, _simple(ring)), 'cyclic|topological|sorted|Nodes in a graph')
  own = [node('Add', ['y', 'x'], ['y'], 'self')]
  _refused(_saved(tmp_path, _simple(own)), 'cyclic|topological|sorted|Nodes in a graph')
  twice = [node('Abs', ['x'], ['y'], 'one'), node('Abs', ['x'], ['y'], 'two')]
  _refused(_saved(tmp_path, _simple(twice)), 'already exists|SSA')


def _with_external(tmp_path, location, **more):
  model = _simple()
  tensor = model.graph.initializer[0]
  onnx.external_data_helper.set_external_data(tensor, location, **more)
  tensor.ClearField('raw_data')
  return _saved(tmp_path, model)


def test_external_data_inside_of_the_folder_are_read(tmp_path):
  weights = np.arange(12, dtype=np.float32).reshape(4, 3)
  (tmp_path / 'weights.bin').write_bytes(b'12345678' + weights.tobytes())
  graph = ours.load(_with_external(tmp_path, 'weights.bin', offset=8, length=48))
  np.testing.assert_array_equal(graph.variables['w'], weights)


@pytest.mark.parametrize('follow', [False, True])
@pytest.mark.parametrize(
  ('location', 'said'),
  [
    ('../secret.bin', 'leaves the folder'),
    ('/etc/hostname', 'leaves the folder'),
    ('.', 'no regular file'),
    ('', 'no regular file'),
    ('circle.bin', 'no regular file'),
  ],
)
def test_external_data_outside_of_the_folder(tmp_path, location, said, follow):
  (tmp_path / 'secret.bin').write_bytes(bytes(48))
  folder = tmp_path / 'model'
  folder.mkdir()
  (folder / 'circle.bin').symlink_to('circle.bin')
  with links.following(follow):
    _refused(_with_external(folder, location), f"the data of 'w': .*{said}")


def test_external_data_behind_a_link_are_read_where_the_user_follows_links(tmp_path):
  weights = np.arange(12, dtype=np.float32).reshape(4, 3)
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'w.bin').write_bytes(weights.tobytes())
  folder = tmp_path / 'model'
  folder.mkdir()
  (folder / 'link.bin').symlink_to(tmp_path / 'elsewhere' / 'w.bin')
  (folder / 'linked').symlink_to(tmp_path / 'elsewhere')
  (folder / 'inner.bin').symlink_to('own.bin')
  (folder / 'own.bin').write_bytes(weights.tobytes())
  for location in ('link.bin', 'linked/w.bin'):
    path = _with_external(folder, location)
    _refused(path, "the data of 'w': .* by a link that leaves .*add --follow-links")
    with links.following(True):
      np.testing.assert_array_equal(ours.load(path).variables['w'], weights)
  np.testing.assert_array_equal(
    ours.load(_with_external(folder, 'inner.bin')).variables['w'], weights
  )


@pytest.mark.parametrize(
  ('more', 'match'),
  [
    ({'offset': 40, 'length': 48}, 'has 48 bytes'),
    ({'offset': 0, 'length': 2**50}, 'has 48 bytes'),
    ({'offset': 0, 'length': 16}, 'declares 12 elements|holds|damaged|size'),
  ],
)
def test_external_data_of_the_wrong_length(tmp_path, more, match):
  (tmp_path / 'weights.bin').write_bytes(bytes(48))
  _refused(_with_external(tmp_path, 'weights.bin', **more), match)
  _refused(
    _with_external(tmp_path, 'gone.bin', **more), "the data of 'w': .*gone.bin: is not there"
  )


def test_external_data_that_many_tensors_share_are_not_read_for_each(tmp_path):
  (tmp_path / 'weights.bin').write_bytes(bytes(2**24))
  model = _simple()
  for number in range(12):
    tensor = onnx.TensorProto(name=f't{number}', data_type=1, dims=[2**22])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='weights.bin')
    model.graph.initializer.append(tensor)
  _refused(_saved(tmp_path, model), 'more than twice the 16777216 bytes')


def _calling(*, twice):
  """A model of functions that each call the one before, twice or in a circle."""
  own, opsets = 'local', [helper.make_opsetid('', 17), helper.make_opsetid('local', 1)]
  body = lambda name: [
    node(name, ['a'], ['t'], domain=own),
    node(name, ['t'], ['b'], domain=own),
  ]
  first = [node('Abs', ['a'], ['b'])] if twice else [node('f39', ['a'], ['b'], domain=own)]
  bodies = [first, *(body(f'f{number}') for number in range(39))]
  graph = [node('f39', ['x'], ['y'], domain=own)]
  model = _simple(graph)
  model.opset_import.append(opsets[1])
  for number, nodes in enumerate(bodies):
    model.functions.append(helper.make_function(own, f'f{number}', ['a'], ['b'], nodes, opsets))
  return model


def test_functions_that_become_more_nodes_than_memory_holds(tmp_path):
  _refused(_saved(tmp_path, _calling(twice=True)), 'become more than 1000000 nodes')
  _refused(_saved(tmp_path, _calling(twice=False)), 'call each other in a circle')
  heavy = _calling(twice=True)  # 8,192 calls of a function that has half a megabyte
  del heavy.functions[14:]
  heavy.graph.node[0].op_type = 'f13'
  weights = numpy_helper.from_array(np.zeros(2**17, np.float32))
  heavy.functions[0].node.append(node('Constant', [], ['unused'], value=weights))
  _refused(_saved(tmp_path, heavy), 'become more than 2147483648 bytes')


def test_tensors_that_declare_more_than_they_hold(tmp_path):
  for dims in ([2**40, 2**20], [2**62, 2**62], [4, 30], [-4, 3]):
    model = _simple()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    _refused(_saved(tmp_path, model), r'\bw\b')


@pytest.mark.parametrize(
  'made',
  [
    node('ConstantOfShape', ['size'], ['h'], 'made'),
    node('Expand', ['one', 'size'], ['h'], 'made'),
    node('Tile', ['square', 'size'], ['h'], 'made'),
    node('Range', ['zero', 'many', 'step'], ['h'], 'made'),
    node('OneHot', ['index', 'many', 'values'], ['h'], 'made'),
    node('Resize', ['square', '', 'scales'], ['h'], 'made'),
    node('Pad', ['square', 'pads'], ['h'], 'made'),
  ],
  ids=lambda made: made.op_type,
)
def test_nodes_that_make_huge_arrays_of_nothing(tmp_path, made):
  weights = {
    'size': np.asarray([2**30, 2**30]),
    'one': np.ones((1, 1), np.float32),
    'square': np.ones((2, 2), np.float32),
    'zero': np.asarray(0),
    'many': np.asarray(2**55),
    'step': np.asarray(1),
    'index': np.asarray([1]),
    'values': np.asarray([0.0, 1.0], np.float32),
    'scales': np.asarray([1e7, 1e7], np.float32),
    'pads': np.asarray([2**30, 2**30, 0, 0]),
  }
  nodes = [
    made,
    node('Cast', ['h'], ['f'], to=1),
    node('ReduceSum', ['f'], ['s'], keepdims=0),
    node('Add', ['x', 's'], ['y']),
  ]
  with pytest.raises(errors.UserError, match=f"{made.op_type} 'made' asks for an array of shape"):
    graph = ours.load(_saved(tmp_path, _simple(nodes, weights)))
    graph(graph.variables, onnx_models.draw(0, 4, 3))


def test_operator_sets_and_attributes_that_are_not_known(tmp_path):
  _refused(_saved(tmp_path, _simple(opset=999)), 'operator set 999|opset')
  model = _simple([node('Softmax', ['x'], ['y'], 'soft', axis='first')])
  _refused(_saved(tmp_path, model), 'axis')
  model = _simple()
  model.graph.output[0].name = 'other'
  _refused(_saved(tmp_path, model), 'other')


def test_functions_of_a_model_are_inlined(tmp_path):
  function = helper.make_function(
    'local',
    'Twice',
    ['a'],
    ['b'],
    [node('Add', ['a', 'a'], ['b'])],
    [helper.make_opsetid('', 18)],
  )
  model = _simple([node('Twice', ['x'], ['y'], domain='local')], {}, functions=[function])
  model.opset_import.append(helper.make_opsetid('local', 1))
  graph = ours.load(_saved(tmp_path, model))
  x = onnx_models.draw(0, 4, 3)
  np.testing.assert_array_equal(graph({}, x), 2 * x)


def test_a_function_that_calls_itself(tmp_path):
  function = helper.make_function(
    'local',
    'Loop',
    ['a'],
    ['b'],
    [node('Loop', ['a'], ['b'], domain='local')],
    [helper.make_opsetid('', 18), helper.make_opsetid('local', 1)],
  )
  model = _simple([node('Loop', ['x'], ['y'], domain='local')], {}, functions=[function])
  model.opset_import.append(helper.make_opsetid('local', 1))
  _refused(_saved(tmp_path, model), 'Loop|function|recurs')


def test_inputs_that_are_no_tensors_and_weights_that_are_inputs(tmp_path):
  model = _simple()
  model.graph.input.append(helper.make_tensor_value_info('w', 1, [4, 3]))
  graph = ours.load(_saved(tmp_path, model))
  assert [known.name for known in graph.inputs] == ['x'] and set(graph.variables) == {'w'}
  kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
  model.graph.input.append(helper.make_value_info('s', kind))
  _refused(_saved(tmp_path, model), "input 's' is no tensor")


def test_the_array_of_a_tensor_is_its_own():
  tensor = numpy_helper.from_array(np.ones(3, np.float32), 'w')
  from robustmed.onnx import reading

  found = reading.array(tensor, 'file')
  found[0] = 2
  assert numpy_helper.to_array(tensor)[0] == 1


def test_loops_that_no_output_depends_on_are_dropped(tmp_path):
  body = helper.make_graph(
    [helper.make_node('Identity', ['go'], ['on'])],
    'body',
    [
      helper.make_tensor_value_info('i', onnx.TensorProto.INT64, []),
      helper.make_tensor_value_info('go', onnx.TensorProto.BOOL, []),
    ],
    [helper.make_tensor_value_info('on', onnx.TensorProto.BOOL, [])],
  )
  loop = helper.make_node('Loop', ['count', 'true'], [], 'loop', body=body)
  weights = {'count': np.array(3), 'true': np.array(True)}
  graph = ours.load(_saved(tmp_path, _simple([loop, node('Relu', ['x'], ['y'])], weights)))
  assert [one.op_type for one in graph.nodes] == ['Relu']


def test_sizes_below_1_are_unknown_ones(tmp_path):
  """Some exporters write -1 for a side of any size."""
  model = _simple()
  for value in (model.graph.input[0], model.graph.output[0]):
    value.type.tensor_type.shape.dim[0].dim_value = -1
    value.type.tensor_type.shape.dim[1].dim_value = 3
  graph = ours.load(_saved(tmp_path, model))
  assert graph.inputs[0].shape == (None, 3)


@pytest.mark.parametrize('name', ['pads', 'strides', 'dilations', 'kernel_shape'])
def test_windows_that_no_image_fills_are_refused(tmp_path, name):
  given = {'pads': [1, 1, 1, 1], 'kernel_shape': [3, 3], name: [10**9, 1, 1, 1]}
  given[name] = given[name][: 4 if name == 'pads' else 2]
  model = onnx_models.model(
    [node('MaxPool', ['x'], ['y'], 'pool', **given)],
    inputs={'x': [1, 1, 8, 8]},
    outputs={'y': [1, 1, 8, 8]},
  )
  _refused(_saved(tmp_path, model), f"MaxPool 'pool': {name} of 1000000000")
