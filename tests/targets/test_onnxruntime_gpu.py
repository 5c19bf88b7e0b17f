"""ONNX Runtime on NVIDIA GPUs: refused with the true reason, and audited by what each provider ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import onnxruntime_gpu as fake
from tests.fakes.fixtures import CARD, ORIN, Machine
from tests.graphs import expected, images
from vitdeploy import precision as precisions
from vitdeploy import targets
from vitdeploy.errors import CompileError, RecipeError, TargetUnavailable, UsageError
from vitdeploy.graph.onnx_session import compare
from vitdeploy.onnx_export import disagreement
from vitdeploy.recipe import Batch, TargetSpec
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._onnxruntime import availability
from vitdeploy.targets._onnxruntime.attention_kernels import parse_choices
from vitdeploy.targets._onnxruntime.layers import read_layers

SITES, NORMS = 2, 5  # of the tiny ViT
GPUS = ("cuda", "trt-rtx")


def target(device: str = "cuda", **options: Any) -> Target:
    return targets.find(TargetSpec(kind="onnxruntime", device=device, **options))


def why(device: str = "cuda") -> tuple[str, str]:
    problem = target(device).unavailable()
    assert problem is not None
    return problem.why, problem.fix


def compiled(found: Target, given: Bundle) -> Compiled:
    return found.compile(given, given.graph.parent)


# ------------------------------------------------------------------------------------------ what this machine lacks


@pytest.mark.parametrize("device", GPUS)
def test_without_a_gpu_it_makes_bundles_and_says_why(device: str, no_gpu: None) -> None:
    """This is the real ONNX Runtime, on a machine without NVIDIA's driver."""
    found = target(device)
    reason, fix = why(device)
    assert reason.startswith("this machine has no NVIDIA GPU (NVIDIA's driver does not load: ")
    assert fix == "Export a bundle here, and finish it on the machine with the GPU with: vitdeploy compile DIR"
    assert (found.built_on_device, found.runs_on) == (True, "cuda")
    assert not target("cpu").built_on_device
    with pytest.raises(TargetUnavailable, match="no NVIDIA GPU") as caught:
        found.require_to_compile()
    assert "--host ssh://USER@HOST" in str(caught.value.fix)


@pytest.mark.parametrize("device", GPUS)
def test_nothing_is_opened_without_a_gpu(device: str, no_gpu: None, bundle: Callable[..., Bundle]) -> None:
    given = bundle(target("cuda"), "fp32")
    made = Compiled(given.graph.parent, "graph.onnx", "onnxruntime")
    with pytest.raises(TargetUnavailable, match="no NVIDIA GPU"):
        target(device).open(made, given.numbers, None)
    with pytest.raises(TargetUnavailable, match="no NVIDIA GPU"):
        target(device).audit(given, made)


def test_the_real_cpu_package_is_refused_although_it_only_warns(device: Callable[..., Any]) -> None:
    """ONNX Runtime's own package for CPUs, which opens a session for CUDA on the CPU."""
    device(**CARD)
    reason, fix = why()
    assert reason.endswith("is the package for CPUs, without CUDA")
    assert fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'vitdeploy[cuda]'"


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning:onnxruntime")
def test_a_real_session_that_falls_back_is_refused(bundle: Callable[..., Bundle]) -> None:
    from vitdeploy.graph.onnx_provider import Provider
    from vitdeploy.graph.onnx_session import OnnxSession

    given = bundle(target("cuda"), "fp32")
    with pytest.raises(TargetUnavailable, match="opened the model on CPU instead of CUDA"):
        OnnxSession(given.graph, provider=Provider("CUDAExecutionProvider", "CUDA"))


