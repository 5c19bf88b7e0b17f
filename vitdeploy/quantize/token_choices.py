"""Find the nodes that decide which tokens are merged: in 16 bits, near-ties would fall otherwise."""

from __future__ import annotations

from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import SIMILARITY

REASON = "it decides which tokens are merged"


def find_token_choices(graph: Graph) -> dict[str, str]:
    """Find the nodes behind the mean of the keys, up to the order of the tokens, with the reason.

    A sum of squares over a head can overflow float16, bfloat16 has 8 bits for cosines that differ in the third digit,
    and compilers do not sort in 16 bits.
    """
    return {node.name or "": REASON for node in graph.nodes if SIMILARITY in (node.name or "")}
