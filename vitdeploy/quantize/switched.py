"""One graph that gives a model's outputs with any choice of its linears quantized, without building another."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, constant, only_consumer, operand
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Linear
from vitdeploy.session import Array, Closing

_FLAGS = "vitdeploy/quantized"
_MEASURED = "vitdeploy/measured"
_NUMBERS = 3  # measured of each linear: energy of its noise, energy of its output, how many numbers it gives


@dataclass(frozen=True)
class Own:
    """What a linear that was on did itself, all before it being the same: energies of its error and of its output.

    `numbers` is how many it gives, over the whole batch.
    """

    noise: float
    signal: float
    numbers: int


class Switched(Closing):
    """A float32 graph in ONNX Runtime with a switch for each of `linears`.

        x ─ MatMul(W) ─ Add b ─ y   ─▶   x ─ If(flag) ┬ Q ─ DQ ─ MatMul(W int8 ─ DQ) ─ Add b' ┬ y
                                                      └ MatMul(W) ─ Add b ────────────────────┘

    Only what is on costs more than it does in float32. Weights are kept twice: in float32 and as they are quantized.

    Args:
        graph: left as it is. Its first input is fed.
        quantized: the same graph with (at least) these linears quantized, whoever wrote that: what it computes between
            a linear's input and its output after the bias, both found by their names, is what a switch turns on.
        linears: with one MatMul each.

    Raises:
        GraphError: a linear is not in both graphs.
    """

    def __init__(self, graph: Graph, quantized: Graph, linears: Sequence[Linear]) -> None:
        self._names = [linear.name for linear in linears]
        probe = Graph(graph.model.clone())
        self._feed = probe.model.graph.inputs[0].name or ""
        _add_switches(probe, quantized, linears)
        with tempfile.TemporaryDirectory(prefix="vitdeploy-switched-") as folder:
            path = Path(folder) / "switched.onnx"
            probe.save(path)
            self._session = OnnxSession(path, lean=True)  # optimised, it would keep dequantized weights as well

    def run(self, batch: Array, on: Collection[str] = ()) -> tuple[dict[str, Array], dict[str, Own]]:
        """The model's outputs with the linears called `on` quantized, and what each of these did itself."""
        flags = np.array([name in on for name in self._names])
        outputs = self._session.run({self._feed: batch, _FLAGS: flags})
        measured = outputs.pop(_MEASURED).reshape(-1, _NUMBERS)
        own = {
            name: Own(float(noise), float(signal), round(float(count)))
            for name, flag, (noise, signal, count) in zip(self._names, flags, measured, strict=True)
            if flag
        }
        return outputs, own

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def _add_switches(graph: Graph, quantized: Graph, linears: Sequence[Linear]) -> None:
    main = graph.model.graph
    flags = ir.Value(name=_FLAGS, shape=ir.Shape([len(linears)]), type=ir.TensorType(ir.DataType.BOOL))
    main.inputs.append(flags)
    graph.model.opset_imports.update({k: v for k, v in quantized.model.opset_imports.items() if k != ""})
    nodes = {node.name: node for node in graph.nodes}
    written = {value.name: value for node in quantized.nodes for value in node.outputs}
    measured = []
    for number, linear in enumerate(linears):
        product = nodes.get(linear.nodes[0])
        if product is None or product.op_type != "MatMul":
            raise GraphError(f"{linear.name} is no product in the graph", fix="Report it with the model's name.")
        old = _with_bias(product)
        output = old[-1].outputs[0]
        if output.name not in written:
            raise GraphError(f"{linear.name} is not in the quantized graph", fix="Report it with the model's name.")
        new = _between(operand(product, 0), written[output.name])
        measured.append(_switch(graph, number, flags, old, new))
    result = ir.Value(name=_MEASURED, shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.FLOAT))
    main.append(ir.Node("", "Concat", measured, {"axis": ir.AttrInt64("axis", 0)}, outputs=[result], name=_MEASURED))
    main.outputs.append(result)


def _with_bias(product: ir.Node) -> list[ir.Node]:
    """The nodes of a linear: its product, and the bias that follows it."""
    add = only_consumer(product.outputs[0], "Add")
    biases = [constant(v) for v in add.inputs if v is not product.outputs[0]] if add is not None else []
    if add is not None and len(biases) == 1 and biases[0] is not None and len(biases[0].shape) == 1:
        return [product, add]
    return [product]


