"""An engine's counters in the model's own terms: which part of the model each operator computes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitdeploy.evidence import OperatorShare, Profile
from vitdeploy.graph.structure import CORE, Structure
from vitdeploy.session import Counters

ROLES = ("qkv", "attention", "mlp", "norm", "other")

_OF_LINEARS = {"qkv": "qkv", "proj": "attention", "fc1": "mlp", "fc2": "mlp"}
_NORM_KINDS = re.compile(r"LayerNorm|^MVN\b")  # OpenVINO's MVN has lost the name of what it was made from
_MLP = re.compile(r"(^|[./])(mlp|ffn|intermediate|feed_forward)([./]|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"(^|[./])\w*attn|(^|[./])\w*attention", re.IGNORECASE)


def profile(name: str, counters: Counters, structure: Structure) -> Profile:
    """Operators by part of the model, the longest first.

    An operator that several nodes were fused into belongs to the most telling of them: a linear, then attention, then
    a norm; what only moves or adds numbers is placed by the module path in its name.
    """
    where = _Parts(structure)
    operators = tuple(
        OperatorShare(name=o.name, kind=o.kind, role=where.role(o.kind, o.nodes), ms=o.ms)
        for o in sorted(counters.operators, key=lambda o: -o.ms)
    )
    roles = {role: sum(o.ms for o in operators if o.role == role) for role in ROLES}
    between = counters.total_ms - sum(roles.values())  # below 0 where operators run at the same time
    return Profile(
        name=name,
        runs=counters.runs,
        total_ms=counters.total_ms,
        roles=roles,
        operators=operators,
        between_ms=max(between, 0.0),
    )


class _Parts:
    """Node names -> part of the model, the most telling kinds of node first."""

    def __init__(self, structure: Structure) -> None:
        linears: dict[str, str] = {}
        for linear in structure.linears:
            # A kernel that swallowed a bias goes by the name of the Add, which is in the linear's module.
            for name in (*linear.nodes, linear.name, linear.initializer):
                linears[name] = _OF_LINEARS.get(linear.role, "other")
        sites = {n: "attention" for site in structure.attention for n in (*site.nodes, site.name + CORE)}
        norms = {n: "norm" for norm in structure.norms for n in norm.nodes}
        self._known = [
            (name, rank, role)
            for rank, named in enumerate((linears, sites, norms))
            for name, role in named.items()
            if name
        ]

    def role(self, kind: str, nodes: Iterable[str]) -> str:
        nodes = list(nodes)
        found = [best for node in nodes if (best := self._nearest(node)) is not None]
        if found:
            return min(found)[1]
        if _NORM_KINDS.search(kind):
            return "norm"
        if any(_MLP.search(n) for n in nodes):
            return "mlp"
        return "attention" if any(_ATTENTION.search(n) for n in nodes) else "other"

    def _nearest(self, node: str) -> tuple[int, str] | None:
        """Rank and role of the longest name that it was made from: a module's name may be that of all within."""
        made_from = [known for known in self._known if _made_from(node, known[0])]
        best = max(made_from, key=lambda known: (len(known[0]), -known[1]), default=None)
        return None if best is None else best[1:]


def _made_from(kernel: str, node: str) -> bool:
    """Whether a kernel's name is the node's, or begins with it as engines write what they fused."""
    return kernel == node or (kernel.startswith(node) and kernel[len(node)] in "/:_")
