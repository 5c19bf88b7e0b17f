"""The fusion map: what became of every attention and every linear, block by block, as read from the compiled thing."""

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
_MEANING = {
    "compiled": "read from the compiled model",
    "rehearsed": "from a rehearsal with another compiler, not from what the device runs",
    "graph": "only a bundle: nothing is compiled yet, so nothing is known to be fused",
}


def section(subject: Subject) -> Section:
    """Rows are attention and the linears by role, columns are blocks."""
    title, audit = "Fusion and precision", subject.audit
    if audit is None:
        return Section("fusion", title, missing=subject.why("audit"))
    blocks = list(subject.structure.attention)
    doubts = list(audit.doubts)
    if audit.attention.evidence != "compiled":
        doubts.insert(0, _MEANING[audit.attention.evidence])
    if not blocks:
        doubts.append("no attention site: nothing in it is recognised as a Vision Transformer")
    parts: tuple[Part, ...] = (_map(subject, audit, blocks), *_outside(subject, audit), *_unfused(audit))
    return Section("fusion", title, lede=_lede(audit), doubts=tuple(doubts), parts=parts)


def _lede(audit: Audit) -> str:
    attention, norms = audit.attention, audit.layernorm
    counts = {name: count for name, count in audit.linears.model_dump().items() if count}
    linears = ", ".join(f"{count} in {name}" for name, count in counts.items()) or "none known"
    threads = f" on {audit.threads} threads" if audit.threads else ""
    if not attention.sites:
        return f"No attention site was recognised. Linears: {linears}."
    where = _MEANING[attention.evidence] if attention.evidence == "compiled" else attention.evidence
    return (
        f"{attention.fused} of {attention.sites} attention sites and {norms.fused} of {norms.sites} LayerNorms run as "
        f"one kernel{threads} ({where}). Linears: {linears}."
    )


def _map(subject: Subject, audit: Audit, blocks: Sequence[AttentionSite]) -> Drawing:
    within = [linear for linear in subject.structure.linears if linear.role in ROLES]
    rows = ["attention", *(role for role in ROLES if any(linear.role == role for linear in within))]

    def at(row: int, column: int) -> Markup:
        site = blocks[column]
        if not row:
            kind, told = _attention(site, audit)
            return cell(class_=kind, told=f"{site.name}: {told}")
        return _linears([n for n in within if n.role == rows[row] and n.block == site.block], audit)

    seen = {_precision(linear, audit) for linear in within} | {_attention(site, audit)[0] for site in blocks}
    drawn = grid(rows, [site.block for site in blocks], at, label="Fusion and precision by block")
    return Drawing(join(drawn, legend(*((kind, told) for kind, told in _LEGEND.items() if kind in seen))))


def _attention(site: AttentionSite, audit: Audit) -> tuple[str, str]:
    """What became of a site, and the kernel or the reason."""
    kernel = audit.attention.kernels.get(site.name)
    reason = next((u.reason for u in audit.attention.unfused if u.site == site.name), None)
    if audit.attention.evidence == "graph":
        return "unknown", "nothing compiled yet"
    if reason is not None:
        return "unfused", reason
    return ("fused", kernel) if kernel is not None else ("unknown", "the audit does not name it")


def _linears(found: Sequence[Linear], audit: Audit) -> Markup:
    """One cell; several linears of a role (q, k and v apart) share it."""
    if not found:
        return cell(class_="none", told="no such linear in this block")
    known = [_precision(linear, audit) for linear in found]
    told = ", ".join(f"{linear.name}: {name}" for linear, name in zip(found, known, strict=True))
    if len(set(known)) == 1:
        return cell(class_=known[0], told=told)
    return cell(*(element("i", class_=f"cell {name}") for name in known), class_="several", told=told)


def _precision(linear: Linear, audit: Audit) -> str:
    name = audit.layers.get(linear.name, "unknown")
    return name if name in _KNOWN else "unknown"


def _outside(subject: Subject, audit: Audit) -> tuple[Table, ...]:
    """Patch embedding, heads, merging: linears of no block's own."""
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
    head = ("outside of the blocks", "role", "K × N", "runs in")
    return (Table(head, rows, numeric=frozenset({2})),) if rows else ()


def _unfused(audit: Audit) -> tuple[Table, ...]:
    """Why attention is not one kernel: each reason once, with how many sites share it."""
    counts = Counter(site.reason for site in audit.attention.unfused)
    first = {site.reason: site.site for site in reversed(audit.attention.unfused)}
    rows = tuple((str(count), first[reason], reason) for reason, count in counts.most_common())
    return (Table(("sites", "such as", "why not fused"), rows, numeric=frozenset({0})),) if rows else ()
