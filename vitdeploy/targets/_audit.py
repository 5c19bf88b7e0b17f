"""Match kernels to the model by the ONNX node names that engines keep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vitdeploy.evidence import AttentionAudit, Audit, EvidenceLevel, KernelAudit, LinearAudit, NormAudit, Unfused
from vitdeploy.graph.structure import Structure

if TYPE_CHECKING:
    from vitdeploy.targets import Bundle, Compiled

PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")


def belongs(kernel: str, node: str) -> bool:
    """Whether a kernel's name is the node's or was made from it: `NODE/Fusion`, `NODE:0_nchwc`, `NODE_token_3`."""
    return kernel == node or bool(re.match(rf"{re.escape(node)}(/|:|_token_|_quant)", kernel))


def audited(
    name: str,
    bundle: Bundle,
    compiled: Compiled,
    *,
    fused: Mapping[str, str],
    reasons: Mapping[str, str],
    layers: Mapping[str, str],
    norms: int,
    stored: Mapping[str, str] | None = None,
    threads: int | None = None,
    doubts: Iterable[str] = (),
    evidence: EvidenceLevel = "compiled",
    engine: KernelAudit | None = None,
) -> Audit:
    """The audit of what was compiled.

    Args:
        name: the target.
        bundle: what the model is made of.
        compiled: what was read.
        fused: attention site -> the one kernel that computes it.
        reasons: other site -> why not.
        layers: linear -> the precision it runs in.
        norms: LayerNorms that run as one kernel.
        stored: linear -> the type that its weights have in memory, where the kernel unpacks them itself.
        threads: that it was compiled for, where fusion depends on them.
        doubts: what makes this reading uncertain.
        evidence: "rehearsed" when what was compiled is not what the device will run.
        engine: what a TensorRT engine is made of.
    """
    sites = len(bundle.structure.norms)
    return Audit(
        target=name,
        precision=bundle.numbers.precision,
        attention=attention_audit(bundle.structure, fused, reasons, evidence),
        layernorm=NormAudit(sites=sites, fused=min(norms, sites)),
        linears=linear_audit(bundle.structure, layers),
        layers=layers,
        stored=stored or {},
        threads=threads,
        backend=compiled.backend,
        engine=engine,
        doubts=tuple(doubts),
    )


def attention_audit(
    structure: Structure, kernels: Mapping[str, str], reasons: Mapping[str, str], evidence: EvidenceLevel
) -> AttentionAudit:
    """The audit from `kernels` (fused site -> kernel) and `reasons` (other site -> why not)."""
    unfused = tuple(
        Unfused(site=site.name, reason=reasons.get(site.name) or site.refused or "not found in what was compiled")
        for site in structure.attention
        if site.name not in kernels
    )
    return AttentionAudit(
        sites=len(structure.attention), fused=len(kernels), evidence=evidence, unfused=unfused, kernels=kernels
    )


def audit_bundle(target: str, bundle: Bundle, manifest: str) -> Audit:
    """The audit of a bundle: it knows the model's sites, and that nothing is compiled."""
    structure = bundle.structure
    reasons = {site.name: "not compiled yet: this is a bundle" for site in structure.attention}
    return Audit(
        target=target,
        precision=bundle.numbers.precision,
        attention=attention_audit(structure, {}, reasons, "graph"),
        layernorm=NormAudit(sites=len(structure.norms), fused=0),
        linears=LinearAudit(other=len(structure.linears)),
        manifest=manifest,
    )


def linear_audit(structure: Structure, layers: Mapping[str, str]) -> LinearAudit:
    """Counts by precision; a linear that no kernel could be matched to is `other`."""
    counts = Counter(layers.get(linear.name, "other") for linear in structure.linears)
    known = {name: counts.pop(name, 0) for name in PRECISIONS}
    return LinearAudit(**known, other=sum(counts.values()))
