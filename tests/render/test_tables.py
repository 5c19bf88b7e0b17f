from typing import Any

import pytest
from rich.console import RenderableType

from tests.evidence import audit, bench, evaluation
from vitdeploy.artifact import Trial
from vitdeploy.cli.guard import guarded_console
from vitdeploy.evidence import (
    Availability,
    BlockGroup,
    Check,
    FileEntry,
    Gate,
    KernelAudit,
    LayerSensitivity,
    LinearGroup,
    Outline,
    Sensitivity,
)
from vitdeploy.render import bench_tables as speed
from vitdeploy.render import numbers, tables
from vitdeploy.render.summary import summarize

GATE = Gate(
    verdict="fail",
    checks=(
        Check(
            name="attention fused",
            observed=83.3,
            limit=100.0,
            status="fail",
            why="10 of 12 [red]sites[/red] " + "x" * 60,
        ),
        Check(name="speed-up", observed=None, limit=1.2, status="invalid", why="doubtful"),
    ),
)


def shown(table: RenderableType, width: int = 80) -> str:
    console = guarded_console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    return text


def test_audit() -> None:
    found = audit(10, files=(FileEntry(path="graph.onnx", bytes=23_456_789, sha256="x"),), doubts=("kernels unnamed",))
    text = shown(tables.audit(found))
    for part in (
        "openvino int8",
        "10 of 12",
        "blocks.10.attn and 1 more",
        "the scale is not constant",
        "49 int8, 1 fp32",
        "22.4 MiB",
    ):
        assert part in text
    assert "kernels unnamed" in text
    assert "blocks.0.attn and 13 more" in shown(tables.audit(audit(0, 14)))


def test_tokens_by_block() -> None:
    merged = audit(tokens=(197, 197, 137, 137, 137, 71))
    assert "197 (blocks 0–1), 137 (2–4), 71 (5)" in shown(tables.audit(merged))
    assert "65 (block 0), – (1)" in shown(tables.audit(audit(tokens=(65, None))))
    assert "tokens by block" not in shown(tables.audit(audit()))
    each = shown(tables.audit(audit(tokens=tuple(range(197, 50, -13)))))  # it takes several lines
    assert "197 (block 0)" in each
    assert "54 (11)" in each


def block(first: int, last: int, **more: Any) -> BlockGroup:
    facts: dict[str, Any] = {
        "kind": "global", "heads": 16, "head_size": 64, "value_size": 64, "queries": 197, "keys": 197, "windows": 1,
        "bias": (), "linears": tuple(
            LinearGroup(role=role, count=1, k=k, n=n)
            for role, k, n in (("qkv", 1024, 3072), ("proj", 1024, 1024), ("fc1", 1024, 4096), ("fc2", 4096, 1024))
        ),
    }  # fmt: skip
    return BlockGroup(first=first, last=last, **(facts | more))


def outline(*blocks: BlockGroup, **more: Any) -> Outline:
    merges = [LinearGroup(role="other", count=1, k=384, n=192, names=(f"merge.{n}",)) for n in range(3)]
    outside = (LinearGroup(role="patch", count=1, k=768, n=1024, names=("patch",)), *merges)
    facts: dict[str, Any] = {"linears": {"patch": 1, "qkv": 24, "other": 3}, "outside": outside, "layernorms": 49}
    return Outline(blocks=blocks, **(facts | more))


def test_structure() -> None:
    text = shown(tables.structure(outline(block(0, 23))))
    for part in ("24 attention blocks, 49 LayerNorms", "0–23", "16 × 64", "197 × 197", "1024×3072", "4096×1024"):
        assert part in text
    assert "28 linears: 1 patch 768×1024, 24 qkv, 3 other (merge.0 384×192 and 2 more)" in " ".join(text.split())


