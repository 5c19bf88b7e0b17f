import pytest
from rich.console import Console, RenderableType

from tests.evidence import audit, bench, evaluation
from vitdeploy.evidence import Availability, Check, FileEntry, Gate
from vitdeploy.report import tables
from vitdeploy.report.summary import summarize

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
    console = Console(width=width, color_system=None, force_terminal=False)
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


def test_bench() -> None:
    text = shown(tables.bench(bench(1.45, 1.5, 1.55, "it drifted")))
    for part in ("pytorch-fp32", "openvino-int8", "reference", "1.50 [1.45, 1.55]", "in doubt: it drifted", "batch 1"):
        assert part in text
    assert "nothing timed" in shown(tables.bench(bench(runs=())))


def test_evaluation() -> None:
    text = shown(tables.evaluation(evaluation(skipped=3, nonfinite=2)))
    for part in (
        "10,000 samples",
        "top1",
        "72.10",
        "0.10 [-0.15, 0.35]",
        "200 flips",
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
