"""Tiny numbers that guard a division keep their precision in FP16, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.graphs import parsed, redrawn, run
from tests.quantize.hostile import in_true_half, ready
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import half
from vitdeploy.quantize.guards import NORM, find_lost_guards

TEXT = '<ir_version: 10, opset_import: ["" : 20]> g (float[2,4] x, float[2,4] u) => (float[2,4] y) {{ {nodes} }}'
NOTHING = Structure(attention=(), linears=(), norms=())


def graph_of(nodes: str, **constants: float) -> Graph:
    return parsed(TEXT.format(nodes=nodes), **{name: np.float32(value) for name, value in constants.items()})


NORMALIZE = "n = ReduceL2<keepdims=1>(x, axes) g = Clip(n, eps) y = Div(x, g)"
AXES = np.array([1])


@pytest.mark.parametrize(
    ("nodes", "constants", "kept"),
    [
        ("s = Mul(x, x) n = ReduceSum<keepdims=1>(s, axes) g = Add(n, eps) r = Sqrt(g) y = Div(x, r)", {"eps": 1e-12},
         ["Mul", "ReduceSum", "Add", "Sqrt", "Div"]),
        (NORMALIZE, {"eps": 1e-12}, ["ReduceL2", "Clip", "Div"]),
        (NORMALIZE, {"eps": 1e-6}, ["ReduceL2", "Clip", "Div"]),
        ("g = Max(u, eps) e = Identity(g) r = Reciprocal(e) y = Mul(r, x)", {"eps": 1e-8},
         ["Max", "Identity", "Reciprocal"]),
        ("a = Clip(u, eps) q = Div(x, a) y = Log(q)", {"eps": 1e-5}, ["Clip", "Div", "Log"]),
        ("g = Add(u, eps) y = Log(g)", {"eps": 1e-9}, ["Add", "Log"]),
        ("g = Add(u, eps) y = Div(x, g)", {"eps": 1e6}, ["Add", "Div"]),
        ("s = Mul(x, x) m = ReduceMean<keepdims=1>(s, axes) g = Add(m, eps) r = Sqrt(g) y = Div(x, r)", {"eps": 1e-5},
         ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]),
    ],
)  # fmt: skip
def test_everything_from_the_magnitude_to_its_reader_is_kept(
    nodes: str, constants: dict[str, float], kept: list[str]
) -> None:
    graph = parsed(TEXT.format(nodes=nodes), axes=AXES, **{k: np.float32(v) for k, v in constants.items()})
    reasons = find_lost_guards(graph)
    assert [node.op_type for node in graph.nodes if node.name in reasons] == kept
    reason = NORM if "ReduceMean" in kept else f"a division that {constants['eps']:.3g} guards"
    assert all(r.startswith(reason) for r in reasons.values())


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("g = Add(u, eps) y = Div(x, g)", {"eps": 1e-3}),  # float16 holds it, and its reciprocal
        ("g = Add(u, eps) y = Mul(x, g)", {"eps": 1e-12}),  # nothing divides by it
        ("g = Clip(u, eps) y = Div(g, x)", {"eps": 1e-12}),  # it is the dividend
        ("g = Add(u, eps) r = Sqrt(g) y = Div(x, r)", {"eps": 1e-6}),  # the root of it is held
        ("g = Add(u, eps) r = Exp(g) y = Div(x, r)", {"eps": 1e-12}),  # no guard any more
    ],
)
def test_a_guard_that_float16_holds_or_that_nothing_needs_is_left_alone(
    nodes: str, constants: dict[str, float]
) -> None:
    assert find_lost_guards(graph_of(nodes, **constants)) == {}


def test_zeros_divided_by_their_norm_are_zero_in_half_precision() -> None:
    graph = parsed(TEXT.format(nodes=NORMALIZE), axes=AXES, eps=np.float32(1e-12))
    x = np.array([[0, 0, 0, 0], [1e-4, 0, 0, -1e-4]], np.float32)
    reference = run(graph, x, u=x)["y"]
    record = half.quantize(graph, NOTHING, (), None)
    assert np.abs(run(graph, x, u=x)["y"] - reference).max() < 1e-3
    assert record.float32_rules == {next(iter(record.float32_rules)): 3}
    plain = parsed(TEXT.format(nodes=NORMALIZE), axes=AXES, eps=np.float32(1e-12))
    half.convert(plain)
    assert not np.isfinite(run(plain, x, u=x)["y"]).all(), "float16 holds this, so it shows nothing"


def test_swin_v2_with_padded_windows() -> None:
    """Padded tokens have keys of 0: v2 divides them by their norm, and its keys have no bias."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    torch.manual_seed(0)
    model: Any = redrawn(
        SwinTransformerV2(
            img_size=40, patch_size=4, window_size=4, embed_dim=24, depths=(2,), num_heads=(3,), num_classes=5
        )
    ).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    graph, structure = ready(model, x)
    reference = next(iter(run(graph, x).values()))
    record = half.quantize(graph, structure, (), None)
    y = in_true_half(graph, x)
    assert np.isfinite(y).all()
    assert np.abs(y - reference).max() < 0.02 * np.abs(reference).max()
    assert any("1e-12" in rule for rule in record.float32_rules)
    assert any(rule.startswith("a division") for _, rule in _rows(record))


def _rows(record: Any) -> list[tuple[str, str]]:
    from vitdeploy.artifact.quantization import Quantization

    rows = list(Quantization(method="fp16", half=record).rows())
    return [(name, text.partition(": ")[2]) for name, text in rows if name == "float32 by rule"]
