"""Height and width that go on varying: attention is raised, folded and lowered as for one size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.graphs import parsed, run, types
from tests.onnx_files import noise, run_plain, sized_dynamo, sized_legacy, sized_vit
from vitdeploy import passes
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order

EXPORTS: dict[str, Callable[[], bytes]] = {
    "legacy-14": lambda: sized_legacy(sized_vit(), 14),
    "dynamo-23": lambda: sized_dynamo(sized_vit(), 23),
}
MULTIHEAD = Dialect(opset=20, attention="multihead", packed_qkv=False)


def folded(model: bytes, **options: bool) -> tuple[Graph, dict[str, int]]:
    graph = parsed(model)
    records = passes.run([*order.raising(1), *order.folding(**options)], graph)
    return graph, {record.name: record.fired for record in records if record.fired}


@pytest.mark.parametrize("kind", EXPORTS)
def test_all_passes_follow_channels_whatever_the_number_of_tokens(kind: str) -> None:
    model = EXPORTS[kind]()
    graph, fired = folded(model, packed_qkv=False)
    assert (fired["raise-attention"], fired["fold-attention-scale"], fired["unpack-qkv"]) == (2, 2, 2)
    passes.run(order.lowering(MULTIHEAD), graph)
    assert types(graph).count("MultiHeadAttention") == 2
    assert not [n.name for n in graph.nodes if "transpose_q" in (n.name or "")], "it reads the linears directly"
    for size in ((24, 40), (32, 32), (64, 16)):
        image = noise(1, 3, *size)
        (expected,), (given,) = run_plain(model, image), run(graph, image).values()
        assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()


def test_tokens_and_rows_are_counted_for_the_size_that_is_asked_for() -> None:
    graph, _ = folded(EXPORTS["legacy-14"]())
    assert {site.tokens for site in recognize(graph, {}).attention} == {None}
    for size, tokens in (((24, 40), 16), ((48, 64), 49)):
        structure = recognize(graph, {}, size)
        assert {(site.tokens, site.key_tokens, site.windows) for site in structure.attention} == {(tokens, tokens, 1)}
        assert {linear.rows for linear in structure.linears if linear.role == "fc1"} == {tokens}
    assert dims(graph.model.graph.inputs[0]) == (1, 3, None, None), "shapes are as before"