def test_two_packages_in_one_folder_are_named(gpu_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine("no cuda")
    monkeypatch.setattr(availability.metadata, "version", lambda name: "1.31.1")
    assert why()[0].startswith("onnxruntime and onnxruntime-gpu are both installed")


def test_libraries_that_are_missing_are_named_from_the_log(gpu_machine: Machine, capfd: Any) -> None:
    gpu_machine("libraries")
    reason, fix = why()
    assert reason == (
        "ONNX Runtime's CUDA provider does not load: libcublasLt.so.13: cannot open shared object file; it needs "
        "cuDNN 9.* and CUDA 13.*"
    )
    assert fix.endswith("pip install 'vitdeploy[cuda]'")
    assert capfd.readouterr() == ("", ""), "--json has one object on standard output"


def test_a_missing_plugin_is_named(gpu_machine: Machine) -> None:
    gpu_machine(plugin=False)
    expected_reason = "TensorRT-RTX's plug-in for ONNX Runtime is not installed", "pip install 'vitdeploy[trt-rtx]'"
    assert why("trt-rtx") == expected_reason


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("driver", "does not load: libcuda.so.1: cannot open shared object file: No such file or directory"),
        ("no devices", "finds no GPU here"),
    ],
)
def test_a_plugin_that_does_not_work_says_why(gpu_machine: Machine, fault: str, reason: str) -> None:
    gpu_machine(fault)
    assert why("trt-rtx")[0] == f"the plug-in onnxruntime-ep-nv-tensorrt-rtx 0.5.0 {reason}"


def test_the_plugin_is_for_rtx_gpus(gpu_machine: Machine) -> None:
    gpu_machine(gpu=ORIN)
    assert (
        why("trt-rtx")[0]
        == "TensorRT-RTX's plug-in does not run on Orin (sm87): it takes sm86, sm89 and sm120 or newer"
    )
    gpu_machine(gpu={**CARD, "name": "NVIDIA GeForce RTX 5090", "sm": 120})
    assert target("trt-rtx").unavailable() is None


def test_an_unknown_device_names_those_that_there_are() -> None:
    assert why("gpu")[0] == "ONNX Runtime has no device gpu: it has CPU, cuda, trt-rtx"
    assert [target(name).device for name in ("cpu", "CUDA", "TRT-RTX")] == ["CPU", "cuda", "trt-rtx"]


@pytest.mark.parametrize("device", ["CPU", "trt-rtx"])
@pytest.mark.parametrize("option", [{"tf32": False}, {"sdpa_kernel": 2}])
def test_options_of_cuda_are_for_cuda(device: str, option: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="are for the device cuda"):
        target(device, **option)


def test_precisions_differ_by_device() -> None:
    offered = {device: precisions.names_for(target(device)) for device in ("CPU", *GPUS)}
    assert offered["CPU"] == ["fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights"]
    assert offered["cuda"] == ["fp32", "fp16", "bf16"]
    assert offered["trt-rtx"] == ["fp32", "fp16", "bf16", "int8"]
    with pytest.raises(UsageError, match=r"onnxruntime cannot do int8 on the device cuda. It can do fp32, fp16, bf16"):
        precisions.check("int8", target("cuda"))


def test_bf16_needs_an_ampere_gpu(gpu_machine: Machine) -> None:
    gpu_machine(gpu={**CARD, "name": "Tesla T4", "sm": 75})
    with pytest.raises(UsageError, match=r"Tesla T4 \(sm75\) has no BF16 units.*sm80. It can do fp32, fp16"):
        precisions.check("bf16", target("cuda"))


# ------------------------------------------------------------------------------------------ the CUDA provider


def test_cuda_in_fp16_runs_flash_attention(gpu_machine: Machine, bundle: Callable[..., Bundle], vit: Any) -> None:
    state = gpu_machine()
    found = target()
    given = bundle(found, "fp16")
    made = compiled(found, given)
    audit = made.audit
    assert audit is not None
    assert set(audit.attention.kernels.values()) == {"MultiHeadAttention (flash attention)"}
    assert (audit.attention.fused, audit.attention.evidence) == (SITES, "compiled")
    assert audit.layernorm.fused >= NORMS
    assert audit.linears.fp16 == len(given.structure.linears), audit.layers
    assert (list(audit.providers), audit.elsewhere, audit.doubts) == (["CUDA"], {}, ())
    assert audit.threads is None
    assert state.opened[-1] == (fake.CUDA, {"use_tf32": "1", "sdpa_kernel": "0"})
    with found.open(made, given.numbers, None) as session:
        assert session.effective["provider"] == "CUDA, CPU"
        assert session.effective["engine"] == made.backend
        assert session.profile({"input": images()}) is None, "the profiler measures launches, not kernels"
        outputs = session.run({"input": images()})
    (reference,), (answer,) = expected(vit, images()).values(), outputs.values()
    assert np.abs(reference - answer).max() < 0.01


