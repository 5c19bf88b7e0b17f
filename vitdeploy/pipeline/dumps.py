"""Write the graph after each phase of the pipeline, to find the phase that changes something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph


@dataclass(frozen=True)
class GraphDumps:
    """Write graphs into `folder`, numbered in order. None writes nothing."""

    folder: Path | None = None

    def write(self, phase: str, graph: Graph) -> None:
        """Write the graph after a phase, such as `03-folded.onnx`.

        Raises:
            UsageError: the folder is not writable.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = 1 + len(list(self.folder.glob("[0-9][0-9]-*.onnx")))
            graph.save(self.folder / f"{number:02}-{phase}.onnx")
        except OSError as error:
            raise UsageError(
                f"--dump-graphs {self.folder}: cannot write there: {error.strerror}", fix="Choose another folder."
            ) from None


NO_DUMPS = GraphDumps()
