"""Write rotary positions as products with constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.graph.structure import CORE
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._rotation import Rotation, RotationTables, find_rotation, measure_rotation
from vitdeploy.session import Array

_OPERANDS = ("q", "k")


class BakePositions(Pass):
    """Replace each rotation of queries and keys by two products with constant tables and one with a constant matrix.

        x ─ Slice, Neg, Slice, Concat ─ Mul sin ─ Add        x ─ MatMul P ─ Mul S ─ Add
          └──────── Mul cos ───────────────────┘       ─▶      └─ Mul C ───────────┘

    P has one 1 in each column: it brings the channel of the same pair to each channel. C and S are cosines and sines by
    position and channel, with the signs of the rotation; a token that is not rotated has 1 and 0. The products are
    those of the rotation before, so no number changes. C, S and P are read off by running the rotation on unit vectors,
    whatever operators it consists of. Equal tables of several blocks are stored once.

    TensorRT-RTX 1.7 keeps 12 of 12 attentions of EVA02 fused, with one product more for q and for k, which stands
    between the kernels that it had merged. One matrix for each position would be fused too, but multiplies in float32
    and adds 5 kernels per operand; picking channels with Gather gives one kernel again, with all moves inside.
    Refused: positions that depend on the image or on a size that varies.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Rewrite the rotations of every lowered attention; `fired` counts queries and keys."""
        refused: dict[str, str] = {}
        writer = _Writer(graph)
        fired = 0
        for product in [node for node in graph.nodes if (node.name or "").endswith(f"{CORE}/qk")]:
            site = (product.name or "").removesuffix(f"{CORE}/qk")
            for index, label in enumerate(_OPERANDS):
                rotation = find_rotation(_before_pair(operand(product, index)))
                if rotation is None:
                    continue
                tables = measure_rotation(graph, rotation)
                if isinstance(tables, str):
                    refused[f"{site}.{label}"] = tables
                    continue
                writer.write(rotation, tables, f"{site}/rotate_{label}")
                fired += 1
        return PassResult(fired, refused)


def _before_pair(value: ir.Value) -> ir.Value:
    """Return the value that a Q/DQ pair rounds, or `value` itself."""
    while (node := producer(value, "DequantizeLinear", "QuantizeLinear")) is not None:
        value = operand(node, 0)
    return value


class _Writer:
    """Write rotations as products, with equal tables stored once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._stored: dict[tuple[bytes, tuple[int, ...]], ir.Value] = {}

    def write(self, rotation: Rotation, tables: RotationTables, name: str) -> None:
        """Write the products of one rotation in its place."""
        x, last, tape = rotation.start, rotation.end.producer(), ir.tape.Tape()
        assert x.dtype is not None and last is not None
        dtype, channels = x.dtype.numpy(), np.arange(len(tables.partners))
        swap = np.zeros((len(channels), len(channels)), dtype)
        swap[tables.partners, channels] = tables.partners != channels
        constants = {"cosines": tables.cosines.astype(dtype), "sines": tables.sines.astype(dtype), "swap": swap}
        cosines, sines, swaps = (self._store(numbers, f"{name}/{label}") for label, numbers in constants.items())
        straight = tape.op("Mul", [x, cosines], name=f"{name}/cosines_product")
        partners = tape.op("MatMul", [x, swaps], name=f"{name}/swap_product")
        turned = tape.op("Mul", [partners, sines], name=f"{name}/sines_product")
        result = tape.op("Add", [straight, turned], name=f"{name}/sum")
        for node in tape.nodes:
            node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
        self._graph.replace([last], tape, rotation.end, result)

    def _store(self, numbers: Array, name: str) -> ir.Value:
        key = (numbers.tobytes(), numbers.shape)
        if key not in self._stored:
            self._stored[key] = self._graph.initializer(numbers, name)
        return self._stored[key]
