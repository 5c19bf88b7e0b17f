"""Check that an audit is about the model in `sites.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vitdeploy.artifact import Manifest
from vitdeploy.evidence import Audit
from vitdeploy.graph.structure import Structure


def find_audit_errors(audit: Audit, manifest: Manifest, structure: Structure) -> list[str]:
    """Return what in an audit contradicts the manifest, the model's sites, or itself."""
    return [
        *_compare_target(audit, manifest),
        *_check_attention(audit, structure),
        *_check_linears(audit, structure),
        *_check_kernels(audit),
    ]


def _compare_target(audit: Audit, manifest: Manifest) -> Iterator[str]:
    for name, observed, expected in (
        ("target", audit.target, manifest.target.kind),
        ("precision", audit.precision, manifest.target.precision),
    ):
        if observed != expected:
            yield f"audit.json is about {name} {observed}, the manifest about {expected}"


def _check_attention(audit: Audit, structure: Structure) -> Iterator[str]:
    attention = audit.attention
    names = {site.name for site in structure.attention}
    unfused = [site.site for site in attention.unfused]
    if attention.sites != len(structure.attention):
        yield f"audit.json has {attention.sites} attention sites, sites.json has {len(structure.attention)}"
    if attention.fused + len(unfused) != attention.sites:
        yield f"audit.json has {attention.fused} fused and {len(unfused)} other sites of {attention.sites}"
    if attention.kernels and len(attention.kernels) != attention.fused:
        yield f"audit.json has {len(attention.kernels)} kernels for {attention.fused} fused sites"
    listed = [*attention.kernels, *unfused]
    if unknown := sorted(set(listed) - names):
        yield f"audit.json has the site {unknown[0]}, which is not in sites.json"
    if len(set(listed)) < len(listed):
        yield "audit.json lists a site twice"
    norms = audit.layernorm
    if norms.sites != len(structure.norms):
        yield f"audit.json has {norms.sites} LayerNorms, sites.json has {len(structure.norms)}"
    gelus = audit.gelu
    if gelus is not None and gelus.sites != len(structure.gelus or ()):
        yield f"audit.json has {gelus.sites} GELUs, sites.json has {len(structure.gelus or ())}"
    if gelus is not None and gelus.fused + len(gelus.unfused) != gelus.sites:
        yield f"audit.json has {gelus.fused} fused and {len(gelus.unfused)} other GELUs of {gelus.sites}"
    if norms.unfused and norms.fused + len(norms.unfused) != norms.sites:  # older evidence has no list
        yield f"audit.json has {norms.fused} fused and {len(norms.unfused)} other LayerNorms of {norms.sites}"


def _check_linears(audit: Audit, structure: Structure) -> Iterator[str]:
    counted = audit.linears.model_dump()
    total = len(structure.linears)
    if sum(counted.values()) != total:
        yield f"audit.json has {sum(counted.values())} linears, sites.json has {total}"
    by_name = Counter(audit.layers.get(linear.name, "other") for linear in structure.linears)
    named = {key: by_name.pop(key, 0) for key in counted if key != "other"}
    if {**named, "other": sum(by_name.values())} != counted:
        yield "the precisions of its linears do not add up to their counts"
    names = {linear.name for linear in structure.linears}
    if unknown := sorted({*audit.layers, *audit.stored} - names):
        yield f"audit.json has the linear {unknown[0]}, which is not in sites.json"


def _check_kernels(audit: Audit) -> Iterator[str]:
    engine = audit.engine
    if engine is not None and max(engine.attention, engine.reformats, engine.casts) > engine.kernels:
        yield f"the engine has more kernels of one kind than its {engine.kernels}"
