"""A cache of exported float32 graphs, so that a model is exported once for all targets, precisions and commands.

The key of a graph is a digest of everything that decides it: the weights, code and settings of the model, the versions
of the libraries, and the code of the exporter. Every use compares its numbers with the model's again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import ValidationError

from vitdeploy import environment
from vitdeploy.artifact import ExportRecord, atomic_folder
from vitdeploy.artifact.locks import locked
from vitdeploy.artifact.temporary import remove_abandoned
from vitdeploy.errors import ArtifactError
from vitdeploy.recipe import Batch
from vitdeploy.sources import LoadedModel

MOST_BYTES = 4 << 30
"""The size of the cache: ten graphs of ViT-Base. The least recently used graphs are removed first."""

_GRAPH, _RECORD = "exported.onnx", "record.json"
_LIBRARIES = ("vitdeploy", "torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir", "onnxscript")
_FREE_SHARE = 2
"""A graph is stored only if the disk has this many times its size free."""


class GraphCache:
    """A folder of exported graphs. A graph that it cannot store is exported again; it never makes an export fail."""

    def __init__(self, folder: Path | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        """Use `folder`, by default the user's cache folder."""
        self.folder = folder or user_cache_path("vitdeploy") / "graphs"
        self._most_bytes = most_bytes

    def fetch(self, key: str, work: Path) -> tuple[Path, ExportRecord] | None:
        """Put a stored graph into `work`, and return its path with the record of its export; None if there is none."""
        place = self.folder / key
        try:
            record = ExportRecord.model_validate_json((place / _RECORD).read_bytes())
            for file in place.glob(f"{_GRAPH}*"):
                shutil.copyfile(file, work / file.name)  # no hard link: onnx refuses to read weights that have two
            os.utime(place)
        except (OSError, ValidationError):
            return None
        return work / _GRAPH, record

    def keep(self, key: str, graph: Path, record: ExportRecord) -> None:
        """Store the graph file `graph` with the weights beside it, and remove the least recently used graphs."""
        files = sorted(graph.parent.glob(f"{graph.name}*"))
        size = sum(file.stat().st_size for file in files)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if _FREE_SHARE * size > shutil.disk_usage(self.folder).free or size > self._most_bytes:
                return
            # It fails if another process stores the same graph.
            with suppress(ArtifactError), atomic_folder(self.folder / key, durable=False) as inside:
                for file in files:
                    shutil.copyfile(file, inside / file.name.replace(graph.name, _GRAPH, 1))
                (inside / _RECORD).write_text(record.model_dump_json(), encoding="utf-8")
        with suppress(OSError, ArtifactError):
            self._drop_oldest()

    def discard(self, key: str) -> None:
        """Remove a graph, if it is there."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def _drop_oldest(self) -> None:
        with locked(self.folder):
            remove_abandoned(self.folder)
        places = [place for place in self.folder.iterdir() if not place.name.startswith(".")]
        sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in places}
        total = sum(sizes.values())
        for place in sorted(places, key=lambda p: p.stat().st_mtime):
            if total <= self._most_bytes:
                return
            shutil.rmtree(place)
            total -= sizes[place]


def cache_key(model: LoadedModel, shapes: tuple[tuple[int, ...], ...], batch: Batch) -> str:
    """Return the digest of everything that decides the exported graph of a model.

    Args:
        model: a model with a PyTorch module.
        shapes: the shapes of the inputs that it is traced and compared with.
        batch: the batch sizes that the graph accepts.
    """
    from vitdeploy import onnx_export

    versions = environment.library_versions()
    facts = {
        "weights": model.digest,
        "code": model.code_digest,
        "input": model.input_name,
        "outputs": model.outputs,
        "shapes": shapes,
        "batch": str(batch),
        "python": platform.python_version(),
        "exporter": environment.digest_code(Path(onnx_export.__file__).parent),
        **{name: versions.get(name, "") for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
