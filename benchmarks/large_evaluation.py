"""Evaluate many images: on 1, 2 and 3 workers of a Ray cluster, and in one process whose memory is measured.

    python -m benchmarks.large_evaluation [--work DIR]

The model is the trained ViT for Fashion-MNIST, as ONNX Runtime INT8 beside FP32 PyTorch. All images lie in `.tar`
shards of 1,000 PNG files. The test images are answered by one process, and then by 1, 2 and 3 nodes. The first 10,000
and 50,000 training images are answered by one process. Writes benchmarks/large_evaluation.md, and ends with an error if
a cluster gives another answer than one process, or if memory grows with the images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from benchmarks.fashion_mnist.data import read_split, save_sets
from benchmarks.ray_nodes import start_nodes
from benchmarks.tables import describe_machine, write_page

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("images", "answered by", "seconds", "peak memory of the command, MiB", "answer")
WORKERS = (1, 2, 3)
FEW, MANY = 10_000, 50_000
SHARD = 1000
MOST_GROWTH = 0.1
"""The share by which memory may grow from `FEW` to `MANY` images: what is kept of each image is a few numbers."""
_FOLDER = ROOT / "benchmarks" / "fashion_mnist"
MODEL = f"python:{_FOLDER / 'model.py'}:build"
_SAMPLES = "eval.samples.npz"


@dataclass(frozen=True)
class Answer:
    """One evaluation: digests of its JSON and of its samples, its time, and the command's peak memory."""

    json: str
    samples: str
    seconds: float
    peak_mib: float


def export(work: Path) -> Path:
    """Export the model, calibrated on training images."""
    save_sets(work)
    out = work / "artifact"
    words = ["export", MODEL, "--weights", _FOLDER / "vit.safetensors"]
    words += ["--target", "onnxruntime", "--precision", "int8", "--calibration", work / "calibration.npz", "-o", out]
    subprocess.run(
        [sys.executable, "-m", "vitdeploy", *map(str, words), "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    return out


def write_shards(folder: Path, split: Literal["train", "test"], count: int) -> Path:
    """Write the first images of a split as shards, with their classes; return the folder."""
    folder.mkdir(parents=True)
    images, labels = read_split(split)
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:03}.tar", "w") as shard:
            for number in range(start, start + SHARD):
                picture = io.BytesIO()
                Image.fromarray(images[number]).save(picture, "png")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(labels[number]).encode())):
                    entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    return folder


def evaluate(artifact: Path, data: Path, *options: str) -> Answer:
    """Run `vitdeploy eval` in a process of its own."""
    command = [sys.executable, "-m", "vitdeploy", "eval", str(artifact), "--data", str(data), "--json"]
    command += ["--model", MODEL, *options]  # code of a model runs only if it is given again
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return Answer(
        hashlib.sha256(text).hexdigest(),
        hashlib.sha256((artifact / _SAMPLES).read_bytes()).hexdigest(),
        time.monotonic() - started,
        usage.ru_maxrss / 1024,
    )


def main() -> None:
    """Run all evaluations, compare them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the files here (default: remove them)")
    kept: Path | None = parser.parse_args().work
    work = (kept or Path(tempfile.mkdtemp(prefix="vitdeploy-large-"))).absolute()
    artifact, test = export(work), write_shards(work / "test", "test", FEW)
    alone = evaluate(artifact, test)
    rows = [_describe(f"{FEW:,}", "one process", alone, "that of one process")]
    for count in WORKERS:
        with start_nodes(count) as nodes:
            answer = evaluate(artifact, test, "--ray", nodes.address)
        is_same = (answer.json, answer.samples) == (alone.json, alone.samples)
        rows.append(_describe(f"{FEW:,}", _name(count), answer, "the same bytes" if is_same else "another one"))
    train = {count: write_shards(work / f"train-{count}", "train", count) for count in (FEW, MANY)}
    peaks = {}
    for count, folder in train.items():
        answer = evaluate(artifact, folder)
        peaks[count] = answer.peak_mib
        rows.append(_describe(f"{count:,} of the training set", "one process", answer, "–"))
    write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))
    if kept is None:
        shutil.rmtree(work)
    if any(row[-1] == "another one" for row in rows):
        sys.exit("a cluster gives another answer than one process")
    if peaks[MANY] > (1 + MOST_GROWTH) * peaks[FEW]:
        sys.exit(f"memory grows by more than {MOST_GROWTH:.0%}")


def _name(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _describe(images: str, way: str, answer: Answer, comparison: str) -> tuple[str, ...]:
    return images, way, f"{answer.seconds:.0f}", f"{answer.peak_mib:,.0f}", comparison


def _heading() -> list[str]:
    return [
        "# Large evaluations",
        "",
        "`vitdeploy eval` of the trained ViT for Fashion-MNIST (ONNX Runtime INT8 beside FP32 PyTorch). The images lie",
        f"in `.tar` shards of {SHARD:,} PNG files. Made by `python -m benchmarks.large_evaluation`.",
        "",
        "- *answer*: the JSON that the command prints, and the file with the answers to each sample. With `--ray` both",
        "  are compared with those of one process, byte for byte.",
        "- All workers are on this machine and share its cores, so the seconds say nothing about the speed of a",
        "  cluster. They include the start of Python, and each worker opens both models.",
        "- *peak memory* is that of the command's own process. With `--ray` the nodes answer the images.",
        "",
        describe_machine("torch", "onnxruntime"),
    ]


if __name__ == "__main__":
    main()
