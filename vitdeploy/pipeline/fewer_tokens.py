"""Remove tokens of the float32 graph. From here on its own answers are the reference for all that is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifact import FewerTokens, Parity, PassRecord
from vitdeploy.errors import ExportError
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import compare, merge
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.exported_graph import check_graph
from vitdeploy.pipeline.fixed_positions import choose_positions
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm, TokensSpec

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes import Pass
    from vitdeploy.quantize import Calibration

StandIns = Mapping[int, Mapping[int, int]]
"""The patches to drop behind each block, and the patch that stands in for each. See `passes.drop_tokens`."""


def remove_tokens(
    graph: Graph,
    spec: TokensSpec,
    unraised: Mapping[str, str],
    examples: Examples,
    form: InputForm,
    path: Path,
    calibration: Calibration | None,
    progress: Progress,
    positions: StandIns | None = None,
) -> tuple[list[PassRecord], Examples, FewerTokens]:
    """Merge or drop tokens of the raised and folded graph, in place, and let its own outputs be the reference.

    The graph is compared with the model before. What is lost by fewer tokens is no error of a pass or an engine, so the
    later checks compare with the changed graph in float32, and the loss itself is recorded.

    Args:
        graph: the graph.
        spec: the blocks behind which tokens are merged or dropped.
        unraised: the reason for each softmax that was not raised.
        examples: images with the model's outputs.
        form: the form in which the graph takes images.
        path: a file to work in.
        calibration: images to choose the positions of dropped tokens on.
        progress: gets the steps.
        positions: positions of dropped tokens that were chosen before; None chooses them.

    Returns:
        The records of the passes, the examples with the outputs of the changed graph, and what they differ by.

    Raises:
        ExportError: tokens cannot be removed behind one of the blocks, or the graph was wrong before.
        QuantizeError: there are no images to choose positions on.
    """
    from vitdeploy.passes import order

    graph.save(path)
    check_graph(path, examples, form, exact=True)
    if spec.merges:
        records, examples, parity = merge_tokens(graph, spec.schedule, unraised, examples, form, path)
        return records, examples, FewerTokens(merged=spec.schedule, parity=parity)
    if positions is None:
        positions = choose_positions(graph, spec.drop, unraised, calibration, progress)
    records = _run(order.dropping(positions, unraised), graph, "dropped", "--drop-tokens")
    examples, parity = _answer(graph, examples, form, path, "dropped", "--drop-tokens")
    images = None if calibration is None else calibration.data
    return records, examples, FewerTokens(dropped=positions, calibration=images, parity=parity)


def merge_tokens(
    graph: Graph,
    schedule: Mapping[int, int],
    unraised: Mapping[str, str],
    examples: Examples,
    form: InputForm,
    path: Path,
) -> tuple[list[PassRecord], Examples, Parity]:
    """Merge tokens of a graph that was compared with the model, in place.

    Returns:
        The records of the passes, the examples with the outputs of the merged graph, and what they differ by.

    Raises:
        ExportError: tokens cannot be merged behind one of the blocks.
    """
    from vitdeploy.graph.merge_ties import measure_undecided
    from vitdeploy.passes import order

    records = _run(order.merging(schedule, unraised), graph, "merged", "--merge-tokens")
    examples, parity = _answer(graph, examples, form, path, "merged", "--merge-tokens")
    undecided = measure_undecided(graph, examples.pairs(form), examples.input_name)
    return records, dataclasses.replace(examples, undecided=tuple(undecided)), parity


def _run(rewrites: list[Pass], graph: Graph, verb: str, flag: str) -> list[PassRecord]:
    """Run the passes, and raise ExportError for the first block that they refuse."""
    from vitdeploy import passes

    records = passes.run(rewrites, graph)
    refused = next((refusal for record in records for refusal in record.refused), None)
    if refused is not None:
        raise ExportError(
            f"tokens cannot be {verb} after {refused.site}: {refused.reason}",
            fix=f"Choose other blocks or numbers, or use {flag} off.",
        )
    return records


def _answer(
    graph: Graph, examples: Examples, form: InputForm, path: Path, verb: str, flag: str
) -> tuple[Examples, Parity]:
    """Return the examples with the graph's own outputs, and their comparison with those of before."""
    graph.save(path)
    pairs = examples.pairs(form)
    with OnnxSession(path) as session:
        answers = [session.run(pair.feed(examples.input_name)) for pair in pairs]
    outputs = tuple(
        {name: answer[own] for name, own in zip(pair.outputs, answer, strict=True)}
        for pair, answer in zip(pairs, answers, strict=True)
    )
    parity = merge(
        [
            compare(pair.outputs, own, batch=len(pair.image), where=pair.name, selected=pair.selected, edges=pair.edges)
            for pair, own in zip(pairs, outputs, strict=True)
        ]
    )
    if not parity.finite:
        raise ExportError(f"the graph with {verb} tokens is wrong: {parity.problem}", fix=f"Use {flag} off.")
    examples = dataclasses.replace(examples, outputs=outputs).with_selection(graph)
    return examples, replace(parity, cases=())
