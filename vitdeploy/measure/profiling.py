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
    """Node names -> part of the model."""

    def __init__(self, structure: Structure) -> None:
        self._linears = {n: _OF_LINEARS.get(lin.role, "other") for lin in structure.linears for n in lin.nodes}
        # A kernel that swallowed a bias goes by the name of the Add, which is in the linear's module.
        self._linears |= {lin.name: _OF_LINEARS.get(lin.role, "other") for lin in structure.linears}
        self._linears |= {lin.initializer: _OF_LINEARS.get(lin.role, "other") for lin in structure.linears}
        self._sites = {n for site in structure.attention for n in (*site.nodes, site.name + CORE)}
        self._norms = {n for norm in structure.norms for n in norm.nodes}

    def role(self, kind: str, nodes: Iterable[str]) -> str:
        nodes = list(nodes)
        for found in (self._linear(nodes), "attention" if self._any(nodes, self._sites) else None):
            if found is not None:
                return found
        if self._any(nodes, self._norms) or _NORM_KINDS.search(kind):
            return "norm"
        if any(_MLP.search(n) for n in nodes):
            return "mlp"
        return "attention" if any(_ATTENTION.search(n) for n in nodes) else "other"

    def _linear(self, nodes: list[str]) -> str | None:
        for node in nodes:
            for known, role in self._linears.items():
                if known and _made_from(node, known):
                    return role
        return None

    def _any(self, nodes: list[str], known: Iterable[str]) -> bool:
        return any(_made_from(node, one) for node in nodes for one in known)


def _made_from(kernel: str, node: str) -> bool:
    """Whether a kernel's name is the node's, or begins with it as engines write what they fused."""
    return kernel == node or (kernel.startswith(node) and kernel[len(node)] in "/:_")
