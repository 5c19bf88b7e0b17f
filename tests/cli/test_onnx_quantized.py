"""ONNX files that are quantized already: kept as they are, compared with themselves, and quantized by nobody again."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.cli.conftest import listing, run
from tests.onnx_files import CLASSES, input_shape, noise, run_plain, sized_legacy, sized_vit
from vitdeploy import artifact as artifacts
from vitdeploy.runtime.artifact_session import open_session

pytestmark = pytest.mark.usefixtures("here")

SITES, LINEARS = 2, 10
S8 = QuantType.QInt8


class Images(CalibrationDataReader):
    """Four batches to calibrate on."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._batches = iter([noise(2, 3, *size, seed=seed) for seed in range(4)])

    def get_next(self) -> Any:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def quantized(write: Callable[[str, str], object], *, sized: bool = False) -> bytes:
    """What ONNX Runtime's quantizer makes of the ViT; `sized`: height and width vary."""
    size = {} if sized else {"size": (32, 32)}
    model = sized_legacy(sized_vit(interpolated=sized), 17, **size)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            plain, before, after = (str(Path(folder, name)) for name in ("plain.onnx", "before.onnx", "after.onnx"))
            Path(plain).write_bytes(model)
            quant_pre_process(plain, before, skip_symbolic_shape=True)
            write(before, after)
            return Path(after).read_bytes()
        finally:
            logging.disable(logging.NOTSET)


