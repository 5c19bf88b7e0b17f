"""The one representation of a model: an ONNX graph in memory, whose large tensors stay on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass, TopologicalSortPass

from vitdeploy.errors import GraphError
from vitdeploy.graph.fresh_names import FreshNames
from vitdeploy.limits import MAX_NODES

_EXTERNAL_ABOVE_BYTES = 256 << 20
"""Larger weights go to `graph.onnx.data`: protobuf serialises in memory, twice, and cannot exceed 2 GB."""

_EXTERNAL_TENSOR_BYTES = 1 << 10
"""Smaller tensors stay in the graph file, because ONNX shape inference must see shapes and axes."""


@dataclass
class Graph:
    """A mutable ONNX graph. Passes change `model` in place."""

    model: ir.Model
    _names: FreshNames = field(default_factory=FreshNames, init=False, repr=False, compare=False)

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
        """Fill in the shapes and types of values as far as ONNX shape inference can."""
        TopologicalSortPass()(self.model)
        ShapeInferencePass()(self.model)

    def infer_shapes_anew(self) -> None:
        """Drop the shapes of all computed values and infer them again: inference never replaces a name by a number.

        Outputs keep their fixed sizes, and the names of sizes that still vary in an input, such as the batch: inference
        would number them, and finds nothing behind an operator of an old opset that it does not follow.
        """
        declared = {value: value.shape for value in self.model.graph.outputs if value.shape is not None}
        for node in self.model.graph.all_nodes():
            for output in node.outputs:
                output.shape = None
        self.infer_shapes()
        varying = {size for value in self.model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
        for value, old in declared.items():
            known = value.shape if value.shape is not None and len(value.shape) == len(old) else [None] * len(old)
            pairs = zip(known, [d if isinstance(d, int) or d in varying else None for d in old], strict=True)
            value.shape = ir.Shape([a if isinstance(a, int) or b is None else b for a, b in pairs])

    def replace(self, old_nodes: list[ir.Node], tape: ir.tape.Tape, old: ir.Value, new: ir.Value) -> None:
        """Replace `old_nodes` by the nodes on `tape`, and the value `old` by `new`.

        The new nodes are inserted behind the first of `old_nodes`. New values are named after their nodes, so that
        engine plans and error messages are readable.
        """
        name = old.name
        new.shape, new.type = old.shape, old.type
        self._names.free(self.model, old_nodes, reused=old)
        self._adopt(tape)
        ir.convenience.replace_nodes_and_values(
            self.model.graph, old_nodes[0], old_nodes, list(tape.nodes), [old], [new]
        )
        new.name = name

    def find_first(self, nodes: Iterable[ir.Node]) -> ir.Node:
        """Return the node among `nodes` that comes first in the graph."""
        chosen = set(nodes)
        return next(node for node in self.nodes if node in chosen)

    def insert_before(self, node: ir.Node, tape: ir.tape.Tape) -> None:
        """Insert the nodes on `tape` before `node`, and its constants. New values are named after their nodes."""
        self._adopt(tape)
        self.model.graph.insert_before(node, list(tape.nodes))

    def fresh_name(self, name: str) -> str:
        """Return `name`, with a number behind it if a node or constant has that name already, and reserve it."""
        return self._names.name_node(self.model, name)

    def fresh_value_name(self, name: str) -> str:
        """Return `name`, with a number behind it if a value has that name already, and reserve it."""
        return self._names.name_value(self.model, name)

    def append(self, tape: ir.tape.Tape) -> None:
        """Append the nodes on `tape` to the graph, and its constants. New values are named after their nodes."""
        self._adopt(tape)
        self.model.graph.extend(list(tape.nodes))

    def adopt_constants(self) -> None:
        """Register the constants that nodes read and that the graph does not list.

        onnxscript's optimizer loses one where it merges the clamps of a value twice: both times it takes the same name.
        """
        initializers = self.model.graph.initializers
        for node in self.nodes:
            for value in node.inputs:
                if value is None or value.const_value is None or value.producer() is not None:
                    continue
                if initializers.get(value.name or "") is not value and value not in self.model.graph.inputs:
                    self.forget_names()
                    value.name = self.fresh_name(value.name or "constant")
                    self.model.graph.register_initializer(value)

    def forget_names(self) -> None:
        """Collect the names anew for the next fresh one, because something else has named or removed nodes."""
        self._names.forget()

    def _adopt(self, tape: ir.tape.Tape) -> None:
        """Give what is on `tape` fresh names, and register its constants."""
        for initializer in tape.initializers:
            name = self.fresh_name(initializer.name or "constant")
            initializer.name = name
            if initializer.const_value is not None:
                initializer.const_value.name = name
            self.model.graph.register_initializer(initializer)
        for node in tape.nodes:
            node.name = self.fresh_name(node.name or node.op_type)
            for number, output in enumerate(node.outputs):
                output.name = self.fresh_value_name(f"{node.name}:{number}")

    def initializer(self, numbers: npt.NDArray[Any], name: str) -> ir.Value:
        """Add a new constant called `name`, or with a number behind that if it is in use.

        Exporters share equal constants between nodes, so a rewrite that changes numbers needs a new constant for them.
        """
        name = self.fresh_name(name)
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def weight_bytes(self) -> int:
        """Return the bytes of all initializers."""
        return sum(v.const_value.nbytes for v in self.model.graph.initializers.values() if v.const_value is not None)

    def save(self, path: Path) -> None:
        """Write the graph. Large weights go to `NAME.data` beside it."""
        large = self.weight_bytes() > _EXTERNAL_ABOVE_BYTES
        if not large:  # tensors from a data file would still point to that file, wherever `path` is
            ir.external_data.load_to_model(self.model)
        # Tensors are read while they are written, so `path` must not be the file that they come from.
        ir.save(
            self.model,
            path,
            external_data=f"{path.name}.data" if large else None,
            size_threshold_bytes=_EXTERNAL_TENSOR_BYTES,
        )


def load(path: Path) -> Graph:
    """Load the graph in `path`, with its external data memory-mapped.

    Raises:
        GraphError: the file is missing, truncated, or not ONNX; or its external data is missing or outside its folder.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        _refuse_large(proto, path)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)  # as ir.load does
    except FileNotFoundError:
        raise GraphError(f"there is no file {path}", fix="Check the path.") from None
    except GraphError:
        raise
    except Exception as error:  # noqa: BLE001  protobuf and onnx_ir raise many types that mean the same here
        reason = _root_cause(error)
        raise GraphError(
            f"{path} is not a readable ONNX file: {reason}", fix="Save it again, and check its size."
        ) from None
    if not model.graph.outputs or "" not in model.opset_imports:
        raise GraphError(f"{path} is not a complete ONNX model: it has no outputs or no opset", fix="Save it again.")
    counts = Counter(tensor.name for tensor in proto.graph.initializer)
    if len(counts) < len(proto.graph.initializer):  # onnx_ir would read the last one, ONNX Runtime the first
        name = counts.most_common(1)[0][0]
        raise GraphError(f"{path} has {counts[name]} initializers named {name!r}", fix="Save it with unique names.")
    _check_external_data(model, path)
    _load_node_tensors(model)
    return Graph(model)


