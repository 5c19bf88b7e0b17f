"""Does attention stay fused when the linears are INT8 or FP8? Read from what was compiled.

    python -m benchmarks.int8_fusion [--fresh]

Four families, five ways each, through `vitdeploy`'s own export: timm's architecture with random weights (fusion does
not depend on them), calibrated on crops of the two photographs that scikit-learn ships. Writes
benchmarks/int8_fusion.md; rows that are in it already are kept unless --fresh is given.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.tables import machine, rows_of, written
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import Audit
from vitdeploy.progress import Silent

MODELS = {
    "deit_tiny_patch16_224": None,
    "swin_tiny_patch4_window7_224": None,
    "vit_base_patch16_224": None,
    "vit_small_patch14_dinov2": "518",
}
"""timm's name, and the image size where it is not the model's own."""
WAYS = (
    ("openvino", None, "int8", False),
    ("onnxruntime", None, "int8", False),
    ("tensorrt-rtx", "sm86", "int8", False),
    ("tensorrt-rtx", "sm86", "int8", True),
    ("tensorrt-rtx", "sm89", "fp8", False),
)
"""Target, device, precision, and whether attention is INT8 as well."""
CROPS = 4
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "target", "attention fused", "linears", "kernels of the attention", "not as wished", "s")


def main() -> None:
    """Export, read back, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what the table has already")
    rows = [] if parser.parse_args().fresh else rows_of(TABLE, COLUMNS)
    for name in MODELS:
        for way in WAYS:
            if (name, _title(*way)) not in {row[:2] for row in rows}:
                rows.append(measured(name, *way))
                print(*rows[-1], sep=" | ", flush=True)
                written(TABLE, _heading(), COLUMNS, rows)


def measured(name: str, target: str, device: str | None, precision: str, attention: bool) -> tuple[str, ...]:
    """One row: the model exported for the target, and what its compiled form says; or why it was refused."""
    title, started = _title(target, device, precision, attention), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "out"
        save_crops(images)
        recipe = recipes.compose(
            f"timm:{name}", target=target, device=device, precision=precision, weights="random",
            calibration=str(images), image_size=MODELS[name],
        )  # fmt: skip
        asked = recipe.precision.model_copy(update={"attention": attention})
        try:
            export(recipe.model_copy(update={"precision": asked}), out, Silent())
        except QuantizeError as error:
            return name, title, "", "", "", f"refused: {error.message}", ""
        audit = inspect(out)
    seconds = time.monotonic() - started
    fused = f"{audit.attention.fused}/{audit.attention.sites}"
    kernels = ", ".join(sorted({re.sub(r"_?\d+$|_0x.*", "", k) for k in audit.attention.kernels.values()}))
    linears = ", ".join(f"{n} {kind}" for kind, n in audit.linears.model_dump().items() if n)
    return (
        name, title, fused, linears, kernels, "; ".join(_exceptions(audit)),
        f"{seconds:.0f}",
    )  # fmt: skip


def save_crops(folder: Path, count: int = CROPS) -> None:
    """Random square crops of scikit-learn's two photographs (427 x 640 pixels), as PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height, width, _ = photograph.shape
        size = int(rng.integers(height // 2, height + 1))
        top, left = (int(rng.integers(0, side - size + 1)) for side in (height, width))
        Image.fromarray(photograph[top : top + size, left : left + size]).save(folder / f"{number:02}.png")


def _title(target: str, device: str | None, precision: str, attention: bool) -> str:
    return " ".join(part for part in (target, device, precision) if part) + (", attention too" if attention else "")


def _exceptions(audit: Audit) -> Iterator[str]:
    """What is not fused, or in another precision than asked for, each reason once."""
    for reason, n in Counter(re.sub(r": .*", "", u.reason) for u in audit.attention.unfused).items():
        yield f"{n} unfused: {reason}"
    others: dict[str, list[str]] = {}
    for name, precision in audit.layers.items():
        if precision != audit.precision:
            others.setdefault(precision, []).append(name)
    for precision, names in others.items():
        yield f"{precision}: {', '.join(names)}"


def _heading() -> list[str]:
    return [
        "# Attention after INT8 and FP8",
        "",
        "Made by `python -m benchmarks.int8_fusion`: what `vitdeploy export --weights random` compiled, read back",
        "from OpenVINO's runtime model, ONNX Runtime's profile and TensorRT-RTX's layer plan. `fused`: attentions that",
        "run as one kernel. `linears`: in which precision the kernel multiplies, the patch embedding counted.",
        "",
        machine("timm", "onnxruntime", "openvino", "tensorrt-rtx"),
    ]


if __name__ == "__main__":
    main()
