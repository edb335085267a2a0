"""An ONNX model in half precision, for TensorRT, which from version 11 on computes in the types that a model states.

Runs in Triton's image: `onnx` and NumPy only.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from components.step import UserError

LARGEST = 65504.0
# By kind of node, the inputs that stay in single precision: sizes and scales, no data.
_SINGLE = {"Resize": (1, 2), "Upsample": (1,)}


def write_half_precision(source: Path, target: Path) -> None:
    """Writes a model that computes in half precision; its inputs and outputs keep name, shape and type.

    Raises:
        UserError: A weight does not fit into half precision.
    """
    model = onnx.load(source)
    graph = model.graph
    single = {
        node.input[index] for node in graph.node for index in _SINGLE.get(node.op_type, ()) if index < len(node.input)
    }
    for tensor in _weights(graph, single):
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if abs(values).max(initial=0) > LARGEST:
                raise UserError(f"{source}: {tensor.name} has weights above {LARGEST:g}; build the plan with fp32")
            tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    del graph.value_info[:]  # their types no longer hold
    _cast_at_the_border(graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _weights(graph: onnx.GraphProto, single: set[str]) -> Iterator[TensorProto]:
    """Yields initialisers and constants, but for those that have to stay in single precision."""
    yield from (tensor for tensor in graph.initializer if tensor.name not in single)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in single:
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _cast_at_the_border(graph: onnx.GraphProto) -> None:
    """Puts a cast after each input and before each output of single precision."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [each.name for each in graph.input if each.name not in weights and _is_single(each)]
    outputs = [each.name for each in graph.output if _is_single(each)]
    renamed = {name: f"{name}/half" for name in (*inputs, *outputs)}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for index, name in enumerate(inputs):
        graph.node.insert(index, helper.make_node("Cast", [name], [renamed[name]], to=TensorProto.FLOAT16))
    for name in outputs:
        graph.node.append(helper.make_node("Cast", [renamed[name]], [name], to=TensorProto.FLOAT))


def _is_single(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)
