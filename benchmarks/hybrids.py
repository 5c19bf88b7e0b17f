"""Measure how much of hybrids of convolutions and attention is INT8.

    python -m benchmarks.hybrids [--fresh]

Exports timm's architectures with random weights in INT8, calibrated on crops of the two photographs that scikit-learn
ships, and reads back what was compiled. Writes benchmarks/hybrids.md. Rows that are in it already are kept, unless
--fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import save_crops
from benchmarks.tables import describe_machine, read_rows, write_page
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.evidence import Audit
from vitdeploy.progress import Silent

MODELS = (
    "coatnet_nano_rw_224",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "fastvit_sa12",
    "mobilenetv4_hybrid_medium",
    "mobilevitv2_050",
)
TARGETS = ("openvino", "onnxruntime")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "target", "weights in INT8", "products in INT8", "attention fused", "in float, share of the products",
)  # fmt: skip


def main() -> None:
    """Export and audit every model, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the table has already")
    rows = [] if parser.parse_args().fresh else read_rows(TABLE, COLUMNS)
    for model in MODELS:
        for target in TARGETS:
            if (model, target) not in {row[:2] for row in rows}:
                rows.append(make_row(model, target))
                print(*rows[-1], sep=" | ", flush=True)
                write_page(TABLE, _heading(), COLUMNS, rows)


def make_row(model: str, target: str) -> tuple[str, ...]:
    """Export a model in INT8; return what its compiled form shows."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = save_crops(work / "images", count=16)
        recipe = recipes.compose(f"timm:{model}", target=target, precision="int8", weights="random", calibration=images)
        audit = inspect(export(recipe, work / "out", Silent()).artifact)
    share = audit.quantized
    assert share is not None
    fused = f"{audit.attention.fused}/{audit.attention.sites}"
    percents = (f"{share.weights_pct:.1f} %", f"{share.macs_pct:.1f} %")
    return model, target, *percents, fused, "; ".join(_list_rules(audit))


def _list_rules(audit: Audit) -> Iterator[str]:
    """Yield what stays in float, with its share of the multiply-accumulates."""
    assert audit.quantized is not None
    for kind, percent in audit.quantized.outside.items():
        yield f"{kind}: {percent:.1f} %"


def _heading() -> list[str]:
    return [
        "# Hybrids in INT8",
        "",
        "Most weights of these models are in 1×1 convolutions. `weights in INT8` and `products in INT8` are shares of",
        "all weights and of all multiply-accumulates with weights, by the kernels that were compiled. `in float`: what",
        "is left, with its share of the multiply-accumulates. Random weights. Made by `python -m benchmarks.hybrids`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
