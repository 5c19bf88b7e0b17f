"""Run an artifact of the target onnxruntime on images, without vitdeploy.

usage: run_onnxruntime.py DIR IMAGE…

Needs numpy, Pillow and onnxruntime.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
from deployed_model import Arrays, Model, answer_images


def main(folder: str, *paths: str) -> int:
    """Answer the images."""
    model = Model(folder)
    session = ort.InferenceSession(str(model.file), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> Arrays:
        # The engine may call its outputs otherwise than the manifest: they match by their order.
        return dict(zip(model.outputs, session.run(None, {model.input: images}), strict=True))

    return answer_images(model, list(paths), run)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(f"usage: {sys.argv[0]} DIR IMAGE…")
    raise SystemExit(main(*sys.argv[1:]))
