"""A classifier of eight colours that is nearly always right, as an ONNX file; and folders of images for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = 16
COLOURS = np.array([[r, g, b] for r in (0.2, 0.8) for g in (0.2, 0.8) for b in (0.2, 0.8)], np.float32)


def save_model(path: Path, *, scores: int = len(COLOURS), **metadata: str) -> Path:
    """Save the classifier: float32 (n, 3, 16, 16), pixels from 0 to 1, to the scores of the colours (n, 8)."""
    colours = np.concatenate([COLOURS, np.full((scores - len(COLOURS), 3), 9, np.float32)])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", scores])
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(20 * colours.T.copy(), "weight"),
        numpy_helper.from_array(-10 * (colours**2).sum(axis=1), "bias"),
    ]
    graph = helper.make_graph(nodes, "colours", [image], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def save_images(root: Path, folders: Mapping[str, int] | Sequence[str], count: int = 25, seed: int = 0) -> Path:
    """Save noisy images of colours: folder -> the number of the colour, or folders in the order of the colours."""
    generator = np.random.default_rng(seed)
    pairs = folders.items() if isinstance(folders, Mapping) else zip(folders, range(len(folders)), strict=True)
    for folder, colour in pairs:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            noisy = COLOURS[colour] + generator.normal(0, 0.08, (SIZE, SIZE, 3)) + generator.normal(0, 0.1, 3)
            Image.fromarray((255 * noisy.clip(0, 1)).astype(np.uint8)).save(root / folder / f"{number:03}.png")
    return root
