"""Compile three models with merged tokens for every target, and count the attentions that stay one kernel.

    python -m benchmarks.merged_fusion [--only NAME]

Weights are random: they change nothing about fusion. Everything is read back from what was compiled; nothing is timed.
Writes benchmarks/merged_fusion.md; rows that are in it already are kept, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import save_made_up
from benchmarks.tables import describe_machine, read_rows, write_page
from benchmarks.zoo.making import count_reasons
from vitdeploy import recipe as recipes
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.export import export
from vitdeploy.evidence import Audit
from vitdeploy.graph.structure import load as load_structure
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess

MODELS = {
    "DeiT-Tiny": ("timm:deit_tiny_patch16_224", 224, "3:60,6:60"),
    "ViT-Base": ("timm:vit_base_patch16_224", 224, "3:60,6:60"),
    "DINOv2-Small": ("timm:vit_small_patch14_dinov2.lvd142m", 518, "3:400,6:400"),
}
"""MODEL of the command line, the size of its square images, and what is merged."""
COMPILED = (
    ("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"),
    ("tensorrt-rtx", "fp16"), ("tensorrt-rtx", "int8"),
)  # fmt: skip
CALIBRATION_IMAGES = 4
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "merged", "tokens", "target", "precision", "attention fused", "LayerNorms fused", "reasons")


def main() -> None:
    """Compile what is missing, and write the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="only models whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="make rows again that are in the table")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_rows(TABLE, COLUMNS)
    for name in MODELS:
        if arguments.only in name:
            for row in _measure(name, {(row[3], row[4]) for row in rows if row[0] == name}):
                rows.append(row)
                write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(name: str, existing: set[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    model, size, schedule = MODELS[name]
    for target, precision in COMPILED:
        if (target, precision) in existing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            images = save_made_up(Path(folder) / "images.npz", Preprocess(size=(size, size)), CALIBRATION_IMAGES)
            recipe = recipes.compose(
                model, target=target, precision=precision, weights="random", merge_tokens=schedule,
                calibration=images if precision == "int8" else None,
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # random weights, few images
                artifact = export(recipe, Path(folder) / "artifact", Silent()).artifact
            audit, _ = artifact.read_evidence(Audit)
            structure = load_structure(artifact.path / SITES)
        assert audit is not None
        attention, norms = audit.attention, audit.layernorm
        reasons = count_reasons((*attention.unfused, *norms.unfused), {})
        tokens = dict.fromkeys(site.tokens for site in structure.attention)
        yield (
            name, schedule, " → ".join(map(str, tokens)), target, precision,
            f"{attention.fused} of {attention.sites}", f"{norms.fused} of {norms.sites}",
            "; ".join(f"{count}: {reason}" for reason, count in reasons.items()),
        )  # fmt: skip


def _heading() -> list[str]:
    return [
        "# Fusion with merged tokens",
        "",
        "Do attention and LayerNorm stay one kernel where tokens are merged? `3:60,6:60`: behind block 3 there are 60",
        "tokens fewer, behind block 6 another 60. Every figure is read back from what was compiled: the runtime model",
        "of OpenVINO, the optimized graph of ONNX Runtime, the layer plan of TensorRT-RTX's engine for `sm86`, which",
        "compiles without a GPU. Weights are random. Made by `python -m benchmarks.merged_fusion`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino", "tensorrt_rtx"),
    ]


if __name__ == "__main__":
    main()
