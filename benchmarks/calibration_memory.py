"""Does calibration take the same memory whatever the number of images? It has to: images stream.

    python -m benchmarks.calibration_memory

Exports DeiT-Tiny (random weights) to OpenVINO INT8 with 64, 256 and 1,024 JPEGs, each in a process of its own, writes
benchmarks/calibration_memory.md with the peak of each, and fails when they are more than 10 % apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitdeploy import environment
from vitdeploy.data.synthetic import natural_image
from vitdeploy.recipe import Preprocess

COUNTS = (64, 256, 1024)
MODEL = "timm:deit_tiny_patch16_224"
TABLE = Path(__file__).with_suffix(".md")
APART = 0.1
RECIPE = """
model: {{spec: "{model}", weights: random}}
target: {{kind: openvino}}
precision: {{kind: int8}}
data: {{calibration: images, calibration_images: {count}}}
"""


def main() -> None:
    """Measure, write the table, and judge it."""
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder) / "images")
        peaks = {count: _peak_mib(Path(folder), count) for count in COUNTS}
    TABLE.write_text(_table(peaks), encoding="utf-8")
    print(_table(peaks))
    if max(peaks.values()) > (1 + APART) * min(peaks.values()):
        sys.exit(f"the peaks are more than {APART:.0%} apart")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    base = natural_image(0, Preprocess(size=(224, 224)), 1)[0].transpose(1, 2, 0)
    for number in range(max(COUNTS)):
        Image.fromarray(np.roll(base, 7 * number, axis=(0, 1))).save(folder / f"{number:04}.jpg")


def _peak_mib(folder: Path, count: int) -> float:
    recipe = folder / f"{count}.yaml"
    recipe.write_text(RECIPE.format(model=MODEL, count=count), encoding="utf-8")
    words = ["export", MODEL, "--recipe", recipe, "-o", folder / str(count), "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "vitdeploy", *map(str, words)], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the export with {count} images failed")
    return usage.ru_maxrss / 1024


def _table(peaks: dict[int, float]) -> str:
    versions = environment.library_versions()
    return "\n".join(
        [
            "# Memory of calibration",
            "",
            "Peak resident memory of the whole process that exports DeiT-Tiny to OpenVINO INT8 (PyTorch's export, the",
            "search, compiling and a look at the speed included). Made by `python -m benchmarks.calibration_memory`.",
            "",
            f"{environment.host().cpu}; "
            + ", ".join(f"{k} {versions[k]}" for k in ("torch", "onnxruntime", "openvino")),
            "",
            "| calibration images | peak, MiB |",
            "|---|---|",
            *(f"| {count:,} | {peak:,.0f} |" for count, peak in peaks.items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
