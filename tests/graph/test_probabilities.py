"""The probabilities that are read out of every form of attention equal their definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import images, parsed, raised
from vitdeploy import passes
from vitdeploy.graph.dialect import FusedAttention
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.probabilities import with_taps
from vitdeploy.graph.structure import AttentionSite, Structure
from vitdeploy.passes.fit_attention import FitAttention
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.lower_primitives import LowerPrimitives

FORMS = {"plain operators": [LowerPrimitives()], "multi-head": [LowerMultihead()], "as raised": []}
Probabilities = dict[str, Any]


def read(graph: Graph, structure: Structure, path: Path, feeds: dict[str, Any]) -> Probabilities:
    """The probabilities of every tap."""
    tapped, taps, missing = with_taps(graph, structure)
    assert missing == {}
    tapped.save(path)
    with OnnxSession(path, lean=True) as session:
        return {tap.site.name: tap.read(session.run(feeds, outputs=list(tap.tensors))) for tap in taps}


def hand_written(
    heads: int, queries: int, keys: int, bias: tuple[int, ...] | None, dtype: str = "float"
) -> tuple[Graph, Structure, Any]:
    """One attention named as raising names it, its operands, and its probabilities by definition, in float64."""
    shapes = {"q": (1, heads, queries, 8), "k": (1, heads, keys, 8), "v": (1, heads, keys, 8)}
    shapes |= {} if bias is None else {"bias": bias}
    rng = np.random.default_rng(0)
    kind = np.float16 if dtype == "float16" else np.float32
    feeds = {name: 2 * rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
    inputs = ", ".join(f"{dtype}[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    graph = parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit ({inputs}) => ({dtype} y) {{ '
        f"o = Attention<scale = 0.3>(q, k, v{'' if bias is None else ', bias'}) y = Identity(o) }}"
    )
    next(graph.nodes).name = "site/Attention"
    site = AttentionSite(
        name="site", nodes=(), block=0, heads=heads, head_size=8, tokens=queries, key_tokens=keys, windows=1
    )
    scores = 0.3 * feeds["q"].astype(np.float64) @ feeds["k"].swapaxes(-1, -2) + feeds.get("bias", 0.0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return graph, Structure(attention=(site,), linears=(), norms=()), (feeds, weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [None, (6, 5), (1, 3, 6, 5)], ids=str)
def test_the_probabilities_are_those_of_the_definition(form: str, bias: tuple[int, ...] | None, tmp_path: Path) -> None:
    graph, structure, (feeds, expected) = hand_written(3, 6, 5, bias)
    passes.run(FORMS[form], graph)
    probabilities = read(graph, structure, tmp_path / "tapped.onnx", feeds)["site"]
    assert probabilities.shape == (1, 3, 6, 5)
    assert np.abs(probabilities - expected).max() < 1e-6


def test_a_head_that_was_split_in_two_is_merged_again(tmp_path: Path) -> None:
    graph, structure, (feeds, expected) = hand_written(1, 6, 5, None, "float16")
    fit = FitAttention(kernel=FusedAttention(smallest=16, largest=64, multiple=8))
    assert [record.fired for record in passes.run([fit, LowerPrimitives()], graph)] == [1, 1]
    probabilities = read(graph, structure, tmp_path / "tapped.onnx", feeds)["site"]
    assert probabilities.shape == (1, 1, 6, 5)
    assert np.abs(probabilities - expected).max() < 4e-3, "a few steps of float16"


@pytest.mark.parametrize("exporter", ["dynamo", "legacy-17"])
def test_every_form_of_a_model_gives_the_same(exported: Callable[[str], bytes], exporter: str, tmp_path: Path) -> None:
    results = []
    for number, form in enumerate(FORMS.values()):
        graph, structure, _ = raised(exported(exporter))
        passes.run(form, graph)
        feed = {graph.model.graph.inputs[0].name or "": images(1)}
        results.append(read(graph, structure, tmp_path / f"{number}.onnx", feed))
    assert len(results[0]) == 2
    for name, first in results[0].items():
        assert first.shape == (1, 2, 17, 17)
        assert np.abs(first.sum(-1) - 1).max() < 1e-5
        assert all(np.abs(other[name] - first).max() < 1e-5 for other in results[1:])


def test_the_graph_itself_stays_as_it_is(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    with_taps(graph, structure)
    assert len(graph.model.graph.outputs) == 1
    assert all(len(node.outputs) == 1 for node in graph.nodes if node.op_type == "Attention")


def test_a_site_without_its_softmax_is_missing_by_name(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    lost = structure.attention[0].model_copy(update={"name": "elsewhere", "nodes": ("elsewhere/Attention",)})
    _, taps, missing = with_taps(graph, structure.model_copy(update={"attention": (lost, structure.attention[1])}))
    assert [tap.site.name for tap in taps] == [structure.attention[1].name]
    assert "the graph has no node that gives its softmax" in missing["elsewhere"]
