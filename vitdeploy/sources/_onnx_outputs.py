"""An ONNX file with some of its outputs only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.artifact.temporary import process_folder

_DIGEST_CHARACTERS = 16


def write_outputs(path: Path, names: Sequence[str], digest: str) -> Path:
    """Write the graph without its other outputs, to a file that lives as long as this process.

    Args:
        path: the file, which is not changed.
        names: the outputs to keep.
        digest: the digest of the file and its data.

    Raises:
        SourceError: the graph has no output of that name.
    """
    from vitdeploy.graph.kept_outputs import drop_other_outputs
    from vitdeploy.graph.model import load

    graph = load(path)
    drop_other_outputs(graph.model, names)
    key = hashlib.sha256("\0".join((digest, *names)).encode()).hexdigest()[:_DIGEST_CHARACTERS]
    folder = process_folder("outputs") / key
    written = folder / path.name  # engines name the file in their errors
    if not written.exists():
        folder.mkdir(exist_ok=True)
        graph.save(written)
    return written
