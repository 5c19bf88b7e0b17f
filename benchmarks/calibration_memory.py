"""Check that calibration takes the same memory for any number of images, as it has to when images are streamed.

    python -m benchmarks.calibration_memory

Exports DeiT-Tiny (random weights) to OpenVINO INT8 with 64, 256 and 1,024 JPEGs, each in a process of its own. Writes
the peak memory of each process to benchmarks/calibration_memory.md, and fails if the peaks differ by more than 10 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tables import describe_machine, write_page
from vitdeploy.data.synthetic import natural_image
from vitdeploy.recipe import Preprocess

COUNTS = (64, 256, 1024)
MODEL = "timm:deit_tiny_patch16_224"
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("calibration images", "peak, MiB")
LARGEST_DIFFERENCE = 0.1
RECIPE = """
model: {{spec: "{model}", weights: random}}
target: {{kind: openvino}}
precision: {{kind: int8}}
data: {{calibration: images, calibration_images: {count}}}
"""


def main() -> None:
    """Measure, write the table, and compare the peaks."""
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder) / "images")
        peaks = {count: _measure_peak_mib(Path(folder), count) for count in COUNTS}
    write_page(TABLE, _heading(), COLUMNS, [(f"{count:,}", f"{peak:,.0f}") for count, peak in peaks.items()])
    print(TABLE.read_text(encoding="utf-8"))
    if max(peaks.values()) > (1 + LARGEST_DIFFERENCE) * min(peaks.values()):
        sys.exit(f"the peaks differ by more than {LARGEST_DIFFERENCE:.0%}")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    base = natural_image(0, Preprocess(size=(224, 224)), 1)[0].transpose(1, 2, 0)
    for number in range(max(COUNTS)):
        Image.fromarray(np.roll(base, 7 * number, axis=(0, 1))).save(folder / f"{number:04}.jpg")


def _measure_peak_mib(folder: Path, count: int) -> float:
    recipe = folder / f"{count}.yaml"
    recipe.write_text(RECIPE.format(model=MODEL, count=count), encoding="utf-8")
    words = ["export", MODEL, "--recipe", recipe, "-o", folder / str(count), "--no-cache", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "vitdeploy", *map(str, words)], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the export with {count} images failed")
    return usage.ru_maxrss / 1024


def _heading() -> list[str]:
    return [
        "# Memory of calibration",
        "",
        "Peak resident memory of the whole process that exports DeiT-Tiny to OpenVINO INT8. It includes PyTorch's",
        "export, the search, compiling and a first look at the speed. Made by",
        "`python -m benchmarks.calibration_memory`.",
        "",
        describe_machine("torch", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
