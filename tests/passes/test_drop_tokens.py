"""Dropped tokens give what a plain PyTorch program gives that leaves out the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.graphs import apply, images, legacy, parsed, run
from tests.toys.merging import PATCHES, Vit, vit
from vitdeploy import passes
from vitdeploy.graph.blocks import find_parts
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.passes.drop_tokens import DropTokens, find_keys

BOUND = 1e-4
MODELS = {
    "class token": (1, "class"), "registers": (4, "class"), "mean of patches": (1, "mean"), "mean of all": (2, "all"),
    "no class token": (0, "mean"), "map of patches": (1, "dense"), "map": (0, "dense"), "every token": (1, "tokens"),
}  # fmt: skip
POSITIONS = {
    "one": {1: {3: 4, 15: 0, 7: 4}},
    "three": {0: {0: 5, 1: 5, 12: 13}, 1: {5: 6, 13: 14}, 2: {6: 2}},  # the stand-in of 0 and 1 goes after them
    "all but one": {0: {patch: 9 for patch in range(PATCHES) if patch != 9}},
}  # fmt: skip


def folded(model: Vit) -> Graph:
    graph = parsed(legacy(model, images(2), dynamic=True))
    passes.run([*order.raising(), *order.folding()], graph)
    return graph


@pytest.mark.parametrize("positions", list(POSITIONS))
@pytest.mark.parametrize("name", list(MODELS))
def test_equal_to_pytorch(name: str, positions: str) -> None:
    model = vit(*MODELS[name])
    graph, x, stand_ins = folded(model), images(3, seed=1), POSITIONS[positions]
    plain = run(graph, x)["output_0"]
    assert apply(DropTokens(stand_ins=stand_ins), graph) == passes.PassResult(len(stand_ins))
    with torch.inference_mode():
        wanted = model.dropped(torch.from_numpy(x), stand_ins).numpy()
    for batch in (1, 3):
        (answer,) = run(graph, x[:batch]).values()
        assert answer.shape == wanted[:batch].shape
        assert np.abs(answer - wanted[:batch]).max() <= BOUND * np.abs(wanted).max()
    assert np.abs(wanted - plain).max() > 10 * BOUND  # dropping these is no small change
    assert not any("merge" in (node.name or "") for node in graph.nodes)  # only merging is called merging


def test_tokens_by_block_and_ends_of_blocks() -> None:
    graph = folded(vit(1, "mean"))
    before = [part.block for part in find_parts(graph, recognize(graph, {}))]
    apply(DropTokens(stand_ins={0: {0: 1, 2: 1}, 2: {1: 3}}), graph)
    sites = recognize(graph, {}).attention
    assert [(site.tokens, site.key_tokens) for site in sites] == [(17, 17), (15, 15), (15, 15), (14, 14)]
    assert [part.block for part in find_parts(graph, recognize(graph, {}))] == before


@pytest.mark.parametrize("attention", ["primitives", "multihead"])
def test_lowered_for_each_target(attention: str) -> None:
    model = vit(1, "dense")
    graph, x = folded(model), images(2, seed=6)
    apply(DropTokens(stand_ins=POSITIONS["three"]), graph)
    passes.run(order.lowering(Dialect(opset=20, attention=attention)), graph)  # type: ignore[arg-type]
    with torch.inference_mode():
        wanted = model.dropped(torch.from_numpy(x), POSITIONS["three"]).numpy()
    assert np.abs(run(graph, x)["output_0"] - wanted).max() <= BOUND * np.abs(wanted).max()


def test_the_keys_by_which_positions_are_chosen() -> None:
    graph = folded(vit(2, "class"))
    keys, refused = find_keys(graph, {0: 4, 1: 11, 7: 1}, {})
    assert refused == {"block 7": "there is no such block: the model has blocks 0 to 3"}
    assert [(one.block, one.special, one.removed) for one in keys] == [(0, 2, 4), (1, 2, 11)]
    shapes = {value.name: value.shape for node in graph.nodes for value in node.outputs}
    assert [tuple(shapes[one.name])[1:] for one in keys] == [(2, 18, 16)] * 2  # type: ignore[arg-type]


def test_at_least_one_patch_stays() -> None:
    _, refused = find_keys(folded(vit(1, "class")), {0: 10, 1: 6}, {})
    assert refused == {"block 1": "6 tokens cannot be removed: 6 patches are left, at most 5 can"}