def test_structure_of_windows_and_of_fewer_queries() -> None:
    separate = (LinearGroup(role="qkv", count=3, k=768, n=768),)
    windows = block(0, 1, windows=64, queries=49, keys=49, bias=("bias", "window bias"), linears=separate)
    fewer = block(2, 2, kind="fewer queries", queries=49, value_size=128, bias=("mask",), linears=separate)
    text = shown(tables.structure(outline(windows, fewer)))
    for part in ("49 × 49", "64 windows + bias", "49 × 197", "+ mask", "values × 128", "3 of 768×768", " – "):
        assert part in text
    assert "window bias" not in text


def test_structure_with_unknown_sizes() -> None:
    unraised = block(0, 0, kind="unraised", **dict.fromkeys(("heads", "head_size", "value_size", "queries", "keys")))
    text = shown(tables.structure(outline(unraised, block(1, 1, keys=None, windows=None))))
    for part in ("2 attention blocks", "not raised", "197 × ?"):
        assert part in text
    assert "no attention site" in shown(tables.structure(outline(linears={}, outside=())))


def test_bench() -> None:
    text = shown(speed.latencies(bench(1.45, 1.5, 1.55, "it drifted")))
    for part in ("pytorch-fp32", "openvino-int8", "reference", "1.50 [1.45, 1.55]", "doubt: it drifted", "batch 1"):
        assert part in text
    assert "nothing timed" in shown(speed.latencies(bench(runs=())))


def test_evaluation() -> None:
    text = shown(tables.evaluation(evaluation(skipped=3, nonfinite=2)))
    for part in (
        "10,000 samples",
        "top1",
        "72.10",
        "0.10 [-0.15, 0.35]",
        "200 samples have different answers",
        "3 samples could",
        "2 samples gave",
    ):
        assert part in text


def test_gate() -> None:
    text = shown(tables.gate(GATE))
    for part in ("Gate: FAIL", "INVALID", "83.3", "100", "[red]sites[/red]"):
        assert part in text


def test_doctor() -> None:
    found = {
        "openvino": Availability(available=True),
        "tensorrt": Availability(available=False, why="no NVIDIA GPU here", fix="Compile on the device."),
    }
    text = shown(tables.doctor(found))
    assert "no NVIDIA GPU here. Compile on the device." in text


@pytest.mark.parametrize("nothing", [True, False])
def test_summary(nothing: bool) -> None:
    given = (None, None, None, None) if nothing else (audit(), bench(), evaluation(), GATE)
    text = shown(tables.summary(summarize(*given)))
    assert "FP32 PyTorch" in text
    assert ("not measured" in text) == nothing
    assert ("12 of 12" in text) != nothing


def test_the_kernels_of_an_engine_are_summed_up() -> None:
    engine = KernelAudit(kernels=138, attention=12, gemms={"fp16": 2, "int8": 48}, reformats=14, casts=1)
    line = "138: 12 attention, 2 fp16 and 48 int8 products, 14 only copy, 1 only cast"
    assert numbers.kernels(engine) == line
    assert "138: 12 attention" in shown(tables.audit(audit(engine=engine)))
    assert "products" not in shown(tables.audit(audit()))


def test_long_names_of_layers_break_between_words() -> None:
    layer = LayerSensitivity(
        name="vit.encoder.layer.11.attention.attention.query", role="qkv", block=11, sqnr_db=45.1,
        output_sqnr_db=51.3, agreement=1.0, macs=1_800_000,
    )  # fmt: skip
    found = Sensitivity(precision="int8", layers=(layer,), images=8, calibration="photos", choice="minmax ranges")
    text = shown(tables.sensitivity(found))
    assert "vit.encoder.layer.11. " in text
    assert "attention.attention.query " in text


def test_a_trial_is_called_as_its_variant() -> None:
    tried = (Trial(precision="fp16", why="wrong"), Trial(precision="fp16", form="separate-qkv", kept=True))
    assert [trial.name for trial in tried] == ["fp16", "fp16-separate-qkv"]
    text = shown(tables.trials(tried))
    assert "fp16-separate-qkv" in text
    assert "wrong" in text
