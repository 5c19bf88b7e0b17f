"""Split a model into stem, blocks and head, at the tensors that everything passes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile, zip_longest
from typing import Literal

import onnx_ir as ir

from vitdeploy.graph.flow import image_values, nodes_above
from vitdeploy.graph.model import Graph, constant, only_consumer
from vitdeploy.graph.recognize import linears_above
from vitdeploy.graph.structure import BESIDE, Linear, Structure

SpotKind = Literal["norm", "linear", "values", "attention", "sum", "end"]
"""values: a linear that computes the values of an attention. sum: of a residual. end: the end of a part that is none of
the others."""

_IN_BLOCKS = ("qkv", "proj", "fc1", "fc2")
_MOVING = ("Reshape", "Transpose")


@dataclass(frozen=True)
class Spot:
    """A tensor at which two graphs of the same model can be compared.

    Attributes:
        tensor: its name.
        layer: the module that computes it, by the name in the model.
        kind: the kind of that layer.
        reads: the tensors of the nearest spots above it, or the start of its part.
    """

    tensor: str
    layer: str
    kind: SpotKind
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A stretch of a model between two tensors that everything passes through.

    Attributes:
        name: `stem`, `head`, or the module path of a block or of the layers that merge patches between two stages.
        block: the number of the block; None if the part is not a block.
        start, end: names of tensors.
        spots: in the order in which they are computed; the last one is the end.
    """

    name: str
    block: int | None
    start: str
    end: str
    spots: tuple[Spot, ...]


def find_parts(graph: Graph, structure: Structure) -> list[Part]:
    """Return the parts of a raised graph in order: stem, blocks, layers that merge patches, and head.

    A block ends at the first tensor behind its linears through which everything passes on its way to the next block's
    attention, or to the model's output. That is the sum of the residual stream. Only the edges of the graph decide
    this, so it works for norms before, behind or between the layers, for parallel branches, and for models that merge
    patches between stages. A block without such an end, because several tensors leave it, is one part with the next
    block. A model without attention is a single part.
    """
    return _Flow(graph, structure).find_parts()


@dataclass(frozen=True)
class BlockNodes:
    """The nodes of one block.

    Attributes:
        number: the number of the block.
        name: its module path.
        nodes: the names of its nodes.
    """

    number: int
    name: str
    nodes: frozenset[str]


def find_blocks(graph: Graph, structure: Structure) -> list[BlockNodes]:
    """Return the blocks of a raised or lowered graph that have an end of their own, in order; see `find_parts`."""
    return list(_Flow(graph, structure).find_blocks())


