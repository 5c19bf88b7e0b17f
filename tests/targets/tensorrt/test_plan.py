"""Reading TensorRT's layer plan: recorded build logs, the older form of the lines, and damage."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.kernels import count_kernels
from vitdeploy.targets._tensorrt.log import BuildLog
from vitdeploy.targets._tensorrt.plan import (
    PlanLayer,
    PlanTensor,
    find_float32,
    is_fused_attention,
    match_attention,
    match_linears,
    match_norms,
    parse_plan,
)

FIXTURES = Path(__file__).parent / "fixtures"
NODES = json.loads((FIXTURES / "nodes.json").read_text())
LINES = {name: gzip.decompress((FIXTURES / f"{name}.txt.gz").read_bytes()).decode().split("\n") for name in NODES}
FP16 = LINES["deit-tiny-fp16"]

# The same two layers as TensorRT 10.3 writes them: `Format/Datatype`, constants among the inputs, separators.
OLDER = (
    "Name: _gemm_mha_v2_myl0_17, LayerType: kgen, Inputs: [ { Name: q_1, Dimensions: [4,40,64], Format/Datatype: Half }"
    ", { Name: k_1, Dimensions: [4,64,40], Format/Datatype: Half }], Outputs: [ { Name: o, Dimensions: [4,40,64], "
    "Format/Datatype: Half }], TacticName: _gemm_mha_v2_0x957a, StreamId: 0, "
    "Metadata: [ONNX Layer: /l.0/mha/qk]\x1e[ONNX Layer: /l.0/mha/softmax]\x1e[ONNX Layer: /l.0/mha/pv]\n"
    "Name: /l.0/mha/out/MatMul_myl0_18, LayerType: gemm, Inputs: [ { Name: o, Location: Device, Dimensions: [1,40,256]"
    ", Format/Datatype: Row major Int8 format }, { Name: w_dconst, Dimensions: [256,256], Format/Datatype: Int8 }, "
    "{ Name: alpha, Dimensions: [1], Format/Datatype: Float }], Outputs: [ { Name: y, Dimensions: [1,40,256], "
    "Format/Datatype: Half }], TacticName: sm80_xmma_gemm_i8f16_tn, StreamId: 0, "
    "Metadata: [ONNX Layer: /l.0/mha/out/MatMul]"
)


@pytest.mark.parametrize(
    ("name", "fused", "linears"),
    [
        ("deit-tiny-fp32", 0, {"fp32": 50}),
        ("deit-tiny-fp16", 12, {"fp16": 50}),
        ("deit-tiny-int8-linears", 12, {"int8": 48, "fp16": 2}),  # patch embedding and head were left alone
        ("deit-tiny-int8-every-matmul", 12, {"int8": 48, "fp16": 2}),
        ("deit-tiny-fp8-linears", 12, {"fp8": 48, "fp16": 2}),
        ("deit-2-blocks-int8-weights", 2, {"fp16": 10}),  # widened before they multiply
        ("swin-tiny-fp16", 2, {"fp16": 53}),
    ],
)
def test_recorded_plans(name: str, fused: int, linears: dict[str, int]) -> None:
    layers = parse_plan(LINES[name])
    sites = NODES[name]["attention"]

    fusion = match_attention(layers, sites)
    assert len(fusion.kernels) == fused
    assert fusion.kernels.keys() | fusion.unfused.keys() == sites.keys()
    assert len(set(fusion.kernels.values())) == fused, "no kernel stands for two sites"
    assert sum(map(is_fused_attention, layers)) == fused

    precisions = match_linears(layers, {linear: tuple(nodes) for linear, nodes in NODES[name]["linears"].items()})
    assert Counter(precisions.values()) == linears


def test_fields_of_a_layer() -> None:
    layers = parse_plan((FIXTURES / "block0-fp16.txt").read_text().split("\n"))
    linear, _, attention = layers[:3]

    assert attention.name == "_gemm_mha_v2_myl0_5"
    assert attention.kind == "kgen"
    assert attention.tactic == "_gemm_mha_v2_0xba7f36183818e6fd55d44d3b60d0f5af"
    assert attention.onnx_nodes == ("node_scaled_dot_product_attention", "node_Softmax_61", "node_MatMul_60")
    assert attention.inputs[1] == PlanTensor("__myln_k_arg__bb1_8_myl0", "Half", (3, 64, 197))
    assert attention.constants == ()
    assert [tensor.shape for tensor in linear.constants] == [(1, 1, 576), (1, 192, 576)]
    assert linear.kind == "runtime_fusion"
    assert linear.tactic == ""


def test_reasons_name_the_kernels() -> None:
    name = "deit-tiny-fp32"
    fusion = match_attention(parse_plan(LINES[name]), NODES[name]["attention"])

    reason = fusion.unfused["node_Softmax_61"]
    assert "node_Softmax_61 in __myl_MaxrSubExpSumDivMul_myl0_7 (kgen)" in reason
    assert "node_MatMul_60 in node_MatMul_60_myl0_5 (gemm)" in reason, "the product, not the padding around it"
    assert find_float32(parse_plan(LINES[name]), NODES[name]["attention"]) >= fusion.unfused.keys()
    swin = NODES["swin-tiny-fp16"]["attention"]
    assert not find_float32(parse_plan(LINES["swin-tiny-fp16"]), swin)


def test_a_float32_mask_does_not_make_a_float32_attention() -> None:
    half, mask = PlanTensor("x", "Half", (4, 4)), PlanTensor("mask", "Float", (4, 4))
    layers = [
        PlanLayer("qk_myl0_1", "gemm", ("qk",), (half, half)),
        PlanLayer("__myl_AddSoftmax_myl0_2", "kgen", ("softmax",), (half, mask)),
        PlanLayer("pv_myl0_3", "gemm", ("pv",), (half, half)),
    ]
    reason = match_attention(layers, {"a": ("qk", "softmax", "pv")}).unfused["a"]
    assert reason.startswith("runs as 3 kernels")
    assert not find_float32(layers, {"a": ("qk", "softmax", "pv")})


def test_what_is_not_there_is_not_fused() -> None:
    layers = parse_plan(FP16)
    site = ("node_MatMul_60", "node_Softmax_61", "node_scaled_dot_product_attention")

    assert match_attention(layers, {"a": ()}).unfused == {"a": "no ONNX node names to look for"}
    assert match_attention(layers, {"a": ("x", "y")}).unfused == {"a": "not found in the plan: x, y"}
    assert "x in no kernel" in match_attention(layers, {"a": (*site, "x")}).unfused["a"]
    assert match_attention([], {"a": site}).kernels == {}
    assert match_linears(layers, {"a": ("x",), "b": (), "softmax": ("node_Softmax_61",)}) == dict.fromkeys(
        ("a", "b", "softmax")
    )
    assert match_norms(layers, {"a": ()}).kernels == {}


def test_sites_are_matched_by_name_not_by_order() -> None:
    layers = parse_plan(FP16)
    sites = NODES["deit-tiny-fp16"]["attention"]
    swapped = dict(reversed(sites.items()))

    assert match_attention(layers[::-1], swapped).kernels == match_attention(layers, sites).kernels
    lost = [replace(layer, onnx_nodes=()) if is_fused_attention(layer) else layer for layer in layers]
    assert match_attention(lost, sites).kernels == {}, "12 attention kernels, and no name that says whose"


def test_one_kernel_of_another_kind_is_not_counted() -> None:
    site = ("qk", "softmax", "pv")
    unknown = PlanLayer("__myl_DotMaxrExpDot_myl0_1", "kgen", site, tactic="__myl_DotMaxrExpDot_0x1")
    assert "not a known attention kernel" in match_attention([unknown], {"a": site}).unfused["a"]


@pytest.mark.parametrize(
    ("name", "tactic", "fused"),
    [
        ("_gemm_mha_v2_myl0_5", "_gemm_mha_v2_0xba7f", True),
        ("_gemm_mha_v2_myl0_5", "", True),
        ("_gemv_mha_v1_myl0_5", "_gemv_mha_v1_0x1", True),
        ("__mye8037_gemm_mha_v2", "", True),
        ("/encoder/mha/qk/MatMul_myl0_16", "sm80_xmma_gemm_f16f16", False),
        ("mha_v2/MatMul_myl0_16", "", False),
        ("_gemm_mha_v2_myl0_5", "__myelin_CASK_STUB", False),
    ],
)
def test_attention_kernels_are_told_from_user_names(name: str, tactic: str, fused: bool) -> None:
    assert is_fused_attention(PlanLayer(name, "kgen", tactic=tactic)) is fused


def test_norms_are_one_kernel_or_tell_their_kernels() -> None:
    fusion = match_norms(parse_plan(FP16), NODES["deit-tiny-fp16"]["norms"])
    assert len(fusion.kernels) == 24
    # The class token is selected in the middle of the last norm, which TensorRT splits there.
    assert list(fusion.unfused) == ["node_layer_norm_24"]
    assert fusion.unfused["node_layer_norm_24"].startswith("ends inside the product of one token")


def test_a_norm_of_one_token_may_end_inside_the_product_that_reads_it() -> None:
    """TensorRT-RTX 1.7 on DeiT-Tiny, whose last block computes only the class token."""
    norm, linear = "blocks.11.norm2/LayerNormalization", "blocks.11.mlp.fc1/MatMul"
    layers = [
        PlanLayer("__myl_GathCastMeanSubMulMean_myl0_112", "kgen", (norm,)),
        PlanLayer("__myl_AddSqrtDivMulCastMulMoveAddReshMulSum_myl0_113", "kgen", (norm, linear)),
    ]
    fusion = match_norms(layers, {norm: (norm,)})
    assert fusion.kernels == {}
    assert fusion.unfused[norm] == (
        "ends inside the product of one token that reads it (__myl_AddSqrtDivMulCastMulMoveAddReshMulSum_myl0_113), "
        "behind __myl_GathCastMeanSubMulMean_myl0_112"
    )


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        (  # Hiera writes what the norm gives as windows
            {
                "__myl_ReshAddCastMeanSubMulMean_myl0_12": "before",
                "__myl_AddSqrtDivMulCastMulAddReshTran_myl0_13": "after",
            },
            "ends inside what follows it (__myl_AddSqrtDivMulCastMulAddReshTran_myl0_13), "
            "behind __myl_ReshAddCastMeanSubMulMean_myl0_12",
        ),
        (  # SwinV2 merges patches and then normalises
            {"__myl_FcCast_myl0_51": "before", "__myl_ReshMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_52": ""},
            "begins inside the product before it (__myl_FcCast_myl0_51), "
            "followed by __myl_ReshMeanSubMulMeanAddSqrtDivMulCastMulAdd_myl0_52",
        ),
        (
            {"__myl_CastMeanSubMulMean_myl0_26": "", "__myl_AddSqrtDivCastMulAdd_myl0_27": ""},
            "runs as 2 kernels: __myl_CastMeanSubMulMean_myl0_26, __myl_AddSqrtDivCastMulAdd_myl0_27",
        ),
    ],
)
def test_a_norm_of_two_kernels_says_what_they_compute_besides(kernels: dict[str, str], why: str) -> None:
    """TensorRT-RTX 1.7 on Hiera, SwinV2 and CSATv2."""
    layers = [PlanLayer(name, "kgen", ("norm", other) if other else ("norm",)) for name, other in kernels.items()]
    assert match_norms(layers, {"norm": ("norm",)}).unfused == {"norm": why}


def test_a_norm_of_which_a_part_is_not_found_is_not_fused() -> None:
    layers = [PlanLayer("__myl_MeanSubMul_myl0_1", "kgen", ("norm/mean", "norm/divide"))]
    assert match_norms(layers, {"norm": ("norm/mean", "norm/divide")}).kernels == {"norm": layers[0].name}
    fusion = match_norms(layers, {"norm": ("norm/mean", "norm/variance")})
    assert fusion.kernels == {}
    assert "norm/variance in no kernel" in fusion.unfused["norm"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_products_the_one_that_carries_more_of_a_linear_is_its_own(order: int) -> None:
    """A neighbour takes the bias with it, so the name of the bias stands at both kernels."""
    neighbour = PlanLayer("__myl_FcAdd_myl0_1", "gemm", ("a/MatMul", "b/Add"), (PlanTensor("x", "Float", (64, 64)),))
    own = PlanLayer("__myl_FcAdd_myl0_2", "gemm", ("b/MatMul", "b/Add"), (PlanTensor("x", "Half", (64, 64)),))
    layers = [neighbour, own][::order]
    assert match_linears(layers, {"b": ("b/MatMul", "b/Add")}) == {"b": "fp16"}
    assert match_linears(layers, {"b": ("b/Add", "b/MatMul")}) == {"b": "fp16"}


def test_a_scale_beside_the_operands_is_not_what_a_product_multiplies_in() -> None:
    inputs = (PlanTensor("scale", "Float", (1,)), PlanTensor("x", "Half", (64, 64)))
    layer = PlanLayer("__myl_FcMul_myl0_1", "gemm", ("fc",), inputs, (PlanTensor("weight", "Int8", (64, 64)),))
    assert match_linears([layer], {"fc": ("fc",)}) == {"fc": "fp16"}


def test_a_generated_convolution_is_a_product() -> None:
    """As TensorRT-RTX names a 1×1 convolution with its activation; the kind says nothing of either."""
    inputs = (PlanTensor("x", "Half", (1, 8, 112, 112)),)
    weight = (PlanTensor("weight", "Half", (32, 8, 1, 1)),)
    layer = PlanLayer("__myl_CorrMulAddMinMaxMul_myl0_4", "runtime_fusion", ("conv", "act"), inputs, weight)
    assert match_linears([layer], {"conv": ("conv",)}) == {"conv": "fp16"}


def test_older_form() -> None:
    attention, linear = layers = parse_plan(OLDER.split("\n"))

    assert attention.onnx_nodes == ("/l.0/mha/qk", "/l.0/mha/softmax", "/l.0/mha/pv")
    assert [tensor.dtype for tensor in attention.inputs] == ["Half", "Half"]
    assert linear.inputs[0] == PlanTensor("o", "Row major Int8 format", (1, 40, 256))
    assert match_attention(layers, {"a": attention.onnx_nodes}).kernels == {"a": "_gemm_mha_v2_myl0_17"}
    assert match_linears(layers, {"out": linear.onnx_nodes}) == {"out": "int8"}


CONV = (  # a convolution of the kernel library, and the reformat kernel that quantizes for it, as 10.x writes them
    "Name: patch/Q, LayerType: Reformat, Inputs: [ {{ Name: images, Location: Device, Dimensions: [1,3,32,32], "
    "Format/Datatype: Row major linear FP32 }}], Outputs: [ {{ Name: q, Location: Device, Dimensions: [1,3,32,32], "
    "Format/Datatype: Row major Int8 format }}], ParameterType: Reformat, Origin: QDQ, TacticValue: 0x3ea, "
    "StreamId: 0, Metadata: [ONNX Layer: patch/Q]\n"
    "Name: w + w/Q + patch, LayerType: CaskConvolution, Inputs: [ {{ Name: q, Location: Device, "
    "Dimensions: [1,3,32,32], Format/Datatype: {activation} }}, {{ Name: r, Dimensions: [1,64,8,8], "
    "Format/Datatype: Half }}], Outputs: [ {{ Name: y, Dimensions: [1,64,8,8], Format/Datatype: Half }}], "
    'ParameterType: Convolution, Kernel: [4,4], Groups: 1, Weights: {{"Type": "{weights}", "Count": 3072}}, '
    'Bias: {{"Type": "Float", "Count": 64}}, HasBias: 1, TacticName: sm80_xmma_fprop_implicit_gemm, '
    "TacticValue: 0x9a, StreamId: 0, Metadata: [ONNX Layer: w/Q]\x1e[ONNX Layer: patch]"
)


@pytest.mark.parametrize(
    ("activation", "weights", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "Int8", "int8"),
        ("Row major Int8 format", "Float", "fp32"),  # what only stores INT8 multiplies in what the weights are
        ("Half", "Half", "fp16"),
        ("N/A due to dynamic shapes", "Half", "fp16"),
    ],
)
def test_weights_beside_the_tensors_count(activation: str, weights: str, precision: str) -> None:
    layers = parse_plan(CONV.format(activation=activation, weights=weights).split("\n"))
    assert layers[1].constants == (PlanTensor("weights", weights, (3072,)),)
    assert match_linears(layers, {"patch": ("patch",)}) == {"patch": precision}
    counted = count_kernels(layers)
    assert (counted.casts, counted.reformats, counted.gemms) == (1, 0, {precision: 1})


@pytest.mark.parametrize(("dtype", "casts"), [("Half", 1), ("Float", 0), ("N/A due to dynamic shapes", 0)])
def test_a_reformat_is_a_cast_only_if_both_types_are_known_and_differ(dtype: str, casts: int) -> None:
    tensors = [PlanTensor("x", "Float", (1, 4)), PlanTensor("y", dtype, (1, 4))]
    counted = count_kernels([PlanLayer("x/copy", "Reformat", inputs=(tensors[0],), outputs=(tensors[1],))])
    assert (counted.casts, counted.reformats) == (casts, 1 - casts)


def test_the_inspector_lists_such_weights_too() -> None:
    activation = {"Dimensions": [1, 3, 32, 32], "Format/Datatype": "Int8"}
    entry = {"Name": "c", "LayerType": "CaskConvolution", "Inputs": [activation],
             "Weights": {"Type": "Int8", "Count": 864}, "Metadata": "[ONNX Layer: patch]"}  # fmt: skip
    layers = parse_inspector(json.dumps({"Layers": [entry]}))
    assert match_linears(layers, {"patch": ("patch",)}) == {"patch": "int8"}


def test_names_with_brackets_and_spaces() -> None:
    names = ("/a b/[x,y] qk}", "layers[0]", "plain")
    metadata = "".join(f"[ONNX Layer: {name}]" for name in names)
    (layer,) = parse_plan([f"Name: x, LayerType: kgen, Inputs: [], Outputs: [], TacticName: t, Metadata: {metadata}"])
    assert layer.onnx_nodes == names


def test_the_last_plan_counts() -> None:
    assert parse_plan(["Layers:", *FP16, "[V] [TRT] Layers:", *OLDER.split("\n")]) == parse_plan(OLDER.split("\n"))


def test_build_log_keeps_the_plan_and_the_errors_only() -> None:
    log = BuildLog()
    for number in range(10_000):
        log.add("VERBOSE", f"Registering layer: node_{number}")
    log.add("VERBOSE", "Layers:\n" + OLDER + "\n\nI/O Tensors:\n Name: input, IOMode: Input")
    log.add("ERROR", "IBuilder: it is broken\n")

    assert parse_plan(log.layer_plan.split("\n")) == parse_plan(OLDER.split("\n")), "record separators survive"
    assert (log.lines.get_nowait(), log.lines.empty()) == ("ERROR: IBuilder: it is broken", True)
    assert log.last_errors() == "ERROR: IBuilder: it is broken"


@given(st.data())
def test_damaged_lines_never_crash_and_never_invent(data: st.DataObject) -> None:
    line = data.draw(st.sampled_from([line for line in FP16 if line.startswith("Name: ")]))
    (whole,) = parse_plan([line])
    start = data.draw(st.integers(0, len(line)))
    stop = data.draw(st.integers(start, len(line)))
    rubbish = data.draw(st.text(max_size=30))

    for damaged in (line[:start], line[:start] + line[stop:], line[:start] + rubbish + line[stop:]):
        layers = parse_plan([damaged])
        sites = {"site": whole.onnx_nodes}
        match_attention(layers, sites)
        match_norms(layers, sites)
        match_linears(layers, sites)
    for layer in parse_plan([line[:start]]):
        assert set(layer.onnx_nodes) <= set(whole.onnx_nodes), "a name that was cut off is dropped, not guessed"


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["Half", "[1,-1]", "[ONNX Layer: a]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Layers", "Name", "LayerType", "Inputs", "Dimensions", "Format/Datatype", "Metadata"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(_JSON.map(json.dumps) | st.text(max_size=40))
def test_whatever_the_inspector_says_gives_layers_or_nothing(text: str) -> None:
    layers = parse_inspector(text)
    assert all(isinstance(layer.name, str) and isinstance(layer.kind, str) for layer in layers)
    match_attention(layers, {"site": ("a",)})
    match_linears(layers, {"site": ("a",)})


@given(st.lists(st.text(st.sampled_from("Name: ,LayerTypInputs[]{}Metadata ONX\x1e\n0-"), max_size=200), max_size=5))
def test_rubbish_gives_layers_or_nothing(lines: list[str]) -> None:
    assert isinstance(parse_plan(lines), list)
