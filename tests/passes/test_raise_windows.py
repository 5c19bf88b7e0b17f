"""Windowed attention as Swin and SwinV2 write it: a bias table, a mask over shifted windows, a factor for each head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2

from tests.graphs import differs, dynamo, expected, images, legacy, raised, redrawn, types
from vitdeploy import passes
from vitdeploy.passes import order

KINDS: dict[str, Any] = {"swin": SwinTransformer, "swinv2": SwinTransformerV2}
EXPORTERS: dict[str, Any] = {"dynamo": dynamo, "legacy": legacy}


def windowed(kind: str) -> torch.nn.Module:
    """Two blocks of 8 x 8 patches in four windows of 4 x 4; the second one shifts them, and masks the seams."""
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 32, "num_classes": 5}
    return redrawn(KINDS[kind](depths=(2,), num_heads=(2,), **sizes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_window_attention_is_raised(kind: str, exporter: str) -> None:
    module = windowed(kind)
    image = images()
    graph, structure, refused = raised(EXPORTERS[exporter](module, image))
    assert refused == {}
    assert (types(graph).count("Attention"), types(graph).count("Softmax")) == (2, 0)
    assert [(site.heads, site.tokens) for site in structure.attention] == [(2, 16), (2, 16)]
    assert differs(graph, image, expected(module, image)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_matters(kind: str) -> None:
    """Without its bias the shifted block gives other numbers: parity is able to see a lost mask."""
    module = windowed(kind)
    image = images()
    graph, _, _ = raised(dynamo(module, image))
    shifted = [node for node in graph.nodes if node.op_type == "Attention"][1]
    shifted.replace_input_with(3, None)
    assert differs(graph, image, expected(module, image)) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_every_window_attention_is_raised_with_a_batch_that_varies(kind: str, exporter: str) -> None:
    """The mask is repeated for each image, and the sizes that the legacy exporter leaves open are solved."""
    module = windowed(kind)
    graph, structure, refused = raised(EXPORTERS[exporter](module, images(2), dynamic=True))
    assert refused == {}
    assert [(site.heads, site.head_size, site.tokens) for site in structure.attention] == [(2, 16, 16)] * 2
    assert (types(graph).count("Tile"), types(graph).count("Pad")) == (1, 0)
    for batch in (1, 3):
        assert differs(graph, images(batch), expected(module, images(batch))) is None


def test_a_repeated_mask_leaves_the_query_to_its_scale() -> None:
    graph, _, _ = raised(legacy(windowed("swin"), images(2), dynamic=True))
    assert {r.name: (r.fired, r.refused) for r in passes.run(order.folding(), graph)}["fold-attention-scale"] == (2, ())
