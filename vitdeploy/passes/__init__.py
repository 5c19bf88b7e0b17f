"""The compiler's passes: one rewrite a file, and the one readable list of their order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vitdeploy.artifact import PassRecord, Refusal
from vitdeploy.graph.model import Graph
from vitdeploy.recipe import Frozen


@dataclass(frozen=True)
class PassResult:
    """How often a rewrite fired, and where it refused: node or site -> reason."""

    fired: int
    refused: dict[str, str] = field(default_factory=dict)


class Pass(Frozen, ABC):
    """A rewrite that keeps the function of a graph: frozen options and one verb."""

    @property
    def name(self) -> str:
        """The name in the manifest: the class name in words."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("-")

    @abstractmethod
    def apply(self, graph: Graph) -> PassResult:
        """Rewrite `graph` in place."""


def run(passes: Iterable[Pass], graph: Graph, verify: Callable[[str], None] | None = None) -> list[PassRecord]:
    """Apply `passes` in order; what each did is for the manifest.

    `verify` is called with a pass's name after it changed something, and raises when the numbers broke.
    """
    records = []
    for rewrite in passes:
        result = rewrite.apply(graph)
        if verify is not None and result.fired:
            verify(rewrite.name)
        refused = tuple(Refusal(site=site, reason=reason) for site, reason in result.refused.items())
        records.append(PassRecord(name=rewrite.name, fired=result.fired, refused=refused))
    return records
