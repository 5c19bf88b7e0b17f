"""One graph in which each linear can be switched between float32 and its quantized form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, bias_behind, operand
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Linear
from vitdeploy.session import Array, Closing, Inputs, as_feeds

_FLAGS = "vitdeploy/quantized"
_MEASURED = "vitdeploy/measured"
_MEASUREMENTS = 3  # of each linear: energy of its error, energy of its output, how many numbers it gives
_FIX = "Report it with the model's name."


@dataclass(frozen=True)
class LinearError:
    """The error of one switched-on linear, with the same input for both forms.

    Attributes:
        noise: energy (sum of squares) of the error.
        signal: energy of the exact output.
        numbers: how many numbers the linear gives, over the whole batch.
    """

    noise: float
    signal: float
    numbers: int


class SwitchedGraph(Closing):
    """A float32 graph in ONNX Runtime with a switch for each of `linears`.

        x ─ MatMul(W) ─ Add b ─ y   ─▶   x ─ If(flag) ┬ Q ─ DQ ─ MatMul(W int8 ─ DQ) ─ Add b' ┬ y
                                                      └ MatMul(W) ─ Add b ────────────────────┘

    Only linears that are switched on take more time than in float32. Weights are kept twice: in float32 and quantized.

    Args:
        graph: not changed. Its first input is fed.
        quantized: the same graph with (at least) these linears quantized, by any writer. A switch turns on whatever it
            computes between a linear's input and its output after the bias. Both values are found by their names.
        linears: with one MatMul each.

    Raises:
        GraphError: a linear is not in both graphs.
    """

    def __init__(self, graph: Graph, quantized: Graph, linears: Sequence[Linear]) -> None:
        self._names = [linear.name for linear in linears]
        probe = Graph(graph.model.clone())
        self._feed = probe.model.graph.inputs[0].name or ""
        _add_switches(probe, quantized, linears)
        with scratch_folder("switched") as folder:
            path = folder / "switched.onnx"
            probe.save(path)
            self._session = OnnxSession(path, lean=True)  # optimised, it would keep dequantized weights as well

    def run(
        self, batch: Inputs, on: Collection[str] = (), others: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Array], dict[str, LinearError]]:
        """Return the model's outputs with the linears called `on` quantized, and the error of each of these.

        `others` has the values of inputs that are not in the batch.
        """
        flags = np.array([name in on for name in self._names])
        outputs = self._session.run({**as_feeds(batch, self._feed), _FLAGS: flags, **(others or {})})
        measured = outputs.pop(_MEASURED).reshape(-1, _MEASUREMENTS)
        errors = {
            name: LinearError(float(noise), float(signal), round(float(count)))
            for name, flag, (noise, signal, count) in zip(self._names, flags, measured, strict=True)
            if flag
        }
        return outputs, errors

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def _add_switches(graph: Graph, quantized: Graph, linears: Sequence[Linear]) -> None:
    main = graph.model.graph
    flags = ir.Value(name=_FLAGS, shape=ir.Shape([len(linears)]), type=ir.TensorType(ir.DataType.BOOL))
    main.inputs.append(flags)
    graph.model.opset_imports.update({k: v for k, v in quantized.model.opset_imports.items() if k != ""})
    nodes = {node.name: node for node in graph.nodes}
    quantized_values = {value.name: value for node in quantized.nodes for value in node.outputs}
    measured = []
    for number, linear in enumerate(linears):
        product = nodes.get(linear.nodes[0])
        if product is None or product.op_type != "MatMul":
            raise GraphError(f"{linear.name} is not a product in the graph", fix=_FIX)
        addition = bias_behind(product)
        old = [product] if addition is None else [product, addition[0]]
        output = old[-1].outputs[0]
        if output.name not in quantized_values:
            raise GraphError(f"{linear.name} is not in the quantized graph", fix=_FIX)
        new = _nodes_between(operand(product, 0), quantized_values[output.name])
        measured.append(_insert_switch(graph, number, flags, old, new))
    result = ir.Value(name=_MEASURED, shape=ir.Shape([None]), type=ir.TensorType(ir.DataType.FLOAT))
    main.append(ir.Node("", "Concat", measured, {"axis": ir.AttrInt64("axis", 0)}, outputs=[result], name=_MEASURED))
    main.outputs.append(result)


def _nodes_between(start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """Return the nodes that compute `end` from the value with the name of `start`, in order."""
    visited: dict[ir.Node, None] = {}

    def visit(value: ir.Value | None) -> None:
        node = value.producer() if value is not None and value.name != start.name else None
        if node is None or node in visited:
            return
        for source in node.inputs:
            visit(source)
        visited[node] = None

    visit(end)
    return list(visited)


def _insert_switch(graph: Graph, number: int, flags: ir.Value, old: list[ir.Node], new: list[ir.Node]) -> ir.Value:
    """Replace `old` by an If that chooses between `old` and `new`; return its measurements."""
    name, x, output = old[0].name or "", operand(old[0], 0), old[-1].outputs[0]
    tape = ir.tape.Tape()
    index = tape.initializer(ir.tensor(np.array(number), name=f"{name}/switch_number"))
    flag = tape.op("Gather", [flags, index], name=f"{name}/switch_flag")
    branches = {
        "then_branch": ir.AttrGraph("then_branch", _make_quantized_branch(graph, name, x, old, new)),
        "else_branch": ir.AttrGraph("else_branch", _make_float_branch(name, x, old)),
    }
    result = ir.Value(name=f"{name}/switched")
    measured = ir.Value(name=f"{name}/measured", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([_MEASUREMENTS]))
    switch = tape.op_multi_out("If", [flag], branches, outputs=[result, measured], name=f"{name}/switch")
    graph.replace(old, tape, output, switch[0])
    return measured


def _make_float_branch(name: str, x: ir.Value, old: list[ir.Node]) -> ir.Graph:
    nodes, result = _copy_nodes(old, {x.name: x}, f"{name}/off")
    nothing = ir.tensor(np.zeros(_MEASUREMENTS, np.float32), name=f"{name}/off/nothing")
    zeros = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", nothing)}, name=f"{name}/off/nothing")
    return _make_branch(f"{name}/off", [*nodes, zeros], result, zeros.outputs[0])


def _make_quantized_branch(graph: Graph, name: str, x: ir.Value, old: list[ir.Node], new: list[ir.Node]) -> ir.Graph:
    """Make a branch that computes the linear in both forms, and their difference."""
    outer = {x.name: x}
    for node in new:
        for value in node.inputs:
            if value is not None and value.name not in outer and (tensor := value.const_value) is not None:
                outer[value.name] = _get_initializer(graph, value.name or "", tensor)
    on, result = _copy_nodes(new, outer, f"{name}/on")
    off, exact = _copy_nodes(old, {x.name: x}, f"{name}/exact")
    tape = ir.tape.Tape()
    one = _get_initializer(graph, "vitdeploy/one", ir.tensor(np.array([1]), name="vitdeploy/one"))
    noise = tape.op("ReduceSumSquare", [tape.op("Sub", [result, exact])], {"keepdims": 0})
    signal = tape.op("ReduceSumSquare", [exact], {"keepdims": 0})
    count = tape.op("Cast", [tape.op("Size", [exact])], {"to": ir.DataType.FLOAT.value})
    measured = tape.op("Concat", [tape.op("Reshape", [v, one]) for v in (noise, signal, count)], {"axis": 0})
    for number, node in enumerate(tape.nodes):
        node.name = f"{name}/measure/{number}"
    return _make_branch(f"{name}/on", [*on, *off, *tape.nodes], result, measured)


def _get_initializer(graph: Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the graph's constant of that name; add it if there is none."""
    existing = graph.model.graph.initializers.get(name)
    if existing is not None:
        return existing
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.model.graph.register_initializer(value)
    return value


def _copy_nodes(
    nodes: Iterable[ir.Node], outer: Mapping[str | None, ir.Value], prefix: str
) -> tuple[list[ir.Node], ir.Value]:
    """Copy nodes that read the values `outer` from outside; return also the last one's output."""
    values: dict[str | None, ir.Value] = dict(outer)
    copies = []
    for number, node in enumerate(nodes):
        inputs = [values.get(v.name, v) if v is not None else None for v in node.inputs]
        copies.append(
            ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs),
                name=f"{prefix}/{number}",
            )
        )  # fmt: skip
        values.update({old.name: new for old, new in zip(node.outputs, copies[-1].outputs, strict=True)})
    return copies, copies[-1].outputs[0]


def _make_branch(name: str, nodes: list[ir.Node], *outputs: ir.Value) -> ir.Graph:
    for node in nodes:
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}:{number}"
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph([], outputs, nodes=nodes, name=name)