def _between(start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """The nodes that make `end` out of the value that is called like `start`, in order."""
    found: dict[ir.Node, None] = {}

    def visit(value: ir.Value | None) -> None:
        node = value.producer() if value is not None and value.name != start.name else None
        if node is None or node in found:
            return
        for used in node.inputs:
            visit(used)
        found[node] = None

    visit(end)
    return list(found)


def _switch(graph: Graph, number: int, flags: ir.Value, old: list[ir.Node], new: list[ir.Node]) -> ir.Value:
    """Put an If in the place of `old`; the value of what it measures."""
    name, x, output = old[0].name or "", operand(old[0], 0), old[-1].outputs[0]
    tape = ir.tape.Tape()
    index = tape.initializer(ir.tensor(np.array(number), name=f"{name}/switch_number"))
    flag = tape.op("Gather", [flags, index], name=f"{name}/switch_flag")
    branches = {
        "then_branch": ir.AttrGraph("then_branch", _quantized_branch(graph, name, x, old, new)),
        "else_branch": ir.AttrGraph("else_branch", _float_branch(name, x, old)),
    }
    result = ir.Value(name=f"{name}/switched")
    measured = ir.Value(name=f"{name}/measured", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([_NUMBERS]))
    switch = tape.op_multi_out("If", [flag], branches, outputs=[result, measured], name=f"{name}/switch")
    graph.replace(old, tape, output, switch[0])
    return measured


def _float_branch(name: str, x: ir.Value, old: list[ir.Node]) -> ir.Graph:
    nodes, result = _copied(old, {x.name: x}, f"{name}/off")
    nothing = ir.tensor(np.zeros(_NUMBERS, np.float32), name=f"{name}/off/nothing")
    zeros = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", nothing)}, name=f"{name}/off/nothing")
    return _branch(f"{name}/off", [*nodes, zeros], result, zeros.outputs[0])


def _quantized_branch(graph: Graph, name: str, x: ir.Value, old: list[ir.Node], new: list[ir.Node]) -> ir.Graph:
    """Both ways to compute the linear, and what they differ by."""
    known = {x.name: x}
    for node in new:
        for value in node.inputs:
            if value is not None and value.name not in known and (tensor := value.const_value) is not None:
                known[value.name] = _initializer(graph, value.name or "", tensor)
    on, result = _copied(new, known, f"{name}/on")
    off, exact = _copied(old, {x.name: x}, f"{name}/exact")
    tape = ir.tape.Tape()
    one = _initializer(graph, "vitdeploy/one", ir.tensor(np.array([1]), name="vitdeploy/one"))
    noise = tape.op("ReduceSumSquare", [tape.op("Sub", [result, exact])], {"keepdims": 0})
    signal = tape.op("ReduceSumSquare", [exact], {"keepdims": 0})
    count = tape.op("Cast", [tape.op("Size", [exact])], {"to": ir.DataType.FLOAT.value})
    measured = tape.op("Concat", [tape.op("Reshape", [v, one]) for v in (noise, signal, count)], {"axis": 0})
    for place, node in enumerate(tape.nodes):
        node.name = f"{name}/measure/{place}"
    return _branch(f"{name}/on", [*on, *off, *tape.nodes], result, measured)


def _initializer(graph: Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The graph's constant of that name; a new one if it has none."""
    known = graph.model.graph.initializers.get(name)
    if known is not None:
        return known
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.model.graph.register_initializer(value)
    return value


def _copied(
    nodes: Iterable[ir.Node], known: Mapping[str | None, ir.Value], prefix: str
) -> tuple[list[ir.Node], ir.Value]:
    """The nodes once more, reading what is `known` by its name from outside, and the last one's result."""
    made: dict[str | None, ir.Value] = dict(known)
    copies = []
    for number, node in enumerate(nodes):
        inputs = [made.get(v.name, v) if v is not None else None for v in node.inputs]
        copies.append(
            ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs),
                name=f"{prefix}/{number}",
            )
        )  # fmt: skip
        made.update({old.name: new for old, new in zip(node.outputs, copies[-1].outputs, strict=True)})
    return copies, copies[-1].outputs[0]


def _branch(name: str, nodes: list[ir.Node], *outputs: ir.Value) -> ir.Graph:
    for node in nodes:
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}:{number}"
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph([], outputs, nodes=nodes, name=name)
