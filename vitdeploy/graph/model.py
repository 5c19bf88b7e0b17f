"""The one representation: an ONNX graph in memory, with its big tensors left on disk where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass, TopologicalSortPass

from vitdeploy.errors import GraphError

_EXTERNAL_ABOVE_BYTES = 256 << 20
"""Weights beyond this go to `graph.onnx.data`: protobuf serialises in memory, twice, and ends at 2 GB."""

_EXTERNAL_TENSOR_BYTES = 1 << 10
"""Smaller tensors stay in the graph file: ONNX shape inference must see the shapes and axes."""


@dataclass
class Graph:
    """A mutable ONNX graph. Passes change `model` in place."""

    model: ir.Model

    @property
    def nodes(self) -> Iterator[ir.Node]:
        """The nodes of the main graph in topological order."""
        return iter(self.model.graph)

    @property
    def opset(self) -> int:
        """The ai.onnx opset."""
        return int(self.model.opset_imports[""])

    @opset.setter
    def opset(self, value: int) -> None:
        self.model.opset_imports[""] = value

    def infer_shapes(self) -> None:
        """Fill in value shapes and types as far as ONNX shape inference gets."""
        TopologicalSortPass()(self.model)
        ShapeInferencePass()(self.model)

    def replace(self, old_nodes: list[ir.Node], tape: ir.tape.Tape, old: ir.Value, new: ir.Value) -> None:
        """Put what `tape` recorded in the place of `old_nodes` (inserted after the first); `new` takes over `old`.

        New values are named after their nodes, so that engine plans and error messages read well.
        """
        name = old.name
        new.shape, new.type = old.shape, old.type
        for initializer in tape.initializers:
            self.model.graph.register_initializer(initializer)
        for node in tape.nodes:
            value = node.outputs[0]
            value.name = f"{node.name}:0" if f"{node.name}:0" != name else f"{node.name}:inner"
        ir.convenience.replace_nodes_and_values(
            self.model.graph, old_nodes[0], old_nodes, list(tape.nodes), [old], [new]
        )
        new.name = name

    def initializer(self, numbers: npt.NDArray[Any], name: str) -> ir.Value:
        """A new constant. Exporters share equal ones between nodes: what changes numbers gives them to a new one."""
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(v.const_value.nbytes for v in self.model.graph.initializers.values() if v.const_value is not None)

    def save(self, path: Path) -> None:
        """Write the graph; weights go beside it as `NAME.data` when they are large."""
        large = self.weight_bytes() > _EXTERNAL_ABOVE_BYTES
        if not large:  # what was loaded from a data file would go on pointing to it, wherever `path` is
            ir.external_data.load_to_model(self.model)
        # A tensor is read while it is written: the graph must not be saved over the data that backs it.
        ir.save(
            self.model,
            path,
            external_data=f"{path.name}.data" if large else None,
            size_threshold_bytes=_EXTERNAL_TENSOR_BYTES,
        )


def load(path: Path) -> Graph:
    """The graph in `path`, its external data memory-mapped.

    Raises:
        GraphError: the file is missing, truncated, or not ONNX; or its external data is missing or outside its folder.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)  # as ir.load does
    except FileNotFoundError:
        raise GraphError(f"there is no file {path}", fix="Check the path.") from None
    except Exception as error:  # noqa: BLE001  protobuf and onnx_ir raise types of their own: all mean the same here
        reason = _root_cause(error)
        raise GraphError(
            f"{path} is not a readable ONNX file: {reason}", fix="Save it again, and check its size."
        ) from None
    if not model.graph.outputs or "" not in model.opset_imports:
        raise GraphError(f"{path} is not a complete ONNX model: it has no outputs or no opset", fix="Save it again.")
    counts = Counter(tensor.name for tensor in proto.graph.initializer)
    if len(counts) < len(proto.graph.initializer):  # onnx_ir takes the last, ONNX Runtime the first
        name = counts.most_common(1)[0][0]
        raise GraphError(f"{path} has {counts[name]} initializers named {name!r}", fix="Save it again, with one.")
    _check_external_data(model, path)
    _read_inside_nodes(model)
    return Graph(model)


def _root_cause(error: BaseException) -> str:
    """onnx_ir wraps what went wrong in the graphs and nodes around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_external_data(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _external_tensors(model):
        file = Path(tensor.path).resolve()
        if not file.is_relative_to(folder):
            raise GraphError(
                f"{path}: the data of {tensor.name!r} lies outside its folder", fix="Refused: save the model again."
            )
        if not file.is_file():
            raise GraphError(f"{path}: its data file {tensor.location} is missing", fix=f"Copy it into {folder}.")
        if (tensor.offset or 0) + (tensor.length or tensor.nbytes) > file.stat().st_size:
            raise GraphError(f"{path}: its data file {tensor.location} is truncated", fix="Copy or save it again.")


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Everything that names a file: initializers, and tensors inside nodes, of all graphs and functions."""
    graphs = [*model.graphs(), *model.functions.values()]
    values = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    attributes = [a for graph in graphs for node in graph for a in node.attributes.values() if a.value is not None]
    inside = [t for a in attributes if a.type == ir.AttributeType.TENSOR for t in [a.as_tensor()]]
    inside += [t for a in attributes if a.type == ir.AttributeType.TENSORS for t in a.as_tensors()]
    yield from (t for t in [*values, *inside] if isinstance(t, ir.ExternalTensor))


def _read_inside_nodes(model: ir.Model) -> None:
    """Read what nodes keep in data files: saving moves the data of initializers only."""
    for graph in [*model.graphs(), *model.functions.values()]:
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    tensor = attribute.as_tensor()
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(np.array(tensor.numpy()), name=tensor.name))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind a value (initializer or Constant node), or None."""
    if value is None:
        return None
    return ir.convenience.get_const_tensor(value)


def array(value: ir.Value | None) -> npt.NDArray[Any]:
    """The numbers behind a value that is known to be constant.

    Raises:
        GraphError: it is not.
    """
    tensor = constant(value)
    if tensor is None:
        raise GraphError(f"{value.name if value else 'an input'} is not a constant", fix="Fold constants first.")
    return np.asarray(tensor.numpy())


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator requires.

    Raises:
        GraphError: the node lacks it, which the ONNX checker would refuse.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(f"node {node.name} ({node.op_type}) lacks its input {index}", fix="Save the model again.")
    return value


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a value if it is a constant with one element."""
    tensor = constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if its type is one of `op_types` (any type if none is given)."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def only_consumer(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that reads `value`, if there is one, it is no graph output, and its type fits."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if not op_types or node.op_type in op_types else None


def bias_behind(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The `Add` that alone reads what `product` gives, and the constant vector that it adds; None if there is none."""
    output = product.outputs[0]
    add = only_consumer(output, "Add")
    bias = None if add is None else next((v for v in add.inputs if v is not output), None)
    tensor = constant(bias)
    if add is None or bias is None or tensor is None or len(tensor.shape) != 1:
        return None
    return add, bias


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape as far as it is known: None for a dimension that varies; None when even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)
