"""The compiler's passes: one graph rewrite a file. `order.py` lists them in the order in which they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vitdeploy.artifact import PassRecord, Refusal
from vitdeploy.errors import PassError, VitdeployError
from vitdeploy.graph.model import Graph
from vitdeploy.recipe import Frozen

_LONGEST_REASON = 300
"""Characters of a foreign exception in an error: some print a whole graph."""


@dataclass(frozen=True)
class PassResult:
    """The number of places that a pass rewrote, and those that it refused: node or site -> reason."""

    fired: int
    refused: dict[str, str] = field(default_factory=dict)


class Pass(Frozen, ABC):
    """A graph rewrite that keeps what the graph computes. Its fields are its options."""

    @property
    def name(self) -> str:
        """The name in the manifest: `raise-attention` for the class `RaiseAttention`."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("-")

    @abstractmethod
    def apply(self, graph: Graph) -> PassResult:
        """Rewrite `graph` in place."""


def run(passes: Iterable[Pass], graph: Graph, verify: Callable[[str], None] | None = None) -> list[PassRecord]:
    """Apply `passes` in order, and return a record of each for the manifest.

    `verify` is called with the name of every pass that changed something. It raises when the numbers are wrong.

    Raises:
        PassError: a pass failed with an exception that it does not raise on purpose.
        VitdeployError: a pass cannot work on this graph, or `verify` found wrong numbers.
    """
    records: list[PassRecord] = []
    for rewrite in passes:
        graph.forget_names()
        try:
            result = rewrite.apply(graph)
        except VitdeployError:
            raise
        except Exception as error:
            raise _pass_error(rewrite.name, records, error) from error
        if verify is not None and result.fired:
            verify(rewrite.name)
        refused = tuple(Refusal(site=site, reason=reason) for site, reason in result.refused.items())
        records.append(PassRecord(name=rewrite.name, fired=result.fired, refused=refused))
    return records


def _pass_error(name: str, before: Sequence[PassRecord], error: Exception) -> PassError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_REASON].rstrip(": ")
    names = ", ".join(record.name for record in before) or "none"
    return PassError(f"pass {name} failed: {reason}; passes before it: {names}", fix="Report it, with --traceback.")
