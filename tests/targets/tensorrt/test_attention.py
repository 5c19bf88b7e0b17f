"""The rules of TensorRT's fused attention: their messages in audits, and whether TensorRT-RTX still obeys them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs import apply, parsed
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.passes.fit_attention import FitAttention
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.merge_moves import MergeMoves
from vitdeploy.recipe import Batch
from vitdeploy.targets._tensorrt.attention import FUSED, broken_rule
from vitdeploy.targets._tensorrt.build import BuildOptions, build_engine
from vitdeploy.targets._tensorrt.plan import find_float32, match_attention, parse_plan

ONE = Batch()
CORE = "site/Attention"


def site(q: tuple[int, ...], keys: int, e: int, nodes: tuple[str, ...] = (CORE,)) -> AttentionSite:
    """A site with `q` as (windows, heads, queries, head size)."""
    return AttentionSite(
        name="site", nodes=nodes, block=0, windows=q[0], heads=q[1], tokens=q[2], head_size=q[3], key_tokens=keys,
        value_size=e,
    )  # fmt: skip


def attention(q: tuple[int, ...], keys: int, e: int) -> Graph:
    b, h, n, d = q
    graph = parsed(
        f'<ir_version: 11, opset_import: ["" : 23]> vit (float16[{b},{h},{n},{d}] q, float16[{b},{h},{keys},{d}] k, '
        f"float16[{b},{h},{keys},{e}] v) => (float16[{b},{h},{n},{e}] y) {{ y = Attention<scale = 1.0>(q, k, v) }}"
    )
    next(graph.nodes).name = CORE
    return graph


OUTSIDE = [
    ((1, 4, 48, 16), 48, 32, "head size 16 for q and k and 32 for v"),
    ((1, 4, 48, 32), 48, 16, "head size 32 for q and k and 16 for v"),
    ((1, 4, 48, 8), 48, 8, "head size 8"),
    ((1, 1, 64, 32), 16, 32, "a single head at batch 1 (a known number of queries is split into two heads)"),
]
INSIDE = [((1, 4, 48, 32), 48, 32), ((2, 1, 64, 32), 16, 32), ((1, 2, 48, 12), 48, 12), ((1, 2, 1, 32), 48, 32)]
HOPELESS = [((1, 2, 48, 264), 48, 264, "head size 264"), ((1, 2, 48, 32), 1, 32, "one key")]


@pytest.mark.parametrize(("q", "keys", "e", "rule"), [*OUTSIDE, *HOPELESS])
def test_a_broken_rule_is_named(q: tuple[int, ...], keys: int, e: int, rule: str) -> None:
    assert broken_rule(site(q, keys, e), ONE) == f"TensorRT-RTX 1.7 does not fuse attention with {rule}"


@pytest.mark.parametrize(("q", "keys", "e"), INSIDE)
def test_no_rule_is_broken(q: tuple[int, ...], keys: int, e: int) -> None:
    assert broken_rule(site(q, keys, e), ONE) is None


def test_no_rule_is_broken_once_it_was_fitted() -> None:
    assert broken_rule(site((1, 4, 48, 16), 48, 32, (CORE, f"{CORE}/pad_q", f"{CORE}/pad_k")), ONE) is None
    assert broken_rule(site((1, 1, 64, 32), 16, 32, (CORE, f"{CORE}/split_q", f"{CORE}/copy_k")), ONE) is None


def test_a_larger_batch_is_more_than_one_head() -> None:
    for batch in (Batch(min=2, opt=2, max=2), Batch(min=1, opt=1, max=4)):
        assert broken_rule(site((1, 1, 64, 32), 16, 32), batch) is None


def test_what_is_not_known_breaks_no_rule() -> None:
    assert broken_rule(AttentionSite(name="site", nodes=(CORE,), block=0), ONE) is None


def _fuses(graph: Graph, folder: Path) -> bool:
    trt = pytest.importorskip("tensorrt_rtx")
    assert apply(LowerPrimitives(), graph).fired == 1
    graph.opset = 20
    graph.save(folder / "model.onnx")
    engine = build_engine(trt, folder / "model.onnx", BuildOptions(compute_capabilities=("sm86",)))
    layers = parse_plan(engine.layer_plan.split("\n"))
    return not match_attention(layers, {"site": [f"{CORE}/{part}" for part in ("qk", "softmax", "pv")]}).unfused


@pytest.mark.parametrize(("q", "keys", "e"), [case[:3] for case in OUTSIDE])
def test_tensorrt_rtx_fuses_it_only_fitted(q: tuple[int, ...], keys: int, e: int, tmp_path: Path) -> None:
    assert not _fuses(attention(q, keys, e), tmp_path), "it fuses as it is: fitting is no longer needed"
    fitted = attention(q, keys, e)
    assert apply(FitAttention(kernel=FUSED), fitted).fired == 1
    assert _fuses(fitted, tmp_path)


@pytest.mark.parametrize(("q", "keys", "e"), INSIDE)
def test_tensorrt_rtx_fuses_what_breaks_no_rule(q: tuple[int, ...], keys: int, e: int, tmp_path: Path) -> None:
    assert _fuses(attention(q, keys, e), tmp_path)


@pytest.mark.parametrize(("q", "keys", "e"), [case[:3] for case in HOPELESS])
def test_tensorrt_rtx_fuses_no_other(q: tuple[int, ...], keys: int, e: int, tmp_path: Path) -> None:
    graph = attention(q, keys, e)
    apply(FitAttention(kernel=FUSED), graph)
    assert not _fuses(graph, tmp_path)


def windows() -> Graph:
    """Four windows with channels first, as EfficientViT (MSRA) has them: the view of the queries comes last."""
    graph = parsed(
        '<ir_version: 11, opset_import: ["" : 23]> vit (float16[4,16,49] x, float16[1,4,49,16] k, float16[1,4,49,16] v)'
        " => (float16[1,4,49,16] y) <int64[4] heads = {1, 4, 49, 16}> {"
        " t = Transpose<perm = [0, 2, 1]>(x) q = Reshape(t, heads) y = Attention<scale = 1.0>(q, k, v) }"
    )
    next(node for node in graph.nodes if node.op_type == "Attention").name = CORE
    return graph


def test_tensorrt_rtx_fuses_windows_only_with_the_view_before_the_transpose(tmp_path: Path) -> None:
    assert not _fuses(windows(), tmp_path), "it fuses as it is: the order of the two no longer matters"
    merged = windows()
    assert apply(MergeMoves(), merged).fired == 1
    assert _fuses(merged, tmp_path)


def test_attention_in_float32_is_not_blamed_on_its_head_sizes(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    graph = parsed(
        '<ir_version: 11, opset_import: ["" : 23]> vit (float[1,4,48,16] q, float[1,4,48,16] k, float[1,4,48,32] v) '
        "=> (float[1,4,48,32] y) { y = Attention<scale = 1.0>(q, k, v) }"
    )
    next(graph.nodes).name = CORE
    apply(LowerPrimitives(), graph)
    graph.opset = 20
    graph.save(tmp_path / "model.onnx")
    engine = build_engine(trt, tmp_path / "model.onnx", BuildOptions(compute_capabilities=("sm86",)))
    nodes = [f"{CORE}/{part}" for part in ("qk", "softmax", "pv")]
    assert find_float32(parse_plan(engine.layer_plan.split("\n")), {"site": nodes, "none": ["absent"]}) == {"site"}
