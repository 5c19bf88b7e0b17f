"""An artifact with its evidence, and the reasons for missing evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitdeploy.artifact import Manifest
from vitdeploy.evidence import Audit, Bench, Eval, Gate, Run, Sensitivity
from vitdeploy.graph.structure import Structure
from vitdeploy.render.html.parts import Missing
from vitdeploy.session import Array

Kind = Literal["audit", "bench", "eval", "gate", "sensitivity", "attention", "tokens"]


@dataclass(frozen=True)
class Subject:
    """An artifact folder and its evidence; `missing` has an entry for each piece of evidence that is None.

    `gate` is the stored verdict, `judged` the one that follows now from the evidence and the same limits. `thumbnails`
    are small pictures of the samples in `evaluation.flipped`, uint8 (height, width, 1 or 3), by number.
    """

    folder: str
    name: str
    digest: str
    manifest: Manifest
    structure: Structure
    audit: Audit | None = None
    bench: Bench | None = None
    evaluation: Eval | None = None
    gate: Gate | None = None
    judged: Gate | None = None
    sensitivity: Sensitivity | None = None
    thumbnails: Mapping[str, Array] = field(default_factory=dict)
    missing: Mapping[Kind, Missing] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Target and precision: `openvino int8`."""
        return f"{self.manifest.target.kind} {self.manifest.target.precision}"

    @property
    def reference(self) -> Run | None:
        """The timing of the reference; None if the artifact was timed without one."""
        run = self.run
        return self.bench.reference if self.bench is not None and run is not None and run.speedup is not None else None

    @property
    def run(self) -> Run | None:
        """The timing of this artifact."""
        return self.bench.own if self.bench is not None else None

    def find_gap(self, kind: Kind) -> Missing:
        """Return why a piece of evidence is missing, and what to run. A piece without an entry exists but is empty."""
        command = "inspect --sensitivity" if kind == "sensitivity" else "inspect" if kind == "audit" else kind
        return self.missing.get(
            kind, Missing(f"{kind}.json holds nothing to show", f"vitdeploy {command} {self.folder}")
        )