def _refuse_large(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph of too many nodes before it is converted. `screening` counts those inside of others too."""
    count = len(proto.graph.node) + sum(len(function.node) for function in proto.functions)
    if count > MAX_NODES.value:
        raise GraphError(f"{path} has {count:,} nodes, more than {MAX_NODES.value:,}", fix=MAX_NODES.fix)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error: onnx_ir wraps it once for each graph and node around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_external_data(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _external_tensors(model):
        file = Path(tensor.path).resolve()
        if not file.is_relative_to(folder):
            raise GraphError(
                f"{path}: the data of {tensor.name!r} lies outside the folder of the model",
                fix="Save the model again, with its data beside it.",
            )
        if not file.is_file():
            raise GraphError(f"{path}: its data file {tensor.location} is missing", fix=f"Copy it into {folder}.")
        if (tensor.offset or 0) + (tensor.length or tensor.nbytes) > file.stat().st_size:
            raise GraphError(f"{path}: its data file {tensor.location} is truncated", fix="Copy or save it again.")


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors that are stored in files: initializers and node attributes of all graphs and functions."""
    graphs = [*model.graphs(), *model.functions.values()]
    values = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    attributes = [a for graph in graphs for node in graph for a in node.attributes.values() if a.value is not None]
    in_nodes = [t for a in attributes if a.type == ir.AttributeType.TENSOR for t in [a.as_tensor()]]
    in_nodes += [t for a in attributes if a.type == ir.AttributeType.TENSORS for t in a.as_tensors()]
    yield from (t for t in [*values, *in_nodes] if isinstance(t, ir.ExternalTensor))


def _load_node_tensors(model: ir.Model) -> None:
    """Load tensors of node attributes from data files: saving moves the data of initializers only."""
    for graph in [*model.graphs(), *model.functions.values()]:
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    tensor = attribute.as_tensor()
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(np.array(tensor.numpy()), name=tensor.name))


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind a value (initializer or Constant node), or None."""
    if value is None:
        return None
    return ir.convenience.get_const_tensor(value)


def array(value: ir.Value | None) -> npt.NDArray[Any]:
    """Return the numbers behind a value that must be constant.

    Raises:
        GraphError: it is not constant.
    """
    tensor = constant(value)
    if tensor is None:
        raise GraphError(f"{value.name if value else 'an input'} is not a constant", fix="Fold constants first.")
    return np.asarray(tensor.numpy())


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the operator requires.

    Raises:
        GraphError: the node does not have it. The ONNX checker would refuse such a node.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise GraphError(f"node {node.name} ({node.op_type}) has no input {index}", fix="Save the model again.")
    return value


def scalar(value: ir.Value | None) -> float | None:
    """Return the number behind a value if it is a constant with one element."""
    tensor = constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that computes `value`, if its type is one of `op_types` (any type if none is given)."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def only_consumer(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the only node that reads `value`, if its type is one of `op_types` (any type if none is given).

    Return None if there are other readers, if `value` is a graph output, or if the reader is in a branch of an If: what
    runs only sometimes cannot be replaced together with what always runs.
    """
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    if node.graph is not value.graph:
        return None
    return node if not op_types or node.op_type in op_types else None


def bias_behind(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the `Add` that is the only reader of `product`, and the constant vector that it adds, or None.

    The vector has a number for each channel of the product. One number for all of them is no bias.
    """
    output = product.outputs[0]
    channels = (dims(output) or (None,))[-1:]
    add = only_consumer(output, "Add")
    bias = None if add is None else next((v for v in add.inputs if v is not output), None)
    tensor = constant(bias)
    if add is None or bias is None or tensor is None or tuple(tensor.shape) != channels:
        return None
    return add, bias


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the shape, with None for each size that varies; None if even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)