class _Flow:
    """The nodes and values of one graph that depend on the image, and how they read each other."""

    def __init__(self, graph: Graph, structure: Structure) -> None:
        self._structure = structure
        self._main = graph.model.graph
        self._nodes = list(graph.nodes)
        self._position = {node: number for number, node in enumerate(self._nodes)}
        self._by_name = {node.name: node for node in self._nodes}
        self._depends = {v for v in image_values(graph) if not _is_beside_tokens(v)}

    def find_parts(self) -> list[Part]:
        outputs = [v for v in self._main.outputs if v in self._depends]
        parts: list[Part] = []
        part_start = self._main.inputs[0]
        for block, (start, end) in self._find_blocks().items():
            if start is not None and start is not part_start:
                merging = self._linears_between(part_start, start)
                if merging or not parts:  # a norm alone between two blocks belongs to the second
                    name = (self._module_path(merging) or "merge") if parts else "stem"
                    parts.append(self._make_part(name, None, part_start, [start]))
                    part_start = start
            if end is not part_start:
                name = self._module_path(self._products_of(block)) or f"block {block}"
                parts.append(self._make_part(name, block, part_start, [end]))
                part_start = end
        if part_start not in outputs:
            parts.append(self._make_part("head" if parts else "model", None, part_start, outputs))
        return parts

    def find_blocks(self) -> Iterator[BlockNodes]:
        ends: set[ir.Value] = set()  # of all blocks before: a head can read several, as that of a DPT does
        for number, (start, end) in self._find_blocks().items():
            nodes = self._nodes_above([end], ends if start is None else {start, *ends})
            ends.add(end)
            if start is not None and nodes:
                name = self._module_path(self._products_of(number)) or f"block {number}"
                yield BlockNodes(number, name, frozenset(node.name or "" for node in nodes))

    def _find_blocks(self) -> dict[int, tuple[ir.Value | None, ir.Value]]:
        """Return the start and end of each block that has an end. A start that cannot be found is None."""
        numbers = sorted({site.block for site in self._structure.attention})
        blocks: dict[int, tuple[ir.Value | None, ir.Value]] = {}
        for block, next_block in zip_longest(numbers, numbers[1:]):
            positions = [self._position[node] for node in self._products_of(block)]
            for sinks in self._possible_sinks(next_block) if positions else ():
                cuts = self._find_cuts(sinks)
                start = next((v for position, v in reversed(cuts) if position < min(positions)), None)
                end = next((v for position, v in cuts if position > max(positions)), None)
                if end is not None:
                    blocks[block] = start, end
                    break
        return blocks

    def _linears_between(self, start: ir.Value, end: ir.Value) -> list[ir.Node]:
        """Return the linears between two tensors, such as those that merge patches from one stage to the next."""
        return [node for node in self._nodes_above([end], stop={start}) if node.name in self._linears]

    def _possible_sinks(self, block: int | None) -> Iterator[list[ir.Value]]:
        """Yield the values that the block before `block` computes: the inputs of its attention.

        Without a next block they are all outputs of the model. If these have no common end, each output is tried alone.
        """
        if block is not None:
            site = next(site for site in self._structure.attention if site.block == block)
            nodes = [self._by_name[name] for name in site.nodes if name in self._by_name]  # several after lowering
            reads = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and v in self._depends)
            yield [v for v in reads if v.producer() not in nodes]
            return
        outputs = [v for v in self._main.outputs if v in self._depends]
        yield outputs
        yield from ([output] for output in outputs)

    def _find_cuts(self, sinks: Iterable[ir.Value]) -> list[tuple[int, ir.Value]]:
        """Return the tensors that everything passes through on its way to `sinks`, in order, with their positions.

        The nodes are visited in order. After each one, the live values are those that a later node reads. A live value
        that is the only one is a cut.
        """
        sinks = list(sinks)
        needed = self._nodes_above(sinks)
        unread = Counter(v for node in needed for v in set(node.inputs) if v is not None and v in self._depends)
        unread.update(sinks)
        live = {v for v in self._main.inputs if unread[v]}
        cuts = []
        for node in sorted(needed, key=self._position.__getitem__):
            for value in {v for v in node.inputs if v is not None and v in self._depends}:
                unread[value] -= 1
                if not unread[value]:
                    live.discard(value)
            live.update(v for v in node.outputs if unread[v])
            if len(live) == 1 and next(iter(live)) in node.outputs:
                cuts.append((self._position[node], next(iter(live))))
        return cuts

    def _nodes_above(self, values: Iterable[ir.Value], stop: Collection[ir.Value] = ()) -> set[ir.Node]:
        """Return the nodes that `values` are computed from and that depend on the image, up to the values `stop`."""
        return nodes_above(values, self._depends, stop)

    def _products_of(self, block: int) -> list[ir.Node]:
        """Return the MatMul nodes of the linears of a block."""
        return [
            self._by_name[linear.nodes[0]]
            for linear in self._structure.linears
            if linear.block == block and linear.role in _IN_BLOCKS
        ]

    def _module_path(self, products: Iterable[ir.Node]) -> str:
        """Return the path of the innermost module that contains these linears."""
        paths = [self._linears[node.name or ""].name.split(".") for node in products]
        common = list(takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))
        return ".".join(level[0] for level in (common[:-1] if len(paths) == 1 else common))

    def _make_part(self, name: str, block: int | None, start: ir.Value, ends: list[ir.Value]) -> Part:
        nodes = sorted(self._nodes_above(ends, stop={start}), key=self._position.__getitem__)
        layers = dict(self._find_layers(nodes))
        for end in ends:
            layers.setdefault(end, (name, "end"))
        layers[ends[0]] = layers.pop(ends[0])  # moved to the last place: a part is judged by its end
        stops = {start, *layers}
        spots = tuple(
            Spot(value.name or "", layer, kind, self._nearest_above(value, stops))
            for value, (layer, kind) in layers.items()
        )
        return Part(name, block, start.name or "", ends[0].name or "", spots)

    def _nearest_above(self, value: ir.Value, stops: Collection[ir.Value]) -> tuple[str, ...]:
        """Return the names of those `stops` from which `value` is computed without another stop in between."""
        names: dict[str, None] = {}
        visited: set[ir.Value] = set()
        node = value.producer()
        pending = list(node.inputs) if node is not None else []
        while pending:
            read = pending.pop()
            if read is None or read in visited or read not in self._depends:
                continue
            visited.add(read)
            if read in stops:
                names[read.name or ""] = None
            elif (above := read.producer()) is not None:
                pending += above.inputs
        return tuple(names)

    def _find_layers(self, nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Value, tuple[str, SpotKind]]]:
        """Yield the tensors to compare, each with the name and the kind of the layer that computes it."""
        sums: Counter[str] = Counter()
        for node in nodes:
            name, output = node.name or "", node.outputs[0]
            if name in self._linears:
                linear = self._linears[name]
                yield _behind_bias(output), (linear.name, "values" if node in self._value_linears else "linear")
            elif name in self._sites:
                yield _behind_moves(output), (self._sites[name], "attention")
            elif node.op_type == "LayerNormalization":
                yield output, (name.rpartition("/")[0] or name, "norm")
            elif node.op_type == "Add" and all(v is not None and v in self._depends for v in node.inputs):
                module = name.rpartition("/")[0] or name
                sums[module] += 1
                yield output, (f"{module} (sum {sums[module]})", "sum")

    @cached_property
    def _linears(self) -> dict[str, Linear]:
        return {name: linear for linear in self._structure.linears for name in linear.nodes}

    @cached_property
    def _sites(self) -> dict[str, str]:
        return {site.nodes[0]: site.name for site in self._structure.attention if site.refused is None}

    @cached_property
    def _value_linears(self) -> set[ir.Node]:
        cores = [self._by_name[name] for name in self._sites]
        return {node for core in cores for node in linears_above([core.inputs[2]])}


def _is_beside_tokens(value: ir.Value) -> bool:
    """Return whether a value is of merged tokens and goes beside them from block to block: it ends no block."""
    node = value.producer()
    return node is not None and BESIDE in (node.name or "")


def _behind_bias(output: ir.Value) -> ir.Value:
    add = only_consumer(output, "Add")
    if add is not None and any(constant(v) is not None for v in add.inputs):
        return add.outputs[0]
    return output


def _behind_moves(output: ir.Value) -> ir.Value:
    """Return the value behind the operators that merge the heads: lowering may write those in another way."""
    while (node := only_consumer(output, *_MOVING)) is not None:
        output = node.outputs[0]
    return output
