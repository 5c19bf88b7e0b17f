"""Measure how far near-ties between tokens to merge move the outputs: rounding decides which of them are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import FLOAT32_LIMIT, SMALLEST_SCALE, Example
from vitdeploy.graph.structure import MERGE, SIMILARITY
from vitdeploy.session import Array

NOISE = 2e-6
"""Similarities that differ by less may change places. They are cosines near 1, which float32 rounds to 6e-8, of keys
that engines compute to 1e-6 of their size."""
_RUNS = 8
"""Each near-tie is decided the other way in half of the runs."""
_MARGIN = 2.0
"""Over the largest difference in these runs: ties of several merges add up."""
_COSINE = f"{SIMILARITY}cosine"
_UNMERGED = f"{MERGE}/unmerged"


def measure_undecided(graph: Graph, examples: Sequence[Example], input_name: str) -> list[dict[str, Array]]:
    """Return how far each element of the outputs may move, for each example; without outputs that hardly move.

        keys ─ cosine ─ best, order     ─▶     keys ─ cosine ─ Add noise ─ best, order

    Of two patches that are equally similar to their match, an engine may merge one and another engine the other. A map
    shows that at the places of both, as far as the two tokens differ. Without such maps nothing is measured: a class or
    a vector of the image hardly moves.

    Args:
        graph: with merged tokens, in float32. It runs a few times for each example.
        examples: images as the graph takes them.
        input_name: the name of its input.
    """
    if not any((node.name or "").endswith(_UNMERGED) for node in graph.nodes):
        return [{} for _ in examples]
    copy = Graph(graph.model.clone())
    sizes = _add_noise(copy)
    random = np.random.default_rng(0)
    with scratch_folder("ties") as folder:
        copy.save(folder / "noise.onnx")
        with OnnxSession(folder / "noise.onnx", lean=True) as session:
            return [_measure(session, example, input_name, sizes, random) for example in examples]


def _add_noise(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Add an input to each similarity, in place; return the shapes by the names of the inputs."""
    sizes: dict[str, tuple[int, ...]] = {}
    for node, following in list(pairwise(graph.nodes)):
        if not (node.name or "").endswith(_COSINE):
            continue
        cosine = node.outputs[0]
        shape = (1, *(size or 1 for size in (dims(cosine) or ())[1:]))
        noise = ir.Value(name=f"{node.name}/noise", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        graph.model.graph.inputs.append(noise)
        readers = list(cosine.uses())
        tape = ir.tape.Tape()
        noisy = tape.op("Add", [cosine, noise], name=f"{node.name}/noisy")
        graph.insert_before(following, tape)
        for use in readers:
            use.node.replace_input_with(use.idx, noisy)
        sizes[noise.name or ""] = shape
    return sizes


def _measure(
    session: OnnxSession,
    example: Example,
    input_name: str,
    sizes: Mapping[str, tuple[int, ...]],
    random: np.random.Generator,
) -> dict[str, Array]:
    def run(scale: float) -> list[Array]:
        noise = {name: random.uniform(-scale, scale, shape).astype(np.float32) for name, shape in sizes.items()}
        return list(session.run({**example.feed(input_name), **noise}).values())

    plain = run(0.0)
    moved = [np.zeros_like(value) for value in plain]
    for _ in range(_RUNS):
        moved = [np.maximum(most, np.abs(one - own)) for most, one, own in zip(moved, run(NOISE), plain, strict=True)]
    named = zip(example.outputs, plain, moved, strict=True)
    free = {name: _free(own, most) for name, own, most in named if np.issubdtype(own.dtype, np.floating)}
    return {name: values for name, values in free.items() if values is not None}


def _free(own: Array, moved: Array) -> Array | None:
    """Return how far each element of an output may move, from how far it moved; None if all hardly did.

    A place that moved has another token, which may be another one still in an engine: it may move as far as any place.
    """
    limit = FLOAT32_LIMIT * max(float(np.abs(own).max(initial=0.0)), SMALLEST_SCALE)
    most = float(moved.max(initial=0.0))
    if _MARGIN * most <= limit:
        return None
    free: Array = (_MARGIN * np.where(moved > limit, most, moved)).astype(np.float32)
    return free
