"""A healthy engine is not exact either: it rounds in other places than the graph says, and adds up in another order.

In FP16 and INT8 each product is computed in two halves that are rounded and added, as split-K kernels do, over channels
in an order that differs from build to build. In FP32 the operands are rounded to TF32, as GPUs do by default.
INT8 codes flip where a value is near the middle between two, which is the engine's own noise there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.fakes.rewriting import Rewriting

_TF32 = np.float32(2**13 + 1)
"""Veltkamp's constant that rounds float32's 24 bits to TF32's 11."""


def compute_as_engine(model: Any, seed: Sequence[int]) -> Any:
    """Return the model as an engine of that build computes it."""
    rewriting, chance = Rewriting(model), np.random.default_rng(seed)
    for node in [*rewriting.graph.node]:
        if node.op_type == "MatMul" and rewriting.type_of(node.output[0]) == onnx.TensorProto.FLOAT:
            _round_to_tf32(rewriting, node)
        elif node.op_type == "MatMul" and rewriting.is_constant(node.input[1]):
            _split(rewriting, node, chance)
    return rewriting.model


def _round_to_tf32(rewriting: Rewriting, node: Any) -> None:
    for index, name in enumerate(node.input):
        if name in rewriting.constants:
            [weight] = [each for each in rewriting.graph.initializer if each.name == name]
            values = numpy_helper.to_array(weight)
            node.input[index] = rewriting.constant(round_tf32(values))
        elif not rewriting.is_constant(name):
            place = [*rewriting.graph.node].index(node)
            large = rewriting.add_node(place, "Mul", [name, rewriting.constant(_TF32)])
            low = rewriting.add_node(place + 1, "Sub", [large, name])
            node.input[index] = rewriting.add_node(place + 2, "Sub", [large, low])


def round_tf32(values: Any) -> Any:
    """Round to 11 significant bits."""
    large = values * _TF32
    return large - (large - values)


def _split(rewriting: Rewriting, node: Any, chance: np.random.Generator) -> None:
    """x · W = x₁ · W₁ + x₂ · W₂, over channels in a random order."""
    shape = rewriting.shape_of_constant(node.input[1])
    if len(shape) != 2 or shape[0] < 2:
        return
    order = chance.permutation(shape[0])
    place = [*rewriting.graph.node].index(node)
    halves = []
    for half in np.array_split(order, 2):
        picked = rewriting.constant(half.astype(np.int64))
        x = rewriting.add_node(place, "Gather", [node.input[0], picked], axis=-1)
        w = rewriting.add_node(place + 1, "Gather", [node.input[1], picked], axis=0)
        halves.append(rewriting.add_node(place + 2, "MatMul", [x, w]))
        place += 3
    rewriting.add_node(place, "Add", halves, node.output[0])
    rewriting.graph.node.remove(node)
