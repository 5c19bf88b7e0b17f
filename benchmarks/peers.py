"""Quantize an ONNX model as the stock tools do by default, and classify images with the result.

    python benchmarks/peers.py WORK WAY…

Runs in the environment of `requirements-peers.txt`, apart from vitdeploy. WORK holds `model.onnx`, which takes one
image at a time, and `images.npz` with `calibration` and perhaps `test`, images to classify: float32 (N, C, H, W) as the
model takes them. For each WAY it writes the model to WORK, `WAY.xml` or `WAY.onnx`, and for test images `WAY.npz` with
`logits`, float32 (N, classes).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime as ort
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Model = Callable[[Any], Any]
"""Computes the logits of one image."""
_OFF = -1  # NNCF's value for a strength of SmoothQuant


class Reader(CalibrationDataReader):
    """Images one by one, as ONNX Runtime's calibrator reads them."""

    def __init__(self, name: str, images: Any) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image, or None."""
        return next(self._feeds, None)


def quantize_with_nncf(model: Path, images: Any) -> Path:
    """Call `nncf.quantize` with nothing but the model and the images."""
    return _run_nncf(model, images, "nncf-plain.xml")


def quantize_transformer_with_nncf(model: Path, images: Any) -> Path:
    """Call `nncf.quantize(model_type=TRANSFORMER)`, with SmoothQuant at its default strength."""
    return _run_nncf(model, images, "nncf.xml", model_type=nncf.ModelType.TRANSFORMER)


def quantize_without_smoothquant(model: Path, images: Any) -> Path:
    """Do the same with SmoothQuant off."""
    strength = AdvancedSmoothQuantParameters(matmul=_OFF, convolution=_OFF)
    advanced = AdvancedQuantizationParameters(smooth_quant_alphas=strength)
    kind = nncf.ModelType.TRANSFORMER
    return _run_nncf(model, images, "nncf-no-smoothquant.xml", model_type=kind, advanced_parameters=advanced)


def _run_nncf(model: Path, images: Any, name: str, **options: Any) -> Path:
    dataset = nncf.Dataset([image[None] for image in images])
    quantized = nncf.quantize(ov.Core().read_model(model), dataset, subset_size=len(images), **options)
    out = model.with_name(name)
    ov.save_model(quantized, out, compress_to_fp16=False)
    return out


def quantize_static_with_ort(model: Path, images: Any) -> Path:
    """Call `quantize_static` with its default operators, after the pre-processing that its documentation asks for."""
    ready, out = model.with_name("ready.onnx"), model.with_name("ort-static.onnx")
    quant_pre_process(model, ready)
    quantize_static(ready, out, Reader(ort.InferenceSession(model).get_inputs()[0].name, images))
    return out


def quantize_dynamic_with_ort(model: Path, name: str = "ort-dynamic.onnx", *, reduce_range: bool = False) -> Path:
    """Call `quantize_dynamic` with its default operators, after the same pre-processing."""
    ready, out = model.with_name("ready.onnx"), model.with_name(name)
    quant_pre_process(model, ready)
    quantize_dynamic(ready, out, reduce_range=reduce_range)
    return out


def _open(path: Path) -> Model:
    if path.suffix == ".xml":
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()
        return lambda image: request.infer([image])[0].copy()
    session = ort.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


WAYS: dict[str, Callable[[Path, Any], Path]] = {
    "nncf": quantize_transformer_with_nncf,
    "nncf-plain": quantize_with_nncf,
    "nncf-no-smoothquant": quantize_without_smoothquant,
    "ort-static": quantize_static_with_ort,
    "ort-dynamic": lambda model, _: quantize_dynamic_with_ort(model),
    "ort-dynamic-reduce-range": lambda model, _: quantize_dynamic_with_ort(
        model, "ort-dynamic-reduce-range.onnx", reduce_range=True
    ),
}


def main(work: Path, ways: list[str]) -> None:
    """Quantize in one way after the other; classify the test images, if there are any."""
    images = np.load(work / "images.npz")
    for way in ways:
        path = WAYS[way](work / "model.onnx", images["calibration"])
        if "test" in images:
            model = _open(path)
            np.savez(work / f"{way}.npz", logits=np.concatenate([model(image[None]) for image in images["test"]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
