"""Near-ties between merged tokens: how far they move a map is measured, and no more than that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, legacy, parsed, run
from tests.toys.merging import vit
from vitdeploy import passes
from vitdeploy.graph.merge_ties import measure_undecided
from vitdeploy.graph.model import Graph
from vitdeploy.graph.parity import FLOAT32_LIMIT, Example, compare, explain_difference
from vitdeploy.passes import order
from vitdeploy.passes.merge_tokens import MergeTokens
from vitdeploy.pipeline.examples import Examples, load_examples, save_examples
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

COMMON = 1000.0
"""What all keys have in common, beside differences of order 1: cosines are 1 to within 1e-6."""


def merged() -> Graph:
    graph = parsed(legacy(vit(1, "dense"), images(1)))
    passes.run([*order.raising(), *order.folding()], graph)
    assert apply(MergeTokens(schedule=((0, 6),)), graph).fired == 1
    return graph


def tie(graph: Graph, common: float = COMMON) -> Graph:
    """Give the keys of the first merge nearly one direction, in place: float32 hardly tells which are most similar."""
    node = next(n for n in graph.nodes if (n.name or "").endswith("mean_key"))
    mean, readers = node.outputs[0], list(node.outputs[0].uses())
    tape = ir.tape.Tape()
    offset = tape.initializer(ir.tensor(np.array(common, np.float32), name="common"))
    alike = tape.op("Add", [mean, offset], name="alike")
    graph.insert_before(readers[0].node, tape)
    for use in readers:
        use.node.replace_input_with(use.idx, alike)
    return graph


def example(graph: Graph, x: Array) -> Example:
    return Example(x, run(graph, x), "images")


def test_without_ties_nothing_may_move() -> None:
    graph, x = merged(), images(1, seed=1)
    assert measure_undecided(graph, [example(graph, x)], "input") == [{}]


def test_a_tie_may_move_the_map_where_it_is_and_nothing_else() -> None:
    graph, x = tie(merged()), images(1, seed=1)
    one = example(graph, x)
    (undecided,) = measure_undecided(graph, [one], "input")
    (name,) = one.outputs
    reference, free = one.outputs[name], undecided[name]
    assert free.shape == reference.shape
    other = {name: reference + 0.9 * free}  # as other choices may change it
    assert explain_difference(compare(one.outputs, other, batch=1)) is not None
    parity = compare(one.outputs, other, batch=1, undecided=undecided)
    assert explain_difference(parity) is None
    assert parity.max_abs <= 1e-6 * parity.reference_max
    assert parity.outputs[0].undecided == pytest.approx(0.9 * free.max(), rel=1e-5)
    too_far = reference + free + 2 * FLOAT32_LIMIT * np.abs(reference).max()
    assert explain_difference(compare(one.outputs, {name: too_far}, batch=1, undecided=undecided)) is not None


def test_a_tie_that_is_decided_otherwise_is_within_what_was_measured() -> None:
    """A little more in common leaves the order of similarities as it is, but for rounding."""
    graph, x = tie(merged()), images(1, seed=1)
    one = example(graph, x)
    (undecided,) = measure_undecided(graph, [one], "input")
    others = [run(tie(merged(), COMMON + more), x) for more in (1.0, 2.0, 3.0, 4.0)]
    assert any(explain_difference(compare(one.outputs, other, batch=1)) is not None for other in others)
    for other in others:
        assert explain_difference(compare(one.outputs, other, batch=1, undecided=undecided)) is None


def test_a_device_reads_it_back(tmp_path: Path) -> None:
    preprocess = Preprocess(size=(4, 4))
    pixels = tuple(np.full((1, 3, 4, 4), n, np.uint8) for n in range(2))
    outputs: tuple[dict[str, Any], ...] = tuple({"map": np.ones((1, 4, 4), np.float32)} for _ in pixels)
    free = {"map": np.full((1, 4, 4), 0.5, np.float32)}
    examples = Examples("input", preprocess, pixels, outputs, ("one", "two"), undecided=({}, free))
    save_examples(tmp_path / "examples.npz", examples, "normalized")
    first, second = load_examples(tmp_path / "examples.npz", preprocess, "normalized")
    assert first.undecided == {}
    assert np.array_equal(second.undecided["map"], free["map"])
