"""Audits: kernels are matched to the model by the ONNX node names that engines keep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from vitdeploy.evidence import (
    AttentionAudit,
    Audit,
    EvidenceLevel,
    GeluAudit,
    KernelAudit,
    LinearAudit,
    NormAudit,
    Unfused,
)
from vitdeploy.graph.quantized_share import doubt_share, measure_share, type_by_plan
from vitdeploy.graph.structure import Structure

if TYPE_CHECKING:
    from vitdeploy.targets import Bundle, Compiled

_PRECISIONS = ("int8", "fp8", "fp16", "bf16", "fp32")


def is_named_after(kernel: str, node: str) -> bool:
    """Return whether a kernel's name is the node's, or is derived from it.

    Derived names are `NODE/Fusion`, `NODE:0_nchwc` and `NODE_token_3`.
    """
    return kernel == node or bool(re.match(rf"{re.escape(node)}(/|:|_token_|_quant)", kernel))


def make_audit(
    name: str,
    bundle: Bundle,
    compiled: Compiled,
    *,
    fused: Mapping[str, str],
    reasons: Mapping[str, str],
    layers: Mapping[str, str],
    norms: int,
    norm_reasons: Mapping[str, str] | None = None,
    gelus: Mapping[str, Collection[str]] | None = None,
    stored: Mapping[str, str] | None = None,
    planned: Mapping[str, str] | None = None,
    threads: int | None = None,
    doubts: Iterable[str] = (),
    evidence: EvidenceLevel = "compiled",
    engine: KernelAudit | None = None,
) -> Audit:
    """Return the audit of a compiled model.

    Args:
        name: of the target.
        bundle: the structure of the model.
        compiled: the model that was read.
        fused: attention site -> the one kernel that computes it.
        reasons: other attention site -> why it is not fused.
        layers: linear or other product with weights -> the precision in which it runs.
        norms: the number of LayerNorms that run as one kernel. Some engines give these kernels names of their own.
        norm_reasons: LayerNorm -> why it is not one kernel; of those that are known by name.
        gelus: GELU -> the kernels that compute it.
        stored: linear -> the type of its weights in memory, where the kernel itself unpacks them.
        planned: linear or other product -> its type by the graph, where the engine does not report types.
        threads: the number of threads that it was compiled for, if fusion depends on it.
        doubts: reasons why this reading is uncertain.
        evidence: "rehearsed" if the device will run something else.
        engine: the counts of a TensorRT engine's kernels.
    """
    others = {product.name for product in bundle.structure.products or ()}
    source: EvidenceLevel = evidence if planned is None else "graph"
    types = layers if planned is None else planned
    share = measure_share(bundle.structure, bundle.numbers, types, stored or {}, bundle.excluded, source)
    return Audit(
        target=name,
        precision=bundle.numbers.precision,
        attention=_audit_attention(bundle.structure, fused, reasons, evidence),
        layernorm=_audit_norms(bundle.structure, norms, norm_reasons or {}),
        gelu=_audit_gelus(bundle.structure, gelus or {}),
        linears=_count_linears(bundle.structure, layers),
        layers={name: kind for name, kind in layers.items() if name not in others},
        products={name: kind for name, kind in layers.items() if name in others},
        quantized=share,
        stored=stored or {},
        threads=threads,
        backend=compiled.backend,
        engine=engine,
        doubts=(*doubts, *_doubt_attention(bundle.structure), *doubt_share(share)),
    )


def _doubt_attention(structure: Structure) -> Iterator[str]:
    unclassified = structure.unclassified
    if unclassified:
        more = f" and {len(unclassified) - 1} more" if len(unclassified) > 1 else ""
        yield (
            f"the softmax {unclassified[0].name}{more} may be an attention that is not counted: "
            f"{unclassified[0].reason}"
        )


def _audit_attention(
    structure: Structure, kernels: Mapping[str, str], reasons: Mapping[str, str], evidence: EvidenceLevel
) -> AttentionAudit:
    """Return the audit of `kernels` (fused site -> kernel) and `reasons` (other site -> reason)."""
    unfused = tuple(
        Unfused(site=site.name, reason=reasons.get(site.name) or site.refused or "not found in the compiled model")
        for site in structure.attention
        if site.name not in kernels
    )
    unclassified = tuple(Unfused(site=entry.name, reason=entry.reason) for entry in structure.unclassified)
    return AttentionAudit(
        sites=len(structure.attention),
        fused=len(kernels),
        evidence=evidence,
        unfused=unfused,
        kernels=kernels,
        unclassified=unclassified,
    )


def _audit_norms(structure: Structure, fused: int, reasons: Mapping[str, str]) -> NormAudit:
    """Return the audit of the LayerNorms, of which `fused` are one kernel; those with a reason are the others first."""
    names = sorted((norm.name for norm in structure.norms), key=lambda name: name not in reasons)
    others = names[: max(0, len(names) - fused)]
    unfused = tuple(Unfused(site=name, reason=reasons.get(name, "not found in the compiled model")) for name in others)
    return NormAudit(sites=len(names), fused=len(names) - len(unfused), unfused=unfused)


def _audit_gelus(structure: Structure, kernels: Mapping[str, Collection[str]]) -> GeluAudit | None:
    """Return the audit of the GELUs; None for a structure that does not list them."""
    if structure.gelus is None:
        return None
    unfused = tuple(
        Unfused(site=gelu.name, reason=f"runs as {' + '.join(parts)}" if parts else "not found in the compiled model")
        for gelu in structure.gelus
        if len(parts := sorted(kernels.get(gelu.name, ()))) != 1
    )
    return GeluAudit(sites=len(structure.gelus), fused=len(structure.gelus) - len(unfused), unfused=unfused)


def audit_bundle(target: str, bundle: Bundle, manifest: str) -> Audit:
    """Return the audit of a bundle: the model's sites, with nothing compiled."""
    structure = bundle.structure
    planned = type_by_plan(structure, bundle.numbers, bundle.excluded)
    share = measure_share(structure, bundle.numbers, planned, {}, bundle.excluded, "graph")
    reason = "not compiled yet: this is a bundle"
    reasons = {site.name: reason for site in structure.attention}
    return Audit(
        target=target,
        precision=bundle.numbers.precision,
        attention=_audit_attention(structure, {}, reasons, "graph"),
        layernorm=_audit_norms(structure, 0, {norm.name: reason for norm in structure.norms}),
        linears=LinearAudit(other=len(structure.linears)),
        manifest=manifest,
        quantized=share,
        doubts=(*_doubt_attention(structure), *doubt_share(share)),
    )


def _count_linears(structure: Structure, layers: Mapping[str, str]) -> LinearAudit:
    """Count linears by precision. A linear without a matching kernel is `other`."""
    counts = Counter(layers.get(linear.name, "other") for linear in structure.linears)
    by_precision = {name: counts.pop(name, 0) for name in _PRECISIONS}
    return LinearAudit(**by_precision, other=sum(counts.values()))
