"""Faults of a compiler, planted by version and pattern: the engine computes wrong numbers, and nothing says so.

A fault looks for its pattern in the graph that is built, and changes what is computed there. A graph without the
pattern is compiled rightly; that is how a safe form helps. Each is like one that others report of real versions, see
`vitdeploy.targets._tensorrt.known_faults`.

    wrong_rotation     a rotated half has the wrong sign       Neg ─ … ─ Concat
    mixed_heads        fused q/k/v that mixes heads            three MatMuls of one shape that read one value
    packed_heads       the same of a packed product            MatMul with a weight K × 3K
    overflow           scores overflow in FP16                 MatMul of two activations in FP16 ─ … ─ Softmax
    block_off          one block off by 2 %                    the last residual sum in `within`
    shifted_memory     a detector's decoder                    attention whose q and k come from different values
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from tests.fakes.rewriting import Rewriting

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")


@dataclass(frozen=True)
class Fault:
    """A fault, and where it strikes.

    Attributes:
        name: the key in `PLANTS`.
        releases: the versions that have it; empty: all.
        within: only nodes of this module, such as `blocks.2`.
        types: the types that the faulty product must compute in, as ONNX numbers them.
        least_level: only builds of at least this optimization level have it.
        size: how wrong it is, in the fault's own terms.
        fragile: True if the fault goes away once a value of its pattern is read from outside.
    """

    name: str
    releases: frozenset[str] = frozenset()
    within: str = ""
    types: frozenset[int] = frozenset({HALF, FLOAT})
    least_level: int = 0
    size: float | None = None
    fragile: bool = False

    def plant(self, model: Any, marked: Collection[str] = ()) -> tuple[Any, list[str]]:
        """Return the model with the fault, and the names of the nodes that it struck."""
        rewriting = Rewriting(model)
        struck = PLANTS[self.name](rewriting, self, frozenset(marked) if self.fragile else frozenset())
        return rewriting.model, struck

    def as_facts(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "name": self.name, "releases": sorted(self.releases), "within": self.within, "types": sorted(self.types),
            "least_level": self.least_level, "size": self.size, "fragile": self.fragile,
        }  # fmt: skip


def fault(name: str, **facts: Any) -> Fault:
    """Return a fault by name, with facts as `Fault.as_facts` gives them."""
    assert name in PLANTS, name
    sets = {key: frozenset(facts[key]) for key in ("releases", "types") if key in facts}
    return replace(Fault(name), **(facts | sets))


def miscompile(
    model: Any, faults: Iterable[Fault], release: str, level: int, marked: Collection[str]
) -> tuple[Any, list[str]]:
    """Plant the faults of a version and level. Return the model and the nodes that were struck."""
    struck: list[str] = []
    for each in faults:
        if (not each.releases or release in each.releases) and level >= each.least_level:
            model, names = each.plant(model, marked)
            struck += names
    return model, struck


def _wrong_rotation(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    struck = []
    for node in graph.nodes("Neg", it.within):
        value, pattern = node.output[0], {node.output[0]}
        while len(readers := graph.readers.get(value, ())) == 1 and readers[0].op_type in _MOVES:
            value = readers[0].output[0]
            pattern.add(value)
        joins = any(reader.op_type == "Concat" for reader in graph.readers.get(value, ()))
        if joins and graph.type_of(node.input[0]) in it.types and not pattern & set(marked):
            node.op_type = "Identity"
            struck.append(node.name)
    return struck


def _mixed_heads(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    by_value: dict[tuple[str, tuple[int, ...]], list[Any]] = {}
    for node in graph.nodes("MatMul", it.within):
        if graph.is_constant(node.input[1]) and graph.type_of(node.output[0]) in it.types:
            key = graph.origin(node.input[0]), graph.shape_of_constant(node.input[1])
            by_value.setdefault(key, []).append(node)
    struck = []
    for (_, shape), nodes in by_value.items():
        pattern = {name for node in nodes for name in (node.output[0], *_behind_bias(graph, node))}
        if len(nodes) >= 3 and not pattern & set(marked):
            _swap_halves(graph, nodes[2], np.roll(np.arange(shape[1]), shape[1] // 2))
            struck.append(nodes[2].name)
    return struck


def _packed_heads(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    struck = []
    for node in graph.nodes("MatMul", it.within):
        if not graph.is_constant(node.input[1]) or graph.type_of(node.output[0]) not in it.types:
            continue
        shape = graph.shape_of_constant(node.input[1])
        if len(shape) == 2 and shape[1] == 3 * shape[0] and node.output[0] not in marked:
            order = np.arange(shape[1])
            order[2 * shape[0] :] = np.roll(order[2 * shape[0] :], shape[0] // 2)
            _swap_halves(graph, node, order)
            struck.append(node.name)
    return struck


def _swap_halves(graph: Rewriting, node: Any, order: Any) -> None:
    graph.behind(node, ("Gather", [graph.constant(order.astype(np.int64))], {"axis": -1}))


def _overflow(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    """Scores overflow at `size`, and stay there, as a kernel that saturates leaves them."""
    struck, limit = [], it.size or 1.0
    for node in _scores(graph, it.within):
        if graph.type_of(node.output[0]) == HALF and HALF in it.types:
            graph.behind(node, ("Clip", [graph.constant(np.float16(sign * limit)) for sign in (-1, 1)], {}))
            struck.append(node.name)
    return struck


def _block_off(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    assert it.within, "which block?"
    sums = [
        node
        for node in graph.nodes("Add", it.within)
        if not any(graph.is_constant(name) for name in node.input) and graph.type_of(node.output[0]) in it.types
    ]
    if not sums or sums[-1].output[0] in marked:
        return []
    size, width = 0.02 if it.size is None else it.size, graph.width_of(sums[-1].output[0])
    signs = np.where(np.arange(width) % 2, 1, -1)
    kind = np.float16 if graph.type_of(sums[-1].output[0]) == HALF else np.float32
    graph.behind(sums[-1], ("Mul", [graph.constant((1 + size * signs).astype(kind))], {}))
    return [sums[-1].name]


def _shifted_memory(graph: Rewriting, it: Fault, marked: Collection[str]) -> list[str]:
    struck = []
    for node in _scores(graph, it.within):
        sources = [{graph.origin(n.input[0]) for n in graph.above(name, "MatMul")} for name in node.input]
        readers = [r for softmax in _softmaxes(graph, node) for r in graph.readers.get(softmax.output[0], ())]
        products = [r for r in readers if r.op_type == "MatMul"]
        if not sources[0] & sources[1] and products and graph.type_of(node.output[0]) in it.types:
            place, value = [*graph.graph.node].index(products[0]), products[0].input[1]
            zero, one, end, axis = (graph.constant(np.array([n], np.int64)) for n in (0, 1, np.iinfo(np.int64).max, -2))
            first = graph.add_node(place, "Slice", [value, zero, one, axis])
            rest = graph.add_node(place + 1, "Slice", [value, one, end, axis])
            products[0].input[1] = graph.add_node(place + 2, "Concat", [rest, first], axis=-2)
            graph.index()
            struck.append(products[0].name)
    return struck


def _scores(graph: Rewriting, within: str) -> Iterable[Any]:
    """Products of two activations that a softmax reads, perhaps through a scale, a mask or a cast."""
    for node in graph.nodes("MatMul", within):
        if not any(graph.is_constant(name) for name in node.input) and _softmaxes(graph, node):
            yield node


def _softmaxes(graph: Rewriting, node: Any) -> list[Any]:
    pending, reached = [*node.output], []
    while pending:
        for reader in graph.readers.get(pending.pop(), ()):
            if reader.op_type == "Softmax":
                reached.append(reader)
            elif reader.op_type in (
                "Mul",
                "Div",
                "Add",
                "Cast",
                "Reshape",
                "Where",
                "QuantizeLinear",
                "DequantizeLinear",
            ):
                pending += reader.output
    return reached


def _behind_bias(graph: Rewriting, node: Any) -> list[str]:
    return [r.output[0] for r in graph.readers.get(node.output[0], ()) if r.op_type == "Add"]


Plant = Callable[[Rewriting, Fault, Collection[str]], list[str]]
PLANTS: dict[str, Plant] = {
    "wrong_rotation": _wrong_rotation, "mixed_heads": _mixed_heads, "packed_heads": _packed_heads,
    "overflow": _overflow, "block_off": _block_off, "shifted_memory": _shifted_memory,
}  # fmt: skip
