"""Deploy a transformers model with Hugging Face's optimum, as its documentation shows it.

    python benchmarks/optimum_peers.py WORK WAY…

Runs in the environments of `requirements-optimum-intel.txt` (the intel-… ways) and `requirements-optimum-onnx.txt`
(the onnx-… ways), apart from vitdeploy. WORK holds `hf`, a folder of `save_pretrained`, and `images.npz` with
`calibration`, float32 (N, C, H, W) as the model takes them. For each WAY it writes `WAY.xml` or `WAY.onnx` to WORK.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

INPUT = "pixel_values"


def export_with_intel(work: Path, images: Any) -> Path:
    """Export an IR for one image at a time, with float32 weights."""
    return _save(_load_with_intel(work, images), work / "intel-fp32.xml")


def quantize_with_intel(work: Path, images: Any) -> Path:
    """Run `OVQuantizer` with `OVQuantizationConfig()`: full INT8, by NNCF with the settings that optimum chooses."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    model = _load_with_intel(work, images)
    dataset = nncf.Dataset([{INPUT: image[None]} for image in images])
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(images)))
    OVQuantizer.from_pretrained(model).quantize(calibration_dataset=dataset, ov_config=config)
    return _save(model, work / "intel-int8.xml")


def _load_with_intel(work: Path, images: Any) -> Any:
    from optimum.intel import OVModelForImageClassification

    model = OVModelForImageClassification.from_pretrained(work / "hf", export=True, compile=False, load_in_8bit=False)
    _, _, height, width = images.shape
    model.reshape(1, images.shape[1], height, width)
    return model


def _save(model: Any, path: Path) -> Path:
    import openvino as ov

    ov.save_model(model.model, path, compress_to_fp16=False)
    return path


def export_with_onnx(work: Path, _: Any) -> Path:
    """Copy the exported graph."""
    return _copy(_export_once(work), work / "onnx-fp32.onnx")


def optimize_with_onnx(work: Path, _: Any) -> Path:
    """Run `ORTOptimizer` at O3: ONNX Runtime's transformer fusions, and an approximated GELU."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForImageClassification, ORTOptimizer

    model = ORTModelForImageClassification.from_pretrained(work / "hf", export=True)
    with TemporaryDirectory() as folder:
        ORTOptimizer.from_pretrained(model).optimize(AutoOptimizationConfig.O3(), save_dir=folder)
        return _copy(_only_graph(folder), work / "onnx-optimized.onnx")


def quantize_dynamic_with_onnx(work: Path, _: Any) -> Path:
    """Run `ORTQuantizer` with the configuration for AVX512-VNNI, dynamic."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    with TemporaryDirectory() as folder:
        ORTQuantizer.from_pretrained(_export_once(work).parent).quantize(config, save_dir=folder)
        return _copy(_only_graph(folder), work / "onnx-dynamic.onnx")


def quantize_static_with_onnx(work: Path, images: Any) -> Path:
    """Run `ORTQuantizer` with the configuration for AVX512-VNNI, static, with ranges by MinMax."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=False)
    quantizer = ORTQuantizer.from_pretrained(_export_once(work).parent)
    method = CalibrationConfig("", "", "", len(images), CalibrationMethod.MinMax)
    with TemporaryDirectory() as folder:
        ranges = quantizer.fit(
            [{INPUT: image} for image in images], method, Path(folder) / "augmented",
            operators_to_quantize=config.operators_to_quantize,
        )  # fmt: skip
        out = Path(folder) / "out"
        quantizer.quantize(config, save_dir=out, calibration_tensors_range=ranges)
        return _copy(_only_graph(out), work / "onnx-static.onnx")


def _export_once(work: Path) -> Path:
    """Export the graph, unless that was done before. Its batch is dynamic, as optimum leaves it."""
    from optimum.onnxruntime import ORTModelForImageClassification

    folder = work / "onnx-exported"
    if not (folder / "model.onnx").exists():
        ORTModelForImageClassification.from_pretrained(work / "hf", export=True).save_pretrained(folder)
    return folder / "model.onnx"


def _only_graph(folder: Path | str) -> Path:
    (path,) = Path(folder).glob("*.onnx")
    return path


def _copy(source: Path, path: Path) -> Path:
    shutil.copyfile(source, path)
    return path


WAYS: dict[str, Callable[[Path, Any], Path]] = {
    "intel-fp32": export_with_intel,
    "intel-int8": quantize_with_intel,
    "onnx-fp32": export_with_onnx,
    "onnx-optimized": optimize_with_onnx,
    "onnx-dynamic": quantize_dynamic_with_onnx,
    "onnx-static": quantize_static_with_onnx,
}


def main(work: Path, ways: list[str]) -> None:
    """Deploy in one way after the other."""
    images = np.load(work / "images.npz")["calibration"]
    for way in ways:
        WAYS[way](work, images)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
