"""Let Hugging Face's optimum deploy a transformers model, as its documentation shows it.

    python benchmarks/optimum_peers.py WORK WAY…

Runs in the environments of `requirements-optimum-intel.txt` (the intel-… ways) and `requirements-optimum-onnx.txt`
(the onnx-… ways), apart from vitdeploy. WORK holds `hf`, a folder of `save_pretrained`, and `images.npz` with
`calibration`, float32 (N, C, H, W) as the model takes them. For each WAY, `WAY.xml` or `WAY.onnx` is written there.
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


def intel_float(work: Path, images: Any) -> Path:
    """The exported IR, for one image at a time; weights stay float32."""
    return _saved(_intel_model(work, images), work / "intel-fp32.xml")


def intel_int8(work: Path, images: Any) -> Path:
    """`OVQuantizer` with `OVQuantizationConfig()`: full INT8, which is NNCF with the settings that optimum chooses."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    model = _intel_model(work, images)
    dataset = nncf.Dataset([{INPUT: image[None]} for image in images])
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(images)))
    OVQuantizer.from_pretrained(model).quantize(calibration_dataset=dataset, ov_config=config)
    return _saved(model, work / "intel-int8.xml")


def _intel_model(work: Path, images: Any) -> Any:
    from optimum.intel import OVModelForImageClassification

    model = OVModelForImageClassification.from_pretrained(work / "hf", export=True, compile=False, load_in_8bit=False)
    _, _, height, width = images.shape
    model.reshape(1, images.shape[1], height, width)
    return model


def _saved(model: Any, path: Path) -> Path:
    import openvino as ov

    ov.save_model(model.model, path, compress_to_fp16=False)
    return path


def onnx_float(work: Path, _: Any) -> Path:
    """The exported graph."""
    return _kept(_onnx_exported(work), work / "onnx-fp32.onnx")


def onnx_optimized(work: Path, _: Any) -> Path:
    """`ORTOptimizer` at O3: ONNX Runtime's transformer fusions, and GELU approximated."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForImageClassification, ORTOptimizer

    model = ORTModelForImageClassification.from_pretrained(work / "hf", export=True)
    with TemporaryDirectory() as folder:
        ORTOptimizer.from_pretrained(model).optimize(AutoOptimizationConfig.O3(), save_dir=folder)
        return _kept(_only(folder), work / "onnx-optimized.onnx")


def onnx_dynamic(work: Path, _: Any) -> Path:
    """`ORTQuantizer` with the configuration for AVX512-VNNI, dynamic."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    with TemporaryDirectory() as folder:
        ORTQuantizer.from_pretrained(_onnx_exported(work).parent).quantize(config, save_dir=folder)
        return _kept(_only(folder), work / "onnx-dynamic.onnx")


def onnx_static(work: Path, images: Any) -> Path:
    """`ORTQuantizer` with the configuration for AVX512-VNNI, static, ranges by MinMax."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=False)
    quantizer = ORTQuantizer.from_pretrained(_onnx_exported(work).parent)
    method = CalibrationConfig("", "", "", len(images), CalibrationMethod.MinMax)
    with TemporaryDirectory() as folder:
        ranges = quantizer.fit(
            [{INPUT: image} for image in images], method, Path(folder) / "augmented",
            operators_to_quantize=config.operators_to_quantize,
        )  # fmt: skip
        out = Path(folder) / "out"
        quantizer.quantize(config, save_dir=out, calibration_tensors_range=ranges)
        return _kept(_only(out), work / "onnx-static.onnx")


def _onnx_exported(work: Path) -> Path:
    """The graph as optimum exports it, made once; its batch is dynamic, as optimum leaves it."""
    from optimum.onnxruntime import ORTModelForImageClassification

    folder = work / "onnx-exported"
    if not (folder / "model.onnx").exists():
        ORTModelForImageClassification.from_pretrained(work / "hf", export=True).save_pretrained(folder)
    return folder / "model.onnx"


def _only(folder: Path | str) -> Path:
    (found,) = Path(folder).glob("*.onnx")
    return found


def _kept(made: Path, path: Path) -> Path:
    shutil.copyfile(made, path)
    return path


WAYS: dict[str, Callable[[Path, Any], Path]] = {
    "intel-fp32": intel_float,
    "intel-int8": intel_int8,
    "onnx-fp32": onnx_float,
    "onnx-optimized": onnx_optimized,
    "onnx-dynamic": onnx_dynamic,
    "onnx-static": onnx_static,
}


def main(work: Path, ways: list[str]) -> None:
    """One way after the other."""
    images = np.load(work / "images.npz")["calibration"]
    for way in ways:
        WAYS[way](work, images)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
