"""Exported float32 graphs, kept so that a model is exported once for all its targets, precisions and commands.

A graph is kept under a digest of all that decides it: the weights, the code and settings of the model, the versions of
the libraries, and how it is exported. Its numbers are compared with the model's again wherever it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import ValidationError

from vitdeploy import environment
from vitdeploy.artifact import ExportRecord
from vitdeploy.recipe import Batch
from vitdeploy.sources import LoadedModel

MOST_BYTES = 4 << 30
"""Of all graphs together: ten of ViT-Base. The least recently used go first."""

_GRAPH, _RECORD = "exported.onnx", "record.json"
_LIBRARIES = ("vitdeploy", "torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir", "onnxscript")
_FREE_SHARE = 2
"""A graph is kept only where this many times its size is free on the disk."""


class GraphCache:
    """A folder of exported graphs. It never makes an export fail: what it cannot keep is exported again."""

    def __init__(self, folder: Path | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        """`folder` is the user's cache folder, unless another one is given."""
        self.folder = folder or user_cache_path("vitdeploy") / "graphs"
        self._most_bytes = most_bytes

    def fetch(self, key: str, work: Path) -> tuple[Path, ExportRecord] | None:
        """Put a kept graph into `work`, and return it with the record of its export; None if there is none."""
        place = self.folder / key
        try:
            record = ExportRecord.model_validate_json((place / _RECORD).read_bytes())
            for file in place.glob(f"{_GRAPH}*"):
                _link(file, work / file.name)
            os.utime(place)
        except (OSError, ValidationError):
            return None
        return work / _GRAPH, record

    def keep(self, key: str, graph: Path, record: ExportRecord) -> None:
        """Keep a graph that was written to `graph`, with the weights beside it, and drop the least recently used."""
        files = sorted(graph.parent.glob(f"{graph.name}*"))
        size = sum(file.stat().st_size for file in files)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if _FREE_SHARE * size > shutil.disk_usage(self.folder).free or size > self._most_bytes:
                return
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".partial-") as partial:
                inside = Path(partial) / key
                inside.mkdir()
                for file in files:
                    shutil.copyfile(file, inside / file.name.replace(graph.name, _GRAPH, 1))
                (inside / _RECORD).write_text(record.model_dump_json(), encoding="utf-8")
                inside.rename(self.folder / key)  # fails where somebody else has kept it meanwhile
        with suppress(OSError):
            self._drop_oldest()

    def discard(self, key: str) -> None:
        """Remove a graph, if it is there."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _drop_oldest(self) -> None:
        places = [place for place in self.folder.iterdir() if not place.name.startswith(".")]
        sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in places}
        total = sum(sizes.values())
        for place in sorted(places, key=lambda p: p.stat().st_mtime):
            if total <= self._most_bytes:
                return
            shutil.rmtree(place)
            total -= sizes[place]


def cache_key(model: LoadedModel, shapes: tuple[tuple[int, ...], ...], batch: Batch) -> str:
    """Return the digest of all that decides the exported graph of a model.

    Args:
        model: with a module.
        shapes: of the images it is traced and compared with.
        batch: sizes that the graph takes.
    """
    from vitdeploy import onnx_export

    versions = environment.library_versions()
    facts = {
        "weights": model.digest,
        "code": model.code_digest,
        "input": model.input_name,
        "shapes": shapes,
        "batch": str(batch),
        "python": platform.python_version(),
        "exporter": hashlib.sha256(Path(onnx_export.__file__).read_bytes()).hexdigest(),
        **{name: versions.get(name, "") for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _link(source: Path, target: Path) -> None:
    """Make a file appear under another name: a link where the disk is the same, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
