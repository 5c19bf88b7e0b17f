"""A profile by part of the model, from an engine's counters of its operators."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitdeploy.evidence import OperatorShare, Profile
from vitdeploy.graph.structure import CORE, Structure
from vitdeploy.session import Counters

ROLES = ("qkv", "attention", "mlp", "norm", "other")

_OF_LINEARS = {"qkv": "qkv", "proj": "attention", "fc1": "mlp", "fc2": "mlp"}
_NORM_KINDS = re.compile(r"LayerNorm|^MVN\b")  # an MVN of OpenVINO has lost the name of its LayerNorm
_MLP = re.compile(r"(^|[./])(mlp|ffn|intermediate|feed_forward)([./]|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"(^|[./])\w*attn|(^|[./])\w*attention", re.IGNORECASE)


def profile(name: str, counters: Counters, structure: Structure) -> Profile:
    """Assign each operator to a part of the model; the slowest operator comes first.

    An operator that was fused from several nodes belongs to the most specific of them: a linear, then attention, then a
    norm. An operator that only moves or adds numbers is assigned by the module path in its name.
    """
    parts = _Parts(structure)
    operators = tuple(
        OperatorShare(name=o.name, kind=o.kind, role=parts.role(o.kind, o.nodes), ms=o.ms)
        for o in sorted(counters.operators, key=lambda o: -o.ms)
    )
    roles = {role: sum(o.ms for o in operators if o.role == role) for role in ROLES}
    between = counters.total_ms - sum(roles.values())  # below 0 if operators run at the same time
    return Profile(
        name=name,
        runs=counters.runs,
        total_ms=counters.total_ms,
        roles=roles,
        operators=operators,
        between_ms=max(between, 0.0),
    )


class _Parts:
    """The part of the model that each node name belongs to."""

    def __init__(self, structure: Structure) -> None:
        linears: dict[str, str] = {}
        for linear in structure.linears:
            # A kernel that was fused with its bias has the name of the Add, which is in the linear's module.
            for name in (*linear.nodes, linear.name, linear.initializer):
                linears[name] = _OF_LINEARS.get(linear.role, "other")
        sites = {n: "attention" for site in structure.attention for n in (*site.nodes, site.name + CORE)}
        norms = {n: "norm" for norm in structure.norms for n in norm.nodes}
        self._named = [  # a lower rank is more specific
            (name, rank, role)
            for rank, roles in enumerate((linears, sites, norms))
            for name, role in roles.items()
            if name
        ]

    def role(self, kind: str, nodes: Iterable[str]) -> str:
        """Return the role of an operator, by its kind and the names of its nodes."""
        nodes = list(nodes)
        candidates = [nearest for node in nodes if (nearest := self._find_nearest(node)) is not None]
        if candidates:
            return min(candidates)[1]
        if _NORM_KINDS.search(kind):
            return "norm"
        if any(_MLP.search(n) for n in nodes):
            return "mlp"
        return "attention" if any(_ATTENTION.search(n) for n in nodes) else "other"

    def _find_nearest(self, node: str) -> tuple[int, str] | None:
        """Return rank and role of the longest known name that a node's name begins with."""
        matches = [entry for entry in self._named if _begins_with(node, entry[0])]
        longest = max(matches, key=lambda entry: (len(entry[0]), -entry[1]), default=None)
        return None if longest is None else longest[1:]


def _begins_with(kernel: str, node: str) -> bool:
    """Return True if a kernel has the node's name, alone or with an engine's suffix."""
    return kernel == node or (kernel.startswith(node) and kernel[len(node)] in "/:_")
