"""An artifact with the evidence that is about it, and why a piece of it is absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitdeploy.artifact import Manifest
from vitdeploy.evidence import Audit, Bench, Eval, Gate, Run, Sensitivity
from vitdeploy.graph.structure import Structure
from vitdeploy.render.html.parts import Missing

Kind = Literal["audit", "bench", "eval", "gate", "sensitivity", "attention"]


@dataclass(frozen=True)
class Subject:
    """Everything that the page may say about one folder; `missing` has an entry for each piece that is None."""

    folder: str
    name: str
    digest: str
    manifest: Manifest
    structure: Structure
    audit: Audit | None = None
    bench: Bench | None = None
    evaluation: Eval | None = None
    gate: Gate | None = None
    sensitivity: Sensitivity | None = None
    missing: Mapping[Kind, Missing] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """`openvino int8`: what was compiled, for what."""
        return f"{self.manifest.target.kind} {self.manifest.target.precision}"

    @property
    def reference(self) -> Run | None:
        """The timed reference; None when the artifacts were timed without one."""
        own = self.run
        return self.bench.reference if self.bench is not None and own is not None and own.speedup is not None else None

    @property
    def run(self) -> Run | None:
        """This artifact's timing."""
        return self.bench.own if self.bench is not None else None

    def why(self, kind: Kind) -> Missing:
        """Why a piece is absent, and what to run; a piece that is there but holds nothing has no entry."""
        command = "inspect --sensitivity" if kind == "sensitivity" else "inspect" if kind == "audit" else kind
        return self.missing.get(
            kind, Missing(f"{kind}.json holds nothing to show", f"vitdeploy {command} {self.folder}")
        )
