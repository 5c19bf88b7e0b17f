"""CLIP with ten prompts: what INT8 does to its scores, on 500 images.

    python -m benchmarks.prompts

A small CLIP as its config initialises it, whose text projection is solved so that ten prompts name ten digits
(`benchmarks.as_clip`). It is exported with `--prompts` in FP32 and INT8 for both CPU targets. Scores are compared with
PyTorch's in float32: the cosine over all images and prompts, with the mean of each prompt taken off, because scores
that hardly depend on the image would agree by it alone. Writes benchmarks/prompts.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vitdeploy
from benchmarks.as_clip import DIGITS, SPREAD, save_clip, teach
from benchmarks.tables import describe_machine, write_page
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.preprocess import apply
from vitdeploy.recipe import ModelSpec
from vitdeploy.session import Array
from vitdeploy.sources import load

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("target", "precision", "cosine of scores", "top-1 %", "same answer %", "largest difference")
HEADING = (
    "# CLIP with ten prompts",
    "",
    "How near are the scores of INT8 to PyTorch's in float32? A CLIP of {width} x {depth} for 32 x 32 pixels, as",
    "its config initialises it, with an `initializer_factor` of {factor:g} so that embeddings depend on the image.",
    "Its text projection is solved so that ten prompts name digits (`benchmarks/as_clip.py`). {count} digits that",
    "it was neither calibrated nor solved on. Cosine over all images and prompts, with the mean of each prompt",
    "taken off; at least 0.99 is wanted. PyTorch in float32 is right for {top1:.1f} % of them. Its scores of a",
    "prompt have a standard deviation of {spread:.2g}. Written by `python -m benchmarks.prompts`.",
    "",
    "{machine}",
)
WIDTH, DEPTH, IMAGES = 192, 6, 500
_CALIBRATION = 128


def main() -> None:
    """Export and compare."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        arrays = read_npz(Path(vitdeploy.__file__).parent / "assets" / "digits.npz", "")
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
        order = np.random.default_rng(0).permutation(len(images))
        test, rest = order[:IMAGES], order[IMAGES:]
        save_clip(root / "clip", image=32, width=WIDTH, depth=DEPTH)
        teach(root / "clip", DIGITS, list(images[rest]), labels[rest])
        save_images(root / "calibration", images[rest[:_CALIBRATION]])
        model = load(ModelSpec(spec=f"hf:{root / 'clip'}", prompts=DIGITS))
        pixels = np.stack([apply(images[index], model.preprocess) for index in test])
        assert model.module is not None
        with torch.inference_mode():
            expected = model.module(torch.from_numpy(pixels))["logits"].numpy()
        rows = []
        for target in ("openvino", "onnxruntime"):
            for precision in ("fp32", "int8"):
                artifact = vitdeploy.export(
                    f"hf:{root / 'clip'}", target=target, precision=precision, prompts=DIGITS,
                    calibration=str(root / "calibration"), output=root / f"{target}-{precision}",
                )  # fmt: skip
                with vitdeploy.load(artifact.path) as deployed:
                    scores = np.concatenate([deployed.run(image[None])["logits"] for image in pixels])
                rows.append((target, precision, *compare(scores, expected, labels[test])))
                print(*rows[-1], flush=True)
    top1 = 100 * float((expected.argmax(axis=1) == labels[test]).mean())
    spread = float(expected.std(axis=0).mean())
    facts = {"width": WIDTH, "depth": DEPTH, "factor": SPREAD, "count": len(test), "top1": top1, "spread": spread}
    machine = describe_machine("openvino", "onnxruntime", "torch", "transformers")
    write_page(TABLE, [line.format(**facts, machine=machine) for line in HEADING], COLUMNS, rows)


def compare(scores: Array, expected: Array, labels: Array) -> tuple[str, ...]:
    """Return the cells of the columns from the third on."""
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
