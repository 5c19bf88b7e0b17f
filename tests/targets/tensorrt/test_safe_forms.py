"""What TensorRT-RTX makes of safe forms, read from its layer plans. It compiles without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.graphs import images, tiny_vit
from tests.toys.lowered import eva, lower
from vitdeploy.graph.structure import Structure
from vitdeploy.pipeline.safe_forms import list_safe_forms
from vitdeploy.targets._tensorrt.build import BuildOptions, build_engine
from vitdeploy.targets._tensorrt.kernels import count_kernels
from vitdeploy.targets._tensorrt.plan import PlanLayer, is_product, match_attention, parse_plan

trt = pytest.importorskip("tensorrt_rtx")


def compiled(module: nn.Module, name: str, folder: Path, kind: str = "fp16") -> tuple[list[PlanLayer], Structure]:
    """The layer plan of a safe form of a model for sm86, and its structure; `plain` for the plain form."""
    graph, structure = lower(module, images(), kind)
    if name != "plain":
        form = list_safe_forms(graph, structure).find(name)
        assert form is not None
        rewritten = form.rewrite(graph, structure)
        graph, structure = rewritten.graph, rewritten.structure
    path = folder / f"{name}.onnx"
    graph.save(path)
    engine = build_engine(trt, path, BuildOptions(compute_capabilities=("sm86",), precision=kind))
    return parse_plan(engine.layer_plan.split("\n")), structure


def most_merged(layers: list[PlanLayer], structure: Structure) -> int:
    """The most linears of q, k and v that one product computes."""
    linears = {node for linear in structure.linears if linear.role == "qkv" for node in linear.nodes}
    return max(len(linears & set(layer.onnx_nodes)) for layer in layers if is_product(layer))


def fused(layers: list[PlanLayer], structure: Structure) -> int:
    cores = {
        site.name: [node for node in site.nodes if node.endswith(("/qk", "/softmax", "/pv"))]
        for site in structure.attention
    }
    return len(match_attention(layers, cores).kernels)


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_q_k_and_v_are_not_merged(kind: str, tmp_path: Path) -> None:
    assert most_merged(*compiled(tiny_vit(), "plain", tmp_path, kind)) == 3
    layers, structure = compiled(tiny_vit(), "separate-qkv", tmp_path, kind)
    assert most_merged(layers, structure) == 1
    assert fused(layers, structure) == 2


def test_parts_of_one_linear_are_not_merged_again(tmp_path: Path) -> None:
    layers, structure = compiled(eva(qkv_fused=True), "separate-qkv", tmp_path)
    assert all(len(linear.nodes) == 3 for linear in structure.linears if linear.role == "qkv")
    assert most_merged(layers, structure) == 1
    assert fused(layers, structure) == 2


def test_rotary_positions_leave_no_sign_change_and_stay_fused(tmp_path: Path) -> None:
    def turning(layers: list[PlanLayer]) -> int:
        return sum("Neg" in layer.name for layer in layers)

    plain, _ = compiled(eva(qkv_fused=True), "plain", tmp_path)
    layers, structure = compiled(eva(qkv_fused=True), "baked-positions", tmp_path)
    assert turning(plain) > 0
    assert turning(layers) == 0
    assert fused(layers, structure) == 2


@pytest.mark.parametrize(("name", "count"), [("fp32-scores", 0), ("fp32-block-1", 1), ("fp32", 0)])
def test_what_forms_in_float32_cost_in_fusion(name: str, count: int, tmp_path: Path) -> None:
    layers, structure = compiled(tiny_vit(), name, tmp_path)
    assert fused(layers, structure) == count
    assert "fp32" in count_kernels(layers).gemms


def test_weights_are_widened_when_the_engine_is_built(tmp_path: Path) -> None:
    layers, _ = compiled(tiny_vit(), "fp32", tmp_path)
    kernels = count_kernels(layers)
    assert set(kernels.gemms) == {"fp32"}
    assert kernels.casts == 0
