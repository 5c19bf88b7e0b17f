"""Quantize an ONNX model as the stock tools do by default, and answer images with what comes out.

    python benchmarks/peers.py WORK WAY…

Runs in the environment of `requirements-peers.txt`, apart from vitdeploy. WORK holds `model.onnx` (one image at a time)
and `images.npz` with `calibration` and `test`, float32 (N, C, H, W) as the model takes them. For each WAY, `WAY.npz`
with `logits`, float32 (N, classes), is written there.
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

Answer = Callable[[Any], Any]
_OFF = -1


class Reader(CalibrationDataReader):
    """Images one by one, as ONNX Runtime's calibrator asks for them."""

    def __init__(self, name: str, images: Any) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """The next image, or None."""
        return next(self._feeds, None)


def nncf_transformer(model: Path, images: Any, smooth: float | None = None) -> Answer:
    """`nncf.quantize(model_type=TRANSFORMER)`, SmoothQuant at its own strength unless `smooth` is given."""
    advanced = None
    if smooth is not None:
        strength = AdvancedSmoothQuantParameters(matmul=smooth, convolution=_OFF)
        advanced = AdvancedQuantizationParameters(smooth_quant_alphas=strength)
    quantized = nncf.quantize(
        ov.Core().read_model(model),
        nncf.Dataset([image[None] for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        advanced_parameters=advanced,
    )
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(quantized, "CPU", hints).create_infer_request()
    return lambda image: request.infer([image])[0].copy()


def ort_static(model: Path, images: Any) -> Answer:
    """`quantize_static` with its default operators, after the pre-processing that its documentation asks for."""
    ready, out = model.with_name("ready.onnx"), model.with_name("static.onnx")
    quant_pre_process(model, ready)
    quantize_static(ready, out, Reader(ort.InferenceSession(model).get_inputs()[0].name, images))
    return _session(out)


def ort_dynamic(model: Path, *, reduce_range: bool) -> Answer:
    """`quantize_dynamic` with its default operators."""
    ready, out = model.with_name("ready.onnx"), model.with_name("dynamic.onnx")
    quant_pre_process(model, ready)
    quantize_dynamic(ready, out, reduce_range=reduce_range)
    return _session(out)


def _session(path: Path) -> Answer:
    session = ort.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


WAYS: dict[str, Callable[[Path, Any], Answer]] = {
    "nncf": nncf_transformer,
    "nncf-no-smoothquant": lambda model, images: nncf_transformer(model, images, smooth=_OFF),
    "ort-static": ort_static,
    "ort-dynamic": lambda model, _: ort_dynamic(model, reduce_range=False),
    "ort-dynamic-reduce-range": lambda model, _: ort_dynamic(model, reduce_range=True),
}


def main(work: Path, ways: list[str]) -> None:
    """Quantize and answer, one way after the other."""
    images = np.load(work / "images.npz")
    for way in ways:
        answer = WAYS[way](work / "model.onnx", images["calibration"])
        np.savez(work / f"{way}.npz", logits=np.concatenate([answer(image[None]) for image in images["test"]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
