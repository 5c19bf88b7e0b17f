"""Merge tokens of the float32 graph. From here on its own answers are the reference for all that is made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifact import FewerTokens, PassRecord
from vitdeploy.errors import ExportError
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import compare, merge
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.exported_graph import check_graph
from vitdeploy.recipe import InputForm, TokensSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.graph.model import Graph


def merge_tokens(
    graph: Graph, spec: TokensSpec, unraised: Mapping[str, str], examples: Examples, form: InputForm, path: Path
) -> tuple[list[PassRecord], Examples, FewerTokens]:
    """Merge tokens of the raised and folded graph, in place, and let its own outputs be the reference.

    The graph is compared with the model before. What is lost by merging is no error of a pass or an engine, so the
    later checks compare with the merged graph in float32, and the loss itself is recorded.

    Args:
        graph: the graph.
        spec: the blocks behind which tokens are merged.
        unraised: the reason for each softmax that was not raised.
        examples: images with the model's outputs.
        form: the form in which the graph takes images.
        path: a file to work in.

    Returns:
        The records of the passes, the examples with the outputs of the merged graph, and what they differ by.

    Raises:
        ExportError: tokens cannot be merged behind one of the blocks, or the graph was wrong before.
    """
    from vitdeploy import passes
    from vitdeploy.passes import order

    graph.save(path)
    check_graph(path, examples, form, exact=True)
    records = passes.run(order.merging(spec.merge, unraised), graph)
    refused = next((refusal for record in records for refusal in record.refused), None)
    if refused is not None:
        raise ExportError(
            f"tokens cannot be merged after {refused.site}: {refused.reason}",
            fix="Choose other blocks or numbers, or use --merge-tokens off.",
        )
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
        raise ExportError(f"the graph with merged tokens is wrong: {parity.problem}", fix="Use --merge-tokens off.")
    examples = dataclasses.replace(examples, outputs=outputs).with_selection(graph)
    return records, examples, FewerTokens(merged=spec.merge, parity=replace(parity, cases=()))
