"""Where a model narrows to one tensor, which is where its blocks end, and what stands between two such places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile, zip_longest
from typing import Literal

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, only_consumer
from vitdeploy.graph.recognize import linears_above
from vitdeploy.graph.structure import Linear, Structure

Kind = Literal["norm", "linear", "values", "attention", "sum", "end"]
"""values: a linear that makes an attention's values; sum: of a residual; end: where the part ends, if nothing else."""

_IN_BLOCKS = ("qkv", "proj", "fc1", "fc2")
_MOVING = ("Reshape", "Transpose")
_NO_DATA = {"Shape", "Size"}
"""What they give depends on an image's size, not on the image."""


@dataclass(frozen=True)
class Spot:
    """A tensor that says how far things are.

    Attributes:
        tensor: its name.
        layer: what computes it, in the model's words.
        kind: what that is.
        reads: the nearest spots above it by tensor, the start of its part among them.
    """

    tensor: str
    layer: str
    kind: Kind
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A stretch of a model from one tensor that everything passes through to the next.

    Attributes:
        name: `stem`, the block's module path, that of what merges patches between two stages, or `head`.
        block: its number; None of what is no block.
        start, end: names of tensors.
        spots: in the order they are computed; the end is the last.
    """

    name: str
    block: int | None
    start: str
    end: str
    spots: tuple[Spot, ...]


def parts(graph: Graph, structure: Structure) -> list[Part]:
    """Stem, blocks, what merges between them, and head of a raised graph, in order; one part without an attention.

    A block ends at the first tensor behind its linears through which all goes that the next block's attention, or the
    model's output, is computed from: the sum of the residual stream. It is found by what reads what, so that models
    with norms before, behind or between, parallel branches, and merging between stages read alike. A block whose end
    cannot be found (several things leave it) is told together with the next.
    """
    return _Flow(graph, structure).parts()


class _Flow:
    """What computes what in one graph, of that which depends on the image."""

    def __init__(self, graph: Graph, structure: Structure) -> None:
        self._structure = structure
        self._main = graph.model.graph
        self._nodes = list(graph.nodes)
        self._place = {node: number for number, node in enumerate(self._nodes)}
        self._named = {node.name: node for node in self._nodes}
        depends: set[ir.Value] = set(self._main.inputs)
        for node in self._nodes:
            if node.op_type not in _NO_DATA and any(v in depends for v in node.inputs if v is not None):
                depends.update(node.outputs)
        self._depends = depends

    def parts(self) -> list[Part]:
        outputs = [v for v in self._main.outputs if v in self._depends]
        found: list[Part] = []
        at = self._main.inputs[0]
        for block, (start, end) in self._blocks().items():
            if start is not None and start is not at:
                merging = self._between(at, start)
                if merging or not found:  # nothing but a norm between two blocks is told with the second
                    found.append(self._part((self._path(merging) or "merge") if found else "stem", None, at, [start]))
                    at = start
            if end is not at:
                found.append(self._part(self._path(self._products(block)) or f"block {block}", block, at, [end]))
                at = end
        if at not in outputs:
            found.append(self._part("head" if found else "model", None, at, outputs))
        return found

    def _blocks(self) -> dict[int, tuple[ir.Value | None, ir.Value]]:
        """Where each block starts, if that can be told, and where it ends."""
        blocks = sorted({site.block for site in self._structure.attention})
        found: dict[int, tuple[ir.Value | None, ir.Value]] = {}
        for block, following in zip_longest(blocks, blocks[1:]):
            places = [self._place[node] for node in self._products(block)]
            for sinks in self._sinks(following) if places else ():
                cuts = self._cuts(sinks)
                start = next((v for place, v in reversed(cuts) if place < min(places)), None)
                end = next((v for place, v in cuts if place > max(places)), None)
                if end is not None:
                    found[block] = start, end
                    break
        return found

    def _between(self, start: ir.Value, end: ir.Value) -> list[ir.Node]:
        """The linears between two tensors: those that merge patches from one stage to the next."""
        return [node for node in self._above([end], stop={start}) if node.name in self._linears]

    def _sinks(self, block: int | None) -> Iterator[list[ir.Value]]:
        """What comes of a block before this one: the inputs of its attention; or all outputs, or else one of them."""
        if block is not None:
            site = next(site for site in self._structure.attention if site.block == block)
            node = self._named[site.nodes[0]]
            yield [v for v in node.inputs if v is not None and v in self._depends]
            return
        outputs = [v for v in self._main.outputs if v in self._depends]
        yield outputs
        yield from ([output] for output in outputs)

    def _cuts(self, sinks: Iterable[ir.Value]) -> list[tuple[int, ir.Value]]:
        """The tensors that everything passes through on its way to `sinks`, with the places of their nodes, in order.

        Going through the nodes in order, it is whenever only one tensor waits to be read.
        """
        sinks = list(sinks)
        needed = self._above(sinks)
        waiting = Counter(v for node in needed for v in set(node.inputs) if v is not None and v in self._depends)
        waiting.update(sinks)
        alive = {v for v in self._main.inputs if waiting[v]}
        found = []
        for node in sorted(needed, key=self._place.__getitem__):
            for value in {v for v in node.inputs if v is not None and v in self._depends}:
                waiting[value] -= 1
                if not waiting[value]:
                    alive.discard(value)
            alive.update(v for v in node.outputs if waiting[v])
            if len(alive) == 1 and next(iter(alive)) in node.outputs:
                found.append((self._place[node], next(iter(alive))))
        return found

    def _above(self, values: Iterable[ir.Value], stop: Collection[ir.Value] = ()) -> set[ir.Node]:
        """The nodes that `values` are computed by, up to those that make `stop`; of what depends on the image."""
        found: set[ir.Node] = set()
        pending = [v for v in values if v not in stop]
        while pending:
            node = pending.pop().producer()
            if node is not None and node not in found and any(v in self._depends for v in node.outputs):
                found.add(node)
                pending += [v for v in node.inputs if v is not None and v in self._depends and v not in stop]
        return found

    def _products(self, block: int) -> list[ir.Node]:
        return [
            self._named[linear.nodes[0]]
            for linear in self._structure.linears
            if linear.block == block and linear.role in _IN_BLOCKS
        ]

    def _path(self, products: Iterable[ir.Node]) -> str:
        """The module that these linears are in."""
        paths = [self._linears[node.name or ""].name.split(".") for node in products]
        same = list(takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))
        return ".".join(level[0] for level in (same[:-1] if len(paths) == 1 else same))

    def _part(self, name: str, block: int | None, start: ir.Value, ends: list[ir.Value]) -> Part:
        inside = sorted(self._above(ends, stop={start}), key=self._place.__getitem__)
        marks = dict(self._marks(inside))
        for end in ends:
            marks.setdefault(end, (name, "end"))
        marks[ends[0]] = marks.pop(ends[0])  # a part is named and judged by its end, which stands last
        stops = {start, *marks}
        spots = tuple(
            Spot(value.name or "", layer, kind, self._nearest(value, stops)) for value, (layer, kind) in marks.items()
        )
        return Part(name, block, start.name or "", ends[0].name or "", spots)

    def _nearest(self, value: ir.Value, stops: Collection[ir.Value]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        seen: set[ir.Value] = set()
        node = value.producer()
        pending = list(node.inputs) if node is not None else []
        while pending:
            read = pending.pop()
            if read is None or read in seen or read not in self._depends:
                continue
            seen.add(read)
            if read in stops:
                found[read.name or ""] = None
            elif (above := read.producer()) is not None:
                pending += above.inputs
        return tuple(found)

    def _marks(self, nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Value, tuple[str, Kind]]]:
        """The tensors to look at, each with what computes it."""
        sums: Counter[str] = Counter()
        for node in nodes:
            name, output = node.name or "", node.outputs[0]
            if name in self._linears:
                linear = self._linears[name]
                yield _behind_bias(output), (linear.name, "values" if node in self._make_values else "linear")
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
    def _make_values(self) -> set[ir.Node]:
        cores = [self._named[name] for name in self._sites]
        return {node for core in cores for node in linears_above([core.inputs[2]])}


def _behind_bias(output: ir.Value) -> ir.Value:
    add = only_consumer(output, "Add")
    if add is not None and any(constant(v) is not None for v in add.inputs):
        return add.outputs[0]
    return output


def _behind_moves(output: ir.Value) -> ir.Value:
    """Where the heads are together again: lowering may move them in another way, or not at all."""
    while (node := only_consumer(output, *_MOVING)) is not None:
        output = node.outputs[0]
    return output