def symmetric(before: str, after: str, size: tuple[int, int] = (32, 32)) -> None:
    """Q/DQ around the linears only, as every engine takes it."""
    products = [n.name for n in onnx.load(before).graph.node if n.op_type == "MatMul"]
    quantize_static(
        before, after, Images(size), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=S8, weight_type=S8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        nodes_to_exclude=[name for name in products if name.endswith(("attn/MatMul", "attn/MatMul_1"))],
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip


KINDS: dict[str, Callable[[], bytes]] = {
    "symmetric": lambda: quantized(symmetric),
    "everything": lambda: quantized(lambda a, b: quantize_static(a, b, Images((32, 32)), quant_format=QuantFormat.QDQ)),
    "operators": lambda: quantized(
        lambda a, b: quantize_static(
            a, b, Images((32, 32)), quant_format=QuantFormat.QOperator, op_types_to_quantize=["MatMul", "Conv"]
        )
    ),
    "dynamic": lambda: quantized(quantize_dynamic),
    "sized": lambda: quantized(lambda a, b: symmetric(a, b, (32, 48)), sized=True),
}


@cache
def file(kind: str) -> bytes:
    return KINDS[kind]()


def export(kind: str, target: str, *words: object) -> Any:
    Path("m.onnx").write_bytes(file(kind))
    size = () if "--image-size" in words else ("--image-size", "32x32")
    found = run("export", "m.onnx", "--target", target, *size, *words, "-o", "out", "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["symmetric", "everything", "operators", "dynamic"])
def test_it_stays_as_it_is_and_says_so(kind: str, target: str) -> None:
    summary = export(kind, target)
    assert (
        "m.onnx is quantized already: fp32 keeps it as it is, and the file itself is the reference" in summary["notes"]
    )
    manifest = artifacts.load(Path("out")).manifest
    assert (manifest.model.precision, manifest.target.precision) == ("quantized", "fp32")
    image = noise(1, 3, 32, 32)
    (expected,) = run_plain(file(kind), image)
    scale = np.abs(expected).max()
    (lowered,) = run_plain(Path("out/graph.onnx"), image)
    assert np.abs(lowered - expected).max() <= 1e-5 * scale  # no pass changed a number
    with open_session(artifacts.load(Path("out")), 1) as session:
        (given,) = session.run({"image": image}).values()
    assert np.abs(given - expected).max() < 5e-2 * scale  # engines round INT8 in their own ways


AUDITS = {
    ("symmetric", "onnxruntime"): (SITES, {"int8": LINEARS}),
    ("symmetric", "openvino"): (SITES, {"int8": LINEARS}),
    ("everything", "onnxruntime"): (0, {"int8": LINEARS}),
    ("dynamic", "onnxruntime"): (SITES, {"int8": LINEARS}),
    ("dynamic", "openvino"): (SITES, {"fp32": LINEARS}),  # it multiplies the integers in float32
}


@pytest.mark.parametrize(("kind", "target"), AUDITS)
def test_the_audit_counts_what_runs_in_int8(kind: str, target: str) -> None:
    export(kind, target)
    fused, linears = AUDITS[kind, target]
    audit = json.loads(run("inspect", "out", "--json").out)
    assert (audit["attention"]["sites"], audit["attention"]["fused"]) == (SITES, fused)
    assert {name: count for name, count in audit["linears"].items() if count} == linears
    assert audit["model_precision"] == "quantized"
    assert f"Audit of {target} quantized as it came" in run("inspect", "out").out
    if not fused:
        assert all("it is quantized between its two products" in s["reason"] for s in audit["attention"]["unfused"])


def test_height_and_width_are_fixed_in_it_too() -> None:
    export("sized", "onnxruntime", "--image-size", "24x40")
    assert input_shape(Path("out/graph.onnx")) == [1, 3, 24, 40]
    image = noise(1, 3, 24, 40)
    (expected,), (given,) = run_plain(file("sized"), image), run_plain(Path("out/graph.onnx"), image)
    assert np.abs(given - expected).max() <= 1e-5 * np.abs(expected).max()
    assert json.loads(Path("out/audit.json").read_text())["linears"]["int8"] == LINEARS


@pytest.mark.parametrize(
    ("target", "precision"),
    [("openvino", "int8"), ("openvino", "bf16"), ("onnxruntime", "auto"), ("onnxruntime", "int8-dynamic"),
     ("tensorrt", "fp16")],
)  # fmt: skip
def test_another_precision_is_refused(target: str, precision: str) -> None:
    Path("m.onnx").write_bytes(file("symmetric"))
    before = listing(Path.cwd())
    line = run("export", "m.onnx", "--target", target, "--precision", precision).error
    assert f"m.onnx is quantized already, so it cannot become {precision}. Leave out --precision" in line
    assert listing(Path.cwd()) == before


def test_tensorrt_takes_it_without_a_precision() -> None:
    """Its default is float16, which a quantized file cannot become. The folder is named after what it is."""
    pytest.importorskip("tensorrt_rtx")
    Path("m.onnx").write_bytes(file("symmetric"))
    found = run("export", "m.onnx", "--image-size", "32x32", "--target", "tensorrt-rtx", "--json")
    assert found.code == 0, found.err
    audit = json.loads(Path("m-tensorrt-rtx-fp32/audit.json").read_text())
    assert audit["linears"]["int8"] == LINEARS


def test_a_form_that_tensorrt_does_not_take_is_one_line() -> None:
    pytest.importorskip("tensorrt_rtx")
    Path("m.onnx").write_bytes(file("operators"))
    before = listing(Path.cwd())
    line = run("export", "m.onnx", "--image-size", "32x32", "--target", "tensorrt-rtx").error
    assert "cannot parse the node 'image_QuantizeLinear'" in line
    assert "Quantize the model in symmetric INT8" in line
    assert listing(Path.cwd()) == before


def test_eval_and_bench_compare_with_the_file_itself(images: Callable[..., Path]) -> None:
    export("symmetric", "onnxruntime")
    data = images(3, classes=tuple(f"c{i}" for i in range(CLASSES)))
    found = run("eval", "out", "--data", data, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["agreement"] == 1.0
    found = run("bench", "out", "--seconds", "1", "--json")
    reference = next(r for r in json.loads(found.out)["runs"] if r["role"] == "reference")
    assert reference["name"] == "onnxruntime-quantized"
    line = run("inspect", "out", "--sensitivity", "--calibration", data).error
    assert "is quantized already, so its linears cannot be quantized one by one. Export the float model." in line
