"""ONNX files in float16 and bfloat16: raised to float32, which is what everything is compared with."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.cli.conftest import run, spawn
from tests.onnx_files import CLASSES, noise, run_plain, sized_dynamo, sized_legacy, sized_vit
from vitdeploy import artifact as artifacts
from vitdeploy.runtime.artifact_session import open_session

pytestmark = pytest.mark.usefixtures("here")

SIZE = (32, 48)


def converted(model: bytes, *, keep: bool) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are too small for float16
        half = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=keep)
    return bytes(half.SerializeToString())


def exported_in(dtype: torch.dtype) -> bytes:
    """What `model.half()` exports: input and output are half too."""
    buffer = io.BytesIO()
    module = sized_vit(interpolated=False).to(dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, 32, 32, dtype=dtype),), buffer, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["scores"],
        )  # fmt: skip
    return buffer.getvalue()


@cache
def float32() -> bytes:
    return sized_dynamo(sized_vit(), 18)


FILES: dict[str, tuple[Callable[[], bytes], str, tuple[int, int]]] = {
    "converted": (lambda: converted(float32(), keep=False), "float16", SIZE),
    "converted-io": (lambda: converted(float32(), keep=True), "float16", SIZE),
    "converted-11": (lambda: converted(sized_legacy(sized_vit(fused=False), 11), keep=True), "float16", SIZE),
    "exported": (lambda: exported_in(torch.float16), "float16", (32, 32)),
    "bfloat16": (lambda: exported_in(torch.bfloat16), "bfloat16", (32, 32)),
}


def export(name: str, target: str, *words: object) -> tuple[Any, bytes]:
    make, _, (height, width) = FILES[name]
    model = make()
    Path("m.onnx").write_bytes(model)
    found = run(
        "export", "m.onnx", "--image-size", f"{height}x{width}", "--target", target, *words, "-o", "out", "--json"
    )
    assert found.code == 0, found.err
    return json.loads(found.out), model


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", FILES)
def test_it_is_raised_to_float32_and_says_so(name: str, target: str) -> None:
    _, precision, size = FILES[name]
    summary, model = export(name, target)
    assert f"m.onnx came in {precision}: it was raised to float32, which is the reference" in summary["notes"]
    assert summary["parity"]["max_abs"] < 1e-5 * summary["parity"]["reference_max"]
    loaded = artifacts.load(Path("out"))
    assert loaded.manifest.model.precision == precision
    assert [t.dtype for t in (*loaded.manifest.inputs, *loaded.manifest.outputs)] == ["float", "float"]
    audit = json.loads(Path("out/audit.json").read_text())
    assert audit["attention"]["fused"] == 2
    assert audit["linears"]["fp32"] == sum(audit["linears"].values()) > 0
    image = noise(1, 3, *size)
    with open_session(loaded, 1) as session:
        (given,) = session.run({"image": image}).values()
    if name == "converted":  # the model before it was rounded to float16
        (exact,) = run_plain(float32(), image)
        assert 0 < np.abs(given - exact).max() < 5e-3 * np.abs(exact).max()
    if precision == "float16":  # the file itself, computed in float16; bfloat16 does not run in ONNX Runtime
        half = onnx.load_from_string(model).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        (rounded,) = run_plain(model, image.astype(np.float16) if half else image)
        assert np.abs(given - rounded).max() < 1e-2 * np.abs(rounded).max()


def test_eval_and_bench_compare_with_the_raised_file(images: Callable[..., Path]) -> None:
    export("converted", "onnxruntime")
    data = images(3, classes=tuple(f"c{i}" for i in range(CLASSES)))
    found = run("eval", "out", "--data", data, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["agreement"] == 1.0
    found = run("bench", "out", "--seconds", "1", "--json")
    assert found.code in (0, 1), found.err  # 1: the measurement is in doubt
    assert "onnxruntime-fp32" in {r["name"] for r in json.loads(found.out)["runs"]}
    Path("m.onnx").write_bytes(converted(sized_dynamo(sized_vit(interpolated=True), 20), keep=False))
    assert "m.onnx is not the model that was exported" in run("eval", "out", "--data", data).error


def test_other_precisions_start_from_float32(images: Callable[..., Path]) -> None:
    summary, _ = export("converted-io", "openvino", "--precision", "int8", "--calibration", images(8))
    audit = json.loads(Path("out/audit.json").read_text())
    assert audit["linears"]["int8"] > 0
    assert summary["precision"] == "int8"


def test_the_digest_is_of_the_users_file_and_its_data() -> None:
    export("exported", "onnxruntime")
    digest = artifacts.load(Path("out")).manifest.model.digest
    assert digest == hashlib.sha256(Path("m.onnx").read_bytes()).hexdigest()


def test_nothing_stays_behind() -> None:
    """The raised file is removed with the process that made it, and with the one that tried it."""
    Path("m.onnx").write_bytes(exported_in(torch.float16))
    scratch = Path(tempfile.gettempdir())
    before = set(scratch.glob("vitdeploy-scratch-float32-*"))
    found = spawn("export", "m.onnx", "--target", "onnxruntime", "-o", "out")
    assert found.code == 0, found.err
    Path("m.onnx").write_bytes(converted(float32(), keep=False))
    assert spawn("export", "m.onnx", "--image-size", "36x32", "--target", "onnxruntime").code == 1
    assert set(scratch.glob("vitdeploy-scratch-float32-*")) <= before