def test_cuda_does_not_fuse_few_tokens_in_fp32(gpu_machine: Machine, bundle: Callable[..., Bundle], vit: Any) -> None:
    """ONNX Runtime's default takes no fused kernel in float32 below 256 tokens. The option lets it."""
    state = gpu_machine()
    found = target()
    given = bundle(found, "fp32")
    audit = compiled(found, given).audit
    assert audit is not None
    assert audit.attention.fused == 0
    assert all("as product, softmax and product on the GPU (MATH)" in u.reason for u in audit.attention.unfused)
    allowed = target(sdpa_kernel=2, tf32=False)
    made = compiled(allowed, given)
    assert made.audit is not None
    assert set(made.audit.attention.kernels.values()) == {"MultiHeadAttention (memory-efficient attention)"}
    assert state.opened[-1][1] == {"use_tf32": "0", "sdpa_kernel": "2"}
    with allowed.open(made, given.numbers, None) as session:
        assert disagreement(compare(expected(vit, images()), session.run({"input": images()}), batch=1)) is None


def test_a_part_on_the_cpu_is_refused_by_name(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    state = gpu_machine()
    state.only_on_cpu.add("MultiHeadAttention")
    found = target()
    given = bundle(found, "fp16")
    with pytest.raises(CompileError) as caught:
        compiled(found, given)
    site = given.structure.attention[0].name
    assert str(caught.value).startswith(f"{site} and 1 more would run on the CPU, not on CUDA: MultiHeadAttention")
    assert "--precision fp32 or fp16" in str(caught.value.fix)
    audit = found.audit(given, Compiled(given.graph.parent, "graph.onnx", "onnxruntime"))
    assert audit.attention.fused == 0
    assert {u.reason for u in audit.attention.unfused} == {"MultiHeadAttention runs on the CPU"}
    assert audit.providers["CPU"] == SITES
    assert audit.doubts[0].startswith(
        f"{SITES} nodes run on the CPU, with copies from and to the GPU around them: 2 Multi"
    )


def test_int8_of_the_cpu_would_leave_the_gpu(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    """The graph that is made for CPUs: its integer operators have no CUDA kernel."""
    gpu_machine()
    given = bundle(target("CPU"), "int8")
    with pytest.raises(CompileError, match="would run on the CPU, not on CUDA: MatMulIntegerToFloat"):
        compiled(target(), given)


def test_an_attention_whose_kernel_is_not_printed_is_not_counted(
    gpu_machine: Machine, bundle: Callable[..., Bundle]
) -> None:
    gpu_machine("silent")
    audit = compiled(target(), bundle(target(), "fp16")).audit
    assert audit is not None
    assert audit.attention.fused == 0
    assert all(u.reason.endswith("did not print by which kernel") for u in audit.attention.unfused)


def test_what_the_provider_prints_stays_off_standard_output(
    gpu_machine: Machine, bundle: Callable[..., Bundle], capfd: Any
) -> None:
    gpu_machine()
    compiled(target(), bundle(target(), "fp16"))
    assert capfd.readouterr().out == ""


def test_a_dynamic_batch_runs_on_cuda(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    gpu_machine()
    found = target()
    given = bundle(found, "fp16", "dynamo-batch")
    made = compiled(found, given)
    assert made.audit is not None
    assert (made.audit.attention.fused, made.audit.doubts) == (SITES, ())
    with found.open(made, given.numbers, None) as session:
        assert [len(next(iter(session.run({"input": images(n)}).values()))) for n in (1, 4)] == [1, 4]


def test_lines_of_the_provider_are_read_with_colours_and_without() -> None:
    lines = (
        "\x1b[36mOperator=MultiHeadAttention Node=/blocks.0/attn core DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
        "Operator=MultiHeadAttention Node=b DataType=bf16 SdpaKernel=MATH\n"
        "AttentionKernelOptions: FLASH_ATTENTION=1 MATH=1\n"
    )
    assert parse_choices(lines) == {"/blocks.0/attn core": "FLASH_ATTENTION", "b": "MATH"}


# ------------------------------------------------------------------------------------------ TensorRT-RTX's plug-in

rtx = pytest.mark.skipif(
    targets.find(TargetSpec(kind="tensorrt-rtx")).unavailable() is not None, reason="TensorRT-RTX is not installed here"
)


@rtx
def test_the_plugins_layers_are_matched(gpu_machine: Machine, bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """The layers are those that the real TensorRT-RTX makes of this graph."""
    state = gpu_machine()
    found = target("trt-rtx")
    given = bundle(found, "fp16")
    made = compiled(found, given)
    audit = made.audit
    assert audit is not None
    assert audit.attention.fused == SITES
    assert all("mha" in kernel for kernel in audit.attention.kernels.values())
    directly = targets.find(TargetSpec(kind="tensorrt-rtx", device="sm86")).compile(given, tmp_path).audit
    assert directly is not None
    assert audit.layernorm.fused == directly.layernorm.fused
    assert audit.attention == directly.attention
    assert audit.providers == {"NvTensorRTRTX": 1}
    assert audit.doubts == ()
    assert audit.quantized is not None
    assert (audit.quantized.evidence, audit.quantized.macs_pct) == ("graph", 100)
    assert made.backend.endswith("with onnxruntime-ep-nv-tensorrt-rtx 0.5.0")
    assert state.registered.keys() == {fake.RTX}
    with found.open(made, given.numbers, None) as session:
        assert session.effective["provider"] == "NvTensorRTRTX, CPU"
        assert session.effective["engine"] == made.backend
        session.run({"input": images()})


def test_a_node_that_the_plugin_leaves_is_refused(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    state = gpu_machine("no trace")
    state.only_on_cpu.add("LayerNormalization")
    found = target("trt-rtx")
    given = bundle(found, "fp16")
    with pytest.raises(CompileError, match="would run on the CPU, not on TensorRT-RTX: LayerNormalization"):
        compiled(found, given)


def test_without_a_trace_fusion_is_unknown(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    gpu_machine("no trace")
    audit = compiled(target("trt-rtx"), bundle(target("trt-rtx"), "fp16")).audit
    assert audit is not None
    assert audit.attention.fused == 0
    assert audit.doubts == ("the plug-in wrote no trace of its layers: nothing is known about fusion",)


def test_the_plugin_takes_one_shape(gpu_machine: Machine, bundle: Callable[..., Bundle]) -> None:
    gpu_machine()
    given = bundle(target("trt-rtx"), "fp16", "dynamo-batch")
    assert given.batch == Batch.model_validate("1:2:4")
    with pytest.raises(CompileError, match="takes one shape only"):
        compiled(target("trt-rtx"), given)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"traceEvents": []}'])
def test_a_trace_without_layers_has_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(text)
    assert read_layers(tmp_path / "trace") == []


def test_names_without_brackets_are_read_too(tmp_path: Path) -> None:
    event = {"name": "_gemm_mha_v2", "cat": "nv::trt::layer", "args": {"onnx_nodes": "a/qk;a/softmax\x1fa/pv"}}
    (tmp_path / "trace").write_text(json.dumps({"traceEvents": [event]}))
    assert [layer.onnx_nodes for layer in read_layers(tmp_path / "trace")] == [("a/qk", "a/softmax", "a/pv")]
