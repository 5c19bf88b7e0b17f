import math

import pytest

from tests.evidence import audit, evaluation
from vitdeploy.evidence import Interval
from vitdeploy.render import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"), (0.01234, "0.0123"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"),
        (12345.6, "12,346"), (-1.5, "-1.50"), (1e-9, "0.00000"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_three_digits(value: float, text: str) -> None:
    assert numbers.three_digits(value) == text


def test_figures() -> None:
    assert numbers.speedup(Interval(ratio=1.917, ci95=(1.881, 1.95))) == "1.92 [1.88, 1.95]"
    assert numbers.speedup(None) == "–"
    assert numbers.drop(evaluation(-0.1, -0.001, 0.1).metrics["top1"]) == "0.00 [-0.15, 0.15]"
    assert [numbers.observed(v) for v in (None, "at least one", 1.5)] == ["–", "at least one", "1.50"]
    assert [numbers.size(n) for n in (12, 2048, 23_456_789, 5 << 30)] == ["12 B", "2.00 KiB", "22.4 MiB", "5.00 GiB"]


def test_fusion_names_its_evidence() -> None:
    assert numbers.fused(audit().attention) == "12 of 12"
    assert numbers.fused(audit(12, 12, "graph").attention) == "12 of 12 (graph)"
    assert numbers.fused(audit(0, 0).attention) == "no attention site"


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ("pytorch-fp32", "FP32 PyTorch"), ("torch-compile", "torch.compile"), ("openvino-fp32", "FP32 OpenVINO"),
        ("onnxruntime-fp32 (plain)", "FP32 ONNX Runtime"), ("openvino-int8", "openvino-int8"),
        ("tensorrt-fp16 (deit)", "tensorrt-fp16 (deit)"), ("-fp32", "-fp32"),
    ],
)  # fmt: skip
def test_the_title_of_an_engine_comes_from_its_target(run: str, title: str) -> None:
    assert numbers.side(run) == title
