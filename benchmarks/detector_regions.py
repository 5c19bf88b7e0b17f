"""Measure what INT8 costs a detector with its decoder in float, and with everything in INT8.

    python -m benchmarks.detector_regions [--fresh]

The detector is LW-DETR, the model behind RF-DETR, in small: a ViT with windows, a TopK of proposals, a deformable
decoder. It was trained on made-up scenes by `python -m tests.tasks.models lw_detr`. Its twin computes the same function
in float32, with outliers in the decoder. Writes benchmarks/detector_regions.md. Rows that are in it already are kept,
unless --fresh is given.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LwDetrForObjectDetection

from benchmarks.tables import describe_machine, read_rows, write_page
from tests import scenes
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
from vitdeploy.graph import structure
from vitdeploy.progress import Silent
from vitdeploy.render.numbers import drop

TABLE = Path(__file__).with_suffix(".md")
WEIGHTS = Path(__file__).parents[1] / "tests" / "tasks" / "fixtures" / "lw_detr"
COLUMNS = ("model", "target", "way", "images", "FP32 mAP", "mAP", "drop, points [95 %]", "agreement", "linears in INT8")
CALIBRATION_IMAGES, TEST_IMAGES = 64, 400
_FIRST_CALIBRATION, _FIRST_TEST = 100_000, 200_000  # scenes that were not trained on
_OUTLIER_CHANNELS = 2
_OUTLIER_GAIN = 200.0
MODELS = ("trained", "hostile twin")
TARGETS = ("openvino",)
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {"kind": "fp32"},
    "int8, decoder in float (the default)": {"kind": "int8"},
    "int8 everywhere (`float_decoder: false`)": {"kind": "int8", "float_decoder": False},
}


def save_hostile(folder: Path) -> Path:
    """Write the twin: the same function in float32, with outliers in the decoder."""
    shutil.copytree(WEIGHTS, folder)
    model = LwDetrForObjectDetection.from_pretrained(WEIGHTS, dtype=torch.float32)
    add_decoder_outliers(model)
    model.save_pretrained(folder)
    return folder


def add_decoder_outliers(detector: Any, gain: float = _OUTLIER_GAIN) -> None:
    """Multiply a few channels between two linears of the decoder by `gain`, and divide them in the second one.

    Between them is a ReLU, or a weighted mean of values, which both keep a positive factor. The linears are in place.
    """
    pairs = [(layer.mlp.fc1, layer.mlp.fc2) for layer in detector.model.decoder.layers]
    pairs += [(layer.self_attn.v_proj, layer.self_attn.o_proj) for layer in detector.model.decoder.layers]
    for mlp in (detector.bbox_embed, detector.model.enc_out_bbox_embed[0], detector.model.decoder.ref_point_head):
        pairs += list(zip(mlp.layers[:-1], mlp.layers[1:], strict=True))
    with torch.no_grad():
        for first, second in pairs:
            strongest = (first.weight.abs().sum(1) * second.weight.abs().sum(0)).topk(_OUTLIER_CHANNELS).indices
            first.weight[strongest] *= gain
            first.bias[strongest] *= gain
            second.weight[:, strongest] /= gain


def measure(model: str, weights: Path, target: str, way: str, folder: Path, data: Path) -> tuple[str, ...]:
    """Export and evaluate one way; return its row."""
    recipe = recipes.compose(f"hf:{weights}", target=target, calibration=str(data / "calibration"))
    precision = replace(recipe.precision, **WAYS[way])
    artifact = export(replace(recipe, precision=precision), folder / "out", Silent()).artifact
    return _row(model, target, way, evaluate(artifact, str(data / "test"), Silent()), artifact)


def _row(model: str, target: str, way: str, evaluation: Eval, artifact: Artifact) -> tuple[str, ...]:
    metric, placement = evaluation.metrics["map"], artifact.manifest.placement
    linears = [linear.name for linear in structure.load(artifact.file(SITES)).linears]
    quantized = sum(placement[name].quantized for name in linears) if placement else 0
    return (
        model, target, way, str(evaluation.n), f"{metric.reference:.2f}", f"{metric.deployed:.2f}", drop(metric),
        f"{100 * evaluation.agreement:.1f} %", f"{quantized} of {len(linears)}",
    )  # fmt: skip


def main() -> None:
    """Measure all rows, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the table has already")
    rows = [] if parser.parse_args().fresh else read_rows(TABLE, COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        scenes.write(data / "calibration", CALIBRATION_IMAGES, first=_FIRST_CALIBRATION)
        scenes.write(data / "test", TEST_IMAGES, first=_FIRST_TEST)
        weights = dict(zip(MODELS, (WEIGHTS, save_hostile(data / "hostile")), strict=True))
        for model, target, way in itertools.product(MODELS, TARGETS, WAYS):
            if (model, target, way) in {row[:3] for row in rows}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(model, weights[model], target, way, Path(folder), data))
            print(*rows[-1], sep=" | ", flush=True)
            write_page(TABLE, _heading(), COLUMNS, rows)


def _heading() -> list[str]:
    return [
        "# INT8 of a detector, by region",
        "",
        "Made by `python -m benchmarks.detector_regions`. The detector is a small LW-DETR (the model behind RF-DETR),",
        "trained on made-up scenes by `python -m tests.tasks.models lw_detr`. INT8 is calibrated on "
        f"{CALIBRATION_IMAGES} scenes.",
        "The drop is FP32 - deployed, in points of mAP, with its paired 95 % interval (bootstrap over images); above 0",
        "the deployed model is worse. Agreement: F1 of the confident boxes of both. The hostile twin computes the same",
        f"FP32 function, with {_OUTLIER_CHANNELS} channels between each two linears of its decoder "
        f"{_OUTLIER_GAIN:g} times as",
        "large (`add_decoder_outliers`).",
        "",
        describe_machine("torch", "transformers", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
