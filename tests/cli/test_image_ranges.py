"""ONNX files that stay open for a range of image sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitdeploy
from tests.cli.conftest import listing, run
from tests.onnx_files import CLASSES, input_shape, noise, run_plain, sized_dynamo, sized_legacy, sized_vit
from vitdeploy import artifact as artifacts
from vitdeploy.errors import UsageError

pytestmark = pytest.mark.usefixtures("here")

SITES = 2
RANGE = "24x24:32x48:64x64"
VERIFIED = ["32x48", "24x24", "64x64", "24x64", "64x24"]
EXPORTS: dict[str, Callable[[], bytes]] = {
    "open": lambda: sized_legacy(sized_vit(), 14),
    "smoothed": lambda: sized_dynamo(sized_vit(), 18),  # its positions are resized with antialiasing
    "one size of positions": lambda: sized_legacy(sized_vit(interpolated=False), 17, size=(32, 32)),
    "open width": lambda: sized_legacy(sized_vit(), 17, {"image": {0: "batch", 3: "width"}}),
    "fixed": lambda: sized_legacy(sized_vit(), 17, None),
}


@cache
def exported(kind: str) -> bytes:
    return EXPORTS[kind]()


def export(kind: str, *words: object, out: str = "out") -> Any:
    Path("m.onnx").write_bytes(exported(kind))
    found = run("export", "m.onnx", *words, "-o", out, "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)


def refused(*words: object, code: int = 1) -> str:
    before = listing(Path.cwd())
    found = run("export", *words)
    assert (found.code, found.out) == (code, ""), found.err
    assert listing(Path.cwd()) == before
    return found.error if code == 1 else " ".join(found.err.replace("│", "").split())


def audit() -> Any:
    return json.loads(Path("out/audit.json").read_text())


def assert_same_numbers(deployed: vitdeploy.Deployed, kind: str, *shape: int) -> None:
    (given,), (expected,) = deployed.run(noise(*shape)).values(), run_plain(exported(kind), noise(*shape))
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "target"), [("open", "onnxruntime"), ("smoothed", "openvino")])
def test_what_was_compiled_takes_every_size_of_the_range_and_no_other(kind: str, target: str) -> None:
    summary = export(kind, "--target", target, "--image-size", RANGE)
    assert summary["parity"]["image_sizes"] == VERIFIED
    assert all(f"of {size} in a batch of 1" in case[0]["where"] for size, case in
               zip(VERIFIED, summary["parity"]["cases"], strict=True))  # fmt: skip
    assert not any(isinstance(side, int) for side in input_shape(Path("out/graph.onnx"))[2:])
    assert (audit()["attention"]["sites"], audit()["attention"]["fused"]) == (SITES, SITES)
    if target == "openvino":
        import openvino as ov

        bounds = str(ov.Core().read_model("out/model.xml").input(0).get_partial_shape())
        assert bounds == "[1,3,24..64,24..64]", "the engine itself refuses other sizes"
    manifest = artifacts.load(Path("out")).manifest
    assert (str(manifest.recipe.model.size_range), manifest.model.patch) == (RANGE, (8, 8))
    assert manifest.preprocess.size == (32, 48)
    assert manifest.usage is not None
    assert manifest.usage.image_size == f"{RANGE} (height x width), both sides multiples of the patch, 8x8"
    assert manifest.usage.inputs[0].bytes == 4 * 3 * 32 * 48
    with vitdeploy.load("out") as deployed:
        for size in ((24, 24), (64, 64), (40, 56)):
            assert_same_numbers(deployed, kind, 1, 3, *size)
        for size in ((16, 32), (32, 72)):
            with pytest.raises(UsageError, match=f"out accepts images of {RANGE}, not of {size[0]}x{size[1]}"):
                deployed.run(noise(1, 3, *size))
        with pytest.raises(UsageError, match="patches of 8x8, and 36x48 is no multiple"):
            deployed.run(noise(1, 3, 36, 48))


def test_batch_and_size_may_vary_together_and_other_commands_prepare_images_at_opt(
    images: Callable[..., Path],
) -> None:
    summary = export("open", "--target", "onnxruntime", "--image-size", RANGE, "--batch", "1:2:4")
    pairs = set(zip(summary["parity"]["batches"], summary["parity"]["image_sizes"], strict=True))
    assert {(2, "32x48"), (1, "24x24"), (4, "64x64")} <= pairs
    assert audit()["attention"]["fused"] == SITES
    with vitdeploy.load("out") as deployed:
        assert_same_numbers(deployed, "open", 3, 3, 24, 56)
    data = images(3, classes=tuple(f"c{i}" for i in range(CLASSES)))
    found = run("eval", "out", "--data", data, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["agreement"] == 1.0
    found = run("bench", "out", "--seconds", "1", "--json")
    assert found.code == 0, found.err
    assert {r["batch"] for r in json.loads(found.out)["runs"]} == {2}


def test_int8_takes_ranges_at_opt_and_keeps_attention_fused(images: Callable[..., Path]) -> None:
    data = images(8, classes=("a", "b"))
    words = ("--image-size", RANGE, "--precision", "int8", "--calibration", data)
    summary = export("open", "--target", "onnxruntime", *words)
    assert summary["parity"]["image_sizes"] == VERIFIED
    assert (audit()["attention"]["fused"], audit()["linears"]["int8"] > 0) == (SITES, True)
    assert audit()["quantized"]["unknown"] == [], "counted at the size to optimise for"
    with vitdeploy.load("out") as deployed:
        (given,) = deployed.run(noise(1, 3, 64, 40)).values()
    assert np.isfinite(given).all()


def test_a_gpu_engine_gets_a_profile_and_needs_no_antialiasing_from_the_trained_size_on() -> None:
    pytest.importorskip("tensorrt_rtx")
    export("smoothed", "--target", "tensorrt-rtx", "--image-size", "32x32:32x48:64x64")
    assert (audit()["attention"]["sites"], audit()["attention"]["fused"]) == (SITES, SITES)
    assert json.loads(Path("out/engine.json").read_text())["dynamic"] is True
    line = refused("m.onnx", "--target", "tensorrt-rtx", "--image-size", RANGE)
    assert "Antialiasing is not supported" in line
    assert "Let MIN of --image-size be at least the size that the model was trained at" in line


def test_one_side_may_vary_alone() -> None:
    export("open width", "--target", "onnxruntime", "--image-size", "32x32:32x48:32x64", "--batch", "2")
    assert input_shape(Path("out/graph.onnx"))[:3] == [2, 3, 32]
    line = refused("m.onnx", "--target", "onnxruntime", "--image-size", RANGE, "--batch", "2")
    assert f"m.onnx takes images of 32xW only, so it cannot take {RANGE}" in line


def test_equal_ends_are_one_size() -> None:
    export("open", "--target", "onnxruntime", "--image-size", "32x48:32x48:32x48")
    assert input_shape(Path("out/graph.onnx")) == [1, 3, 32, 48]
    assert artifacts.load(Path("out")).manifest.recipe.model.image_size == (32, 48)


def test_the_same_bytes_again() -> None:
    for out in ("out", "again"):
        export("open", "--target", "onnxruntime", "--image-size", RANGE, out=out)
    assert Path("out/graph.onnx").read_bytes() == Path("again/graph.onnx").read_bytes()


@pytest.mark.parametrize("text", ["224x224:384", "24:32", "24::48", "0:8:16", "8:16:24:32"])
def test_a_range_that_is_none_is_wrong_usage(text: str) -> None:
    line = refused("m.onnx", "--target", "onnxruntime", "--image-size", text, code=2)
    assert f"'{text}' is not a size. Give HxW or MIN:OPT:MAX" in line


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("open", "32:24:48", "32x32:24x24:48x48 is not ordered: MIN <= OPT <= MAX"),
        ("open", "24:36:48", "image size 36x36 is not a multiple of the patch size 8x8. Use 32x32 or 40x40 instead"),
        ("one size of positions", "24:32:48", "m.onnx does not take images of 24x24"),
        ("fixed", "24:32:48", "m.onnx takes images of 32x48 only, so it cannot take 24x24:32x32:48x48"),
    ],
)
def test_a_range_that_the_file_does_not_take(kind: str, size: str, message: str) -> None:
    Path("m.onnx").write_bytes(exported(kind))
    assert message in refused("m.onnx", "--target", "onnxruntime", "--image-size", size)


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "demo:digits"])
def test_models_that_are_exported_for_one_size(model: str) -> None:
    line = refused(model, "--target", "onnxruntime", "--weights", "random", "--image-size", "224:256:288")
    assert f"{model} is exported for one image size, so it cannot take 224x224:256x256:288x288." in line
    assert "Give one size with --image-size HxW, or a FILE.onnx whose height and width vary." in line
