"""The resources of a node that one call of a function needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.cluster.nodes import Node
from vitdeploy.errors import NoNodeLeft

_GIB = 2**30
_LISTED = 4
NODE_ID = "ray.io/node-id"
"""The label that Ray gives to each node."""


@dataclass(frozen=True)
class NodeRequest:
    """CPUs and memory that a call needs, and the nodes that it may run on.

    Ray counts both, so that no more calls run on a node than fit; it does not measure them.

    Attributes:
        cpus: the number of CPUs; 0 for a call that does little but wait.
        memory_bytes: the memory in bytes.
        nodes: the ids of the nodes; empty for any.
    """

    cpus: float = 1
    memory_bytes: int = 0
    nodes: tuple[str, ...] = ()

    def fits(self, node: Node) -> bool:
        """Return True if a node without other work meets the request."""
        return (
            node.cpus >= self.cpus and node.memory_bytes >= self.memory_bytes and node.id in (self.nodes or (node.id,))
        )

    def refuse_too_large(self, nodes: Sequence[Node]) -> None:
        """Refuse a request that would wait for ever.

        Raises:
            NoNodeLeft: no node can meet it; the nodes are named with their sizes.
        """
        if any(self.fits(node) for node in nodes):
            return
        listed = [node.describe() for node in nodes if node.id in (self.nodes or (node.id,))]
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        raise NoNodeLeft(
            f"no node has the {self.describe()} that the work needs: {', '.join(listed[:_LISTED]) or 'none'}{more}",
            fix="Ask for less, or add a node: ray start --address HOST:PORT.",
        )

    def describe(self) -> str:
        """Return the request in words."""
        memory = f" and {self.memory_bytes / _GIB:.3g} GiB of memory" if self.memory_bytes else ""
        return f"{self.cpus:g} CPU{'s' if self.cpus != 1 else ''}{memory}"

    def options(self) -> dict[str, object]:
        """Return the request as options of a Ray task."""
        options: dict[str, object] = {"num_cpus": self.cpus}
        if self.memory_bytes:
            options["memory"] = self.memory_bytes
        if self.nodes:
            options["label_selector"] = {NODE_ID: f"in({','.join(self.nodes)})"}
        return options
