"""Promptable models as pairs of artifacts: how both in turn differ from PyTorch's whole model, for each kind of prompt.

    python -m benchmarks.promptable

Small SAM, SAM 2 and EdgeTAM with redrawn weights (`benchmarks/promptable_models.py`), in float32 for both CPU targets
and in FP16 for TensorRT-RTX, which is compiled and not run here: there the figures are of the graphs in ONNX Runtime.
Writes benchmarks/promptable.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.promptable_models import FAMILIES, save
from benchmarks.tables import describe_machine, write_page
from vitdeploy.artifact import Parity
from vitdeploy.artifact.family import Family
from vitdeploy.commands.family.export import export_family
from vitdeploy.commands.family.inspect import inspect_family
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import compose

TABLE = Path(__file__).with_suffix(".md")
TARGETS = ("openvino", "onnxruntime", "tensorrt-rtx")
COLUMNS = (
    "model", "target", "precision", "attention fused: encoder", "decoder", "prompt", "largest difference of the masks",
    "of the scores", "masks' IoU, mean",
)  # fmt: skip
HEADING = (
    "# Promptable models in two artifacts",
    "",
    "How far are encoder and decoder in turn from PyTorch's whole model? Small models with redrawn weights, each",
    "compared on an image with a point, with three points (one of them beside the object), with a box, and with 14",
    "points in a box. A difference is relative to the largest value of the output. TensorRT-RTX is compiled for",
    "`sm86` and not run here: its differences are those of its graphs, computed by ONNX Runtime. RepViT, the encoder",
    "of EdgeTAM, amplifies every rounding with redrawn weights, in float32 by up to 60 times as much as that of SAM.",
    "Written by `python -m benchmarks.promptable`.",
    "",
    "{machine}",
)


def main() -> None:
    """Export each model for each target, and write the page."""
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = GraphCache(Path(folder) / "cache")
        for name, build in FAMILIES.items():
            model = Path(folder) / name.replace(" ", "")
            save(build, model)
            for target in TARGETS:
                recipe = compose(f"hf:{model}", target=target)
                result = export_family(recipe, model.with_name(f"{model.name}-{target}"), Silent(), cache=cache)
                rows.extend(describe(name, target, result.family))
    machine = describe_machine("openvino", "onnxruntime", "tensorrt-rtx", "torch", "transformers")
    write_page(TABLE, [line.format(machine=machine) for line in HEADING], COLUMNS, rows)


def describe(name: str, target: str, family: Family) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of prompt."""
    parts = inspect_family(family).parts
    fused = [f"{audit.attention.fused} of {audit.attention.sites}" for audit in parts.values()]
    record = family.record
    overlap = "–" if record.mask_iou is None else f"{record.mask_iou:.4f}"
    parity = record.parity or record.graph_parity
    assert parity is not None
    for prompt, masks, scores in list_prompts(parity):
        yield name, target, record.parts["decoder"].precision, *fused, prompt, f"{masks:.1e}", f"{scores:.1e}", overlap


def list_prompts(parity: Parity) -> Iterator[tuple[str, float, float]]:
    """Yield each kind of prompt with the relative differences of the masks and of the scores."""
    for case in parity.cases:
        shares = {output.name: output.max_abs / output.reference_max for output in case}
        yield case[0].where.split(" on ")[0], shares["pred_masks"], shares["iou_scores"]


if __name__ == "__main__":
    main()
