"""The section on fusion and precision of every attention and every linear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vitdeploy.evidence import Audit
from vitdeploy.graph.structure import AttentionSite, Linear
from vitdeploy.render import numbers
from vitdeploy.render.html.grid import cell, grid, legend
from vitdeploy.render.html.markup import Markup, element, join
from vitdeploy.render.html.parts import Drawing, Part, Section, Table
from vitdeploy.render.html.subject import Subject

ROLES = ("qkv", "proj", "fc1", "fc2")
_KNOWN = ("int8", "fp8", "fp16", "bf16", "fp32")
_LEGEND = {
    "fused": "attention in one kernel",
    "unfused": "attention in several kernels",
    **{name: name for name in _KNOWN},
    "unknown": "not known",
}
_EVIDENCE = {
    "compiled": "read from the compiled model",
    "rehearsed": "from a test build with another compiler, not from the engine that the device runs",
    "graph": "this is a bundle: nothing is compiled yet, so it is not known what will be fused",
}


def section(subject: Subject) -> Section:
    """Show a grid: rows for attention and for linears by role, columns for blocks."""
    title, audit = "Fusion and precision", subject.audit
    if audit is None:
        return Section("fusion", title, missing=subject.find_gap("audit"))
    blocks = list(subject.structure.attention)
    doubts = list(audit.doubts)
    if audit.attention.evidence != "compiled":
        doubts.insert(0, _EVIDENCE[audit.attention.evidence])
    if not blocks:
        doubts.append("no attention site: the model was not recognised as a Vision Transformer")
    parts: tuple[Part, ...] = (_map(subject, audit, blocks), *_outside(subject, audit), *_unfused(audit))
    return Section("fusion", title, lede=_lede(audit), doubts=tuple(doubts), parts=parts)


def _lede(audit: Audit) -> str:
    attention, norms = audit.attention, audit.layernorm
    counts = {name: count for name, count in audit.linears.model_dump().items() if count}
    linears = ", ".join(f"{count} in {name}" for name, count in counts.items()) or "none known"
    threads = f" on {audit.threads} threads" if audit.threads else ""
    if not attention.sites:
        return f"No attention site was recognised. Linears: {linears}."
    proven = attention.evidence == "compiled"
    evidence = _EVIDENCE["compiled"] if proven else f"not proven: {attention.evidence} evidence only"
    return (
        f"{attention.fused} of {attention.sites} attention sites and {norms.fused} of {norms.sites} LayerNorms run as "
        f"one kernel{threads} ({evidence}). Linears: {linears}."
    )


def _map(subject: Subject, audit: Audit, blocks: Sequence[AttentionSite]) -> Drawing:
    within = [linear for linear in subject.structure.linears if linear.role in ROLES]
    rows = ["attention", *(role for role in ROLES if any(linear.role == role for linear in within))]

    def at(row: int, column: int) -> Markup:
        site = blocks[column]
        if not row:
            kind, explanation = _attention(site, audit)
            return cell(class_=kind, title=f"{site.name}: {explanation}")
        return _linears([n for n in within if n.role == rows[row] and n.block == site.block], audit)

    kinds = {_precision(linear, audit) for linear in within} | {_attention(site, audit)[0] for site in blocks}
    drawn = grid(rows, [site.block for site in blocks], at, label="Fusion and precision by block")
    return Drawing(join(drawn, legend(*((kind, meaning) for kind, meaning in _LEGEND.items() if kind in kinds))))


def _attention(site: AttentionSite, audit: Audit) -> tuple[str, str]:
    """Return fused, unfused or unknown, and the kernel or the reason."""
    kernel = audit.attention.kernels.get(site.name)
    reason = next((u.reason for u in audit.attention.unfused if u.site == site.name), None)
    if audit.attention.evidence == "graph":
        return "unknown", "nothing is compiled yet"
    if reason is not None:
        return "unfused", reason
    return ("fused", kernel) if kernel is not None else ("unknown", "the audit does not name it")


def _linears(linears: Sequence[Linear], audit: Audit) -> Markup:
    """Draw one cell for all linears of a role and block: q, k and v may be separate."""
    if not linears:
        return cell(class_="none", title="no such linear in this block")
    precisions = [_precision(linear, audit) for linear in linears]
    title = ", ".join(f"{linear.name}: {name}" for linear, name in zip(linears, precisions, strict=True))
    if len(set(precisions)) == 1:
        return cell(class_=precisions[0], title=title)
    return cell(*(element("i", class_=f"cell {name}") for name in precisions), class_="several", title=title)


def _precision(linear: Linear, audit: Audit) -> str:
    name = audit.layers.get(linear.name, "unknown")
    return name if name in _KNOWN else "unknown"


def _outside(subject: Subject, audit: Audit) -> tuple[Table, ...]:
    """List the linears that belong to no block: patch embedding, merging, heads."""
    outside = [linear for linear in subject.structure.linears if linear.role not in ROLES]
    rows = tuple(
        (
            n.name,
            n.role,
            f"{n.size[0]} × {n.size[1]}" if n.size else numbers.NOTHING,
            audit.layers.get(n.name, "unknown"),
        )
        for n in outside
    )
    head = ("linears outside of the blocks", "role", "inputs × outputs", "precision")
    return (Table(head, rows, numeric=frozenset({2})),) if rows else ()


def _unfused(audit: Audit) -> tuple[Table, ...]:
    """List each reason why attention is not one kernel, with the number of its sites."""
    counts = Counter(site.reason for site in audit.attention.unfused)
    first = {site.reason: site.site for site in reversed(audit.attention.unfused)}
    rows = tuple((str(count), first[reason], reason) for reason, count in counts.most_common())
    head = ("sites", "for example", "reason why they are not fused")
    return (Table(head, rows, numeric=frozenset({0})),) if rows else ()
