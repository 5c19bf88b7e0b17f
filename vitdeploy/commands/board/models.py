"""The small models that a board builds, in every precision, in one archive of the package.

benchmarks/board_models.py writes the archive: `vit` is a plain ViT, `window` a Swin with shifted windows and bias
tables, `rope` an EVA-02 with rotary positions. Each has two blocks with heads of 32 channels.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy import precision as precisions
from vitdeploy.artifact import Manifest, TensorSpec
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.errors import TargetUnavailable
from vitdeploy.recipe import Batch
from vitdeploy.runtime.artifact_session import list_excluded, make_bundle
from vitdeploy.session import Array
from vitdeploy.targets import Bundle

MODELS = ("vit", "window", "rope")
PRECISIONS = ("fp32", "fp16", "int8", "bf16", "fp8")
ASSET = Path(__file__).parents[2] / "assets" / "board.tar.xz"
EXAMPLE, FACTS = "example.npz", "facts.json"


class BundleFacts(BaseModel):
    """The facts about a bundle that its compiler and audit need, beside the graph and its sites."""

    model_config = ConfigDict(frozen=True)
    image: TensorSpec
    outputs: tuple[TensorSpec, ...]
    excluded: Mapping[str, str]


@dataclass(frozen=True)
class BoardModel:
    """A bundle in a folder, an image in the form that it takes, and what FP32 computes for it."""

    bundle: Bundle
    image: Array
    expected: Mapping[str, Array]


def describe(manifest: Manifest) -> BundleFacts:
    """Return the facts of an exported bundle."""
    excluded = list_excluded(manifest.placement, manifest.quantized)
    return BundleFacts(image=manifest.inputs[0], outputs=manifest.outputs, excluded=excluded)


def to_image(pixels: Array) -> Array:
    """Return the input of these models: float32 (1, 3, height, width) of uint8 (height, width, 3)."""
    image = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def unpack(model: str, precision: str, folder: Path) -> BoardModel:
    """Write the bundle of a model in a precision into an existing folder.

    Raises:
        TargetUnavailable: this Python cannot read the archive.
    """
    try:
        with tarfile.open(ASSET) as archive:
            for name in (GRAPH, SITES):
                (folder / name).write_bytes(_read(archive, f"{model}/{precision}/{name}"))
            facts = BundleFacts.model_validate_json(_read(archive, f"{model}/{precision}/{FACTS}"))
            example = _read(archive, f"{model}/{EXAMPLE}")
    except tarfile.CompressionError as error:
        raise TargetUnavailable(
            f"the models for a recording cannot be unpacked: {error}", fix="Use the system's Python, which has lzma."
        ) from None
    with np.load(io.BytesIO(example)) as arrays:
        expected = {name: arrays[name] for name in arrays.files if name != "pixels"}
        image = to_image(arrays["pixels"])
    numbers = precisions.kind_of(precision).numbers
    bundle = make_bundle(folder, numbers, facts.image, facts.outputs, Batch(), None, facts.excluded)
    return BoardModel(bundle, image, expected)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()
