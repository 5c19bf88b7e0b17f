"""CLIP with ten prompts: what INT8 does to its scores, on 500 images.

    python -m benchmarks.prompts

Three small CLIPs that name ten digits (`benchmarks.as_clip`): one that was trained, and two as the config initialises
them, whose text projection is solved. Each is exported with `--prompts` in FP32 and INT8 for both CPU targets. Scores
are compared with PyTorch's in float32: the cosine over all images and prompts, with the mean of each prompt taken off,
because scores that hardly depend on the image would agree by it alone. Writes benchmarks/prompts.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

import vitdeploy
from benchmarks.as_clip import DIGITS, SPREAD, save_clip, teach, train_clip
from benchmarks.tables import describe_machine, write_page
from benchmarks.training import Plan
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.preprocess import apply
from vitdeploy.recipe import ModelSpec
from vitdeploy.session import Array
from vitdeploy.sources import load

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "right in PyTorch %", "cosine of two images", "target", "precision", "cosine of scores", "right %",
    "same answer %", "largest difference",
)  # fmt: skip
HEADING = (
    "# CLIP with ten prompts",
    "",
    "How near are the scores of INT8 to PyTorch's in float32? CLIPs of {width} x {depth} for 32 x 32 pixels, with",
    "ten prompts that name digits (`benchmarks/as_clip.py`), on {count} digits that they were neither calibrated nor",
    "trained on. `cosine of scores`: over all images and prompts, with the mean of each prompt taken off; at least",
    "0.99 is wanted. Two models are as their config initialises them, with an `initializer_factor` of 1 or {factor:g};",
    "only their text projection is solved. `cosine of two images`: of the embeddings of two images, in the mean of",
    "all pairs. Near 1, the embedding hardly depends on the image, so that little noise changes the scores much.",
    "Written by `python -m benchmarks.prompts`.",
    "",
    "{machine}",
)
WIDTH, DEPTH, IMAGES = 192, 6, 500
TRAINING = Plan(seed=0, epochs=30, batch=64, peak_learning_rate=1e-3, label_smoothing=0.0)
FACTORS = {"trained": 1.0, "initialised, factor 1": 1.0, f"initialised, factor {SPREAD:g}": SPREAD}
"""The models, and the `initializer_factor` of their image tower."""
_CALIBRATION = 128


def main() -> None:
    """Make the models, export, compare, and write the page."""
    arrays = read_npz(Path(vitdeploy.__file__).parent / "assets" / "digits.npz", "")
    images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    test, rest = order[:IMAGES], order[IMAGES:]
    rows: list[tuple[str, ...]] = []
    for name in FACTORS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make(name, root / "clip", list(images[rest]), labels[rest])
            save_images(root / "calibration", images[rest[:_CALIBRATION]])
            rows.extend(measure(name, root, list(images[test]), labels[test]))
    machine = describe_machine("openvino", "onnxruntime", "torch", "transformers")
    facts = {"width": WIDTH, "depth": DEPTH, "factor": SPREAD, "count": len(test), "machine": machine}
    write_page(TABLE, [line.format(**facts) for line in HEADING], COLUMNS, rows)


def make(name: str, folder: Path, images: list[Array], classes: Array) -> None:
    """Save one of the models, which knows these images."""
    save_clip(folder, image=32, width=WIDTH, depth=DEPTH, factor=FACTORS[name])
    if name == "trained":
        train_clip(folder, DIGITS, images, classes, TRAINING)
    else:
        teach(folder, DIGITS, images, classes)


def measure(name: str, root: Path, images: list[Array], classes: Array) -> Iterator[tuple[str, ...]]:
    """Export `root/clip` in each precision for each target, and yield a row for each."""
    spec = f"hf:{root / 'clip'}"
    tower, model = load(ModelSpec(spec=spec)), load(ModelSpec(spec=spec, prompts=DIGITS))
    assert tower.module is not None and model.module is not None
    pixels = np.stack([apply(image, model.preprocess) for image in images])
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(pixels))["logits"].numpy()
        vectors = functional.normalize(tower.module(torch.from_numpy(pixels))["image_embeds"], dim=-1)
    count = len(vectors)
    alike = float((vectors @ vectors.T).sum() - count) / (count * (count - 1))
    right = f"{100 * float((expected.argmax(axis=1) == classes).mean()):.1f}"
    for target in ("openvino", "onnxruntime"):
        for precision in ("fp32", "int8"):
            artifact = vitdeploy.export(
                spec, target=target, precision=precision, prompts=DIGITS, calibration=str(root / "calibration"),
                output=root / f"{target}-{precision}",
            )  # fmt: skip
            with vitdeploy.load(artifact.path) as deployed:
                scores = np.concatenate([deployed.run(image[None])["logits"] for image in pixels])
            row = (name, right, f"{alike:.3f}", target, precision, *compare(scores, expected, classes))
            print(*row, sep=" | ", flush=True)
            yield row


def compare(scores: Array, expected: Array, labels: Array) -> tuple[str, ...]:
    """Return the last four cells of a row."""
    centred, wanted = (value - value.mean(axis=0) for value in (scores.astype(np.float64), expected.astype(np.float64)))
    cosine = float((centred * wanted).sum() / np.sqrt((centred**2).sum() * (wanted**2).sum()))
    right = 100 * float((scores.argmax(axis=1) == labels).mean())
    same = 100 * float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return f"{cosine:.5f}", f"{right:.1f}", f"{same:.1f}", f"{float(np.abs(scores - expected).max()):.2g}"


def save_images(folder: Path, images: Array) -> None:
    """Save grey images as PNG."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")


if __name__ == "__main__":
    main()
