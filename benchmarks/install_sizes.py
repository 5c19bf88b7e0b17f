"""The disk space of every extra: each is installed into a fresh virtual environment, with the tested versions.

`python -m benchmarks.install_sizes` writes install_sizes.md. It downloads several GB, takes about ten minutes, and
needs 8 GB of free disk under the temporary folder. Rows that are in the table already are kept.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from benchmarks.tables import read_rows, write_page

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("install", "size, GB", "of that CUDA, GB", "packages", "largest")
EXTRAS = (
    "", "report", "detection", "data", "quantize", "sign", "log", "sweep", "onnxruntime", "trt-rtx", "cuda",
    "openvino", "tensorrt-rtx", "export", "export,openvino", "hf", "all",
)  # fmt: skip
_CUDA = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names of packages that the CUDA build of PyTorch requires, and its CPU build does not."""
_LARGEST = 3


def main() -> None:
    """Measure the extras that the table lacks."""
    rows = read_rows(TABLE, COLUMNS)
    for extras in EXTRAS:
        name = f"`vitdeploy[{extras}]`" if extras else "`vitdeploy`"
        if name in [row[0] for row in rows]:
            continue
        rows.append((name, *measure(extras)))
        write_page(TABLE, heading(), COLUMNS, rows)


def measure(extras: str) -> tuple[str, ...]:
    """Install vitdeploy with these extras into a new environment, and return the cells of its row."""
    with tempfile.TemporaryDirectory(prefix="vitdeploy-size-") as folder:
        venv.create(folder, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", f"{folder}/bin/python", "install", "-q"]
        project = f"{ROOT}[{extras}]" if extras else str(ROOT)
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", project], check=True)
        (site,) = Path(folder, "lib").glob("python*/site-packages")
        sizes = {found.name.lower(): size_of(found) for found in distributions(path=[str(site)])}
        total = sum(path.lstat().st_size for path in site.rglob("*") if not path.is_dir())
    cuda = sum(size for name, size in sizes.items() if name.startswith(_CUDA))
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST]
    shown = ", ".join(f"{name} {in_gb(sizes[name])}" for name in largest)
    return in_gb(total), in_gb(cuda) if cuda else "", str(len(sizes)), shown


def size_of(distribution: Distribution) -> int:
    """Return the bytes of the files that a package has installed."""
    return sum(path.lstat().st_size for path in installed_files(distribution))


def installed_files(distribution: Distribution) -> Iterator[Path]:
    """Yield the files of a package that exist."""
    for file in distribution.files or []:
        path = Path(str(distribution.locate_file(file)))
        if path.exists():
            yield path


def in_gb(size: int) -> str:
    """Format bytes as GB, 10⁹ bytes, with two digits after the point."""
    return f"{size / 1e9:.2f}"


def heading() -> list[str]:
    """Return the lines above the table."""
    return [
        "# What an installation takes on disk",
        "",
        "Each extra was installed into a fresh virtual environment from the package index, in the versions of",
        "`constraints.txt`. A GB is 10⁹ bytes. *Of that CUDA* are the packages that PyTorch for CUDA brings for NVIDIA",
        "GPUs; PyTorch's CPU build requires none of them. Made by `python -m benchmarks.install_sizes`.",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}.",
    ]


if __name__ == "__main__":
    main()
