"""Quantize an ONNX model as the stock tools do by default, and answer images with what comes out.

    python benchmarks/peers.py WORK WAY…

Runs in the environment of `requirements-peers.txt`, apart from vitdeploy. WORK holds `model.onnx` (one image at a time)
and `images.npz` with `calibration` and, when they are to be answered, `test`: float32 (N, C, H, W) as the model takes
them. For each WAY the model, `WAY.xml` or `WAY.onnx`, is written there, and `WAY.npz` with `logits`, float32
(N, classes).
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


def nncf_plain(model: Path, images: Any) -> Path:
    """`nncf.quantize` with nothing but the model and the images."""
    return _nncf(model, images, "nncf-plain.xml")


def nncf_transformer(model: Path, images: Any) -> Path:
    """`nncf.quantize(model_type=TRANSFORMER)`, SmoothQuant at its own strength."""
    return _nncf(model, images, "nncf.xml", model_type=nncf.ModelType.TRANSFORMER)


def nncf_no_smoothquant(model: Path, images: Any) -> Path:
    """The same with SmoothQuant off."""
    strength = AdvancedSmoothQuantParameters(matmul=_OFF, convolution=_OFF)
    advanced = AdvancedQuantizationParameters(smooth_quant_alphas=strength)
    kind = nncf.ModelType.TRANSFORMER
    return _nncf(model, images, "nncf-no-smoothquant.xml", model_type=kind, advanced_parameters=advanced)


def _nncf(model: Path, images: Any, name: str, **options: Any) -> Path:
    dataset = nncf.Dataset([image[None] for image in images])
    quantized = nncf.quantize(ov.Core().read_model(model), dataset, subset_size=len(images), **options)
    out = model.with_name(name)
    ov.save_model(quantized, out, compress_to_fp16=False)
    return out


def ort_static(model: Path, images: Any) -> Path:
    """`quantize_static` with its default operators, after the pre-processing that its documentation asks for."""
    ready, out = model.with_name("ready.onnx"), model.with_name("ort-static.onnx")
    quant_pre_process(model, ready)
    quantize_static(ready, out, Reader(ort.InferenceSession(model).get_inputs()[0].name, images))
    return out


def ort_dynamic(model: Path, name: str = "ort-dynamic.onnx", *, reduce_range: bool = False) -> Path:
    """`quantize_dynamic` with its default operators."""
    ready, out = model.with_name("ready.onnx"), model.with_name(name)
    quant_pre_process(model, ready)
    quantize_dynamic(ready, out, reduce_range=reduce_range)
    return out


def _answer(path: Path) -> Answer:
    if path.suffix == ".xml":
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()
        return lambda image: request.infer([image])[0].copy()
    session = ort.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


WAYS: dict[str, Callable[[Path, Any], Path]] = {
    "nncf": nncf_transformer,
    "nncf-plain": nncf_plain,
    "nncf-no-smoothquant": nncf_no_smoothquant,
    "ort-static": ort_static,
    "ort-dynamic": lambda model, _: ort_dynamic(model),
    "ort-dynamic-reduce-range": lambda model, _: ort_dynamic(model, "ort-dynamic-reduce-range.onnx", reduce_range=True),
}


def main(work: Path, ways: list[str]) -> None:
    """Quantize and, where there are images to answer, answer them; one way after the other."""
    images = np.load(work / "images.npz")
    for way in ways:
        made = WAYS[way](work / "model.onnx", images["calibration"])
        if "test" in images:
            answer = _answer(made)
            np.savez(work / f"{way}.npz", logits=np.concatenate([answer(image[None]) for image in images["test"]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
