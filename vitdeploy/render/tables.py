"""Evidence as tables for a terminal; they fit 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitdeploy.artifact import Trial
from vitdeploy.escaping import of_escaped
from vitdeploy.evidence import (
    Audit,
    Availability,
    BlockGroup,
    Eval,
    Gate,
    LinearGroup,
    OperatingPoint,
    Outline,
    PixelCheck,
    Sensitivity,
    Unfused,
)
from vitdeploy.render import numbers
from vitdeploy.render.names import fold_name
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.summary import Summary

_JUDGED = {"labels": "top-1", "agreement": "agreement"}
_COLOURS = {"pass": "green", "fail": "red", "invalid": "yellow"}

_IN_BLOCKS = ("qkv", "proj", "fc1", "fc2")
_MOST_ROWS = 24  # fit on a screen; --json has all
_BAR_WIDTH = 12
_NAME_WIDTH = 30  # what the columns of figures leave of 80
_GAP = (0, 1, 0, 0)  # between columns: the sizes of a ViT-L then fit 80 columns


@of_escaped
def pixels(check: PixelCheck) -> Text:
    """Return one line about the preprocessing: the model's own, another one, or not compared."""
    title = ("preprocessing: ", "bold")
    if check.equal is None:
        return Text.assemble(title, (f"not compared, {check.why}", "yellow"))
    if not check.equal:
        return Text.assemble(title, (f"not the pixels of {check.processor}: {check.why}", "yellow"))
    largest, beyond = check.max_difference or 0.0, check.beyond_one_pct or 0.0
    shrunk = f"; {check.shrunk} of them shrunk to fit" if check.shrunk else ""
    return Text.assemble(
        title,
        f"the pixels of {check.processor} within rounding, on {len(check.images)} images{shrunk} (largest difference "
        f"{largest:.2g}/255, {beyond:.2g} % of the values beyond 1/255)",
    )


@of_escaped
def structure(outline: Outline) -> Group:
    """Return the blocks, with equal ones in one row, then all linears by role."""
    linears = Text.assemble((f"{sum(outline.linears.values())} linears", "bold"), f": {_by_role(outline)}", "\n")
    if not outline.blocks:
        return Group("no attention site: the model was not recognised as a Vision Transformer", linears)
    count = outline.blocks[-1].last + 1
    title = Text(f"{count} attention block{'s' if count > 1 else ''}, {outline.layernorms} LayerNorms", style="bold")
    table = make_table(None, "blocks", "heads", "queries × keys", *_IN_BLOCKS, right=())
    table.padding = _GAP
    for column in (table.columns[0], *table.columns[3:]):
        column.no_wrap = True
    for group in outline.blocks:
        blocks = f"{group.first}–{group.last}" if group.last > group.first else str(group.first)
        sizes = (_sizes(group.linears, role) for role in _IN_BLOCKS)
        table.add_row(blocks, _heads(group), _tokens(group), *sizes)
    return Group(title, table, linears)


def _heads(group: BlockGroup) -> str:
    if group.heads is None:
        return NOTHING
    values = "" if group.value_size in (None, group.head_size) else f"\nvalues × {group.value_size}"
    return f"{group.heads} × {group.head_size or '?'}{values}"


def _tokens(group: BlockGroup) -> str:
    """Return `197 × 197`, and windows and biases in a second line: `64 windows + bias`."""
    if group.queries is None:
        return "not raised" if group.kind == "unraised" else NOTHING
    # Only --json distinguishes a bias from a bias of each window.
    added = [f"+ {bias}" for bias in dict.fromkeys(name.removeprefix("window ") for name in group.bias)]
    details = [f"{group.windows} windows", *added] if (group.windows or 1) > 1 else added
    pair = f"{group.queries} × {group.keys or '?'}"
    return "\n".join(filter(None, (pair, " ".join(details))))


def _sizes(linears: Sequence[LinearGroup], role: str) -> str:
    sizes = [f"{f'{g.count} of ' if g.count > 1 else ''}{g.k}×{g.n}" for g in linears if g.role == role]
    return "\n".join(sizes) or NOTHING


def _by_role(outline: Outline) -> str:
    """Return `1 patch 768×192, 12 qkv, 12 proj, …, 3 other (merge.0 384×192 and 2 more)`."""
    roles = []
    for role, count in outline.linears.items():
        groups = [group for group in outline.outside if group.role == role]
        if role == "other":
            more = f" and {count - 1} more" if count > 1 else ""
            roles.append(f"{count} other ({groups[0].names[0]} {groups[0].k}×{groups[0].n}{more})")
        else:
            roles.append(" ".join((f"{count} {role}", *(f"{group.k}×{group.n}" for group in groups))))
    return ", ".join(roles) or NOTHING


@of_escaped
def trials(trials: Sequence[Trial]) -> RenderableType:
    """Return the precisions that were tried, and the one that was kept."""
    table = make_table(None, "precision", "in float", "points lost", "times as fast", "result", right=(1, 2, 3))
    for trial in trials:
        table.add_row(
            trial.label,
            str(trial.float_linears) if trial.float_linears else NOTHING,
            NOTHING if trial.lost is None else f"{trial.lost:.2f}",
            numbers.speedup(trial.speedup),
            Text("kept", style="bold green") if trial.kept else Text(trial.why),
        )
    notes = ["in float: linears that are not quantized; times as fast: compared with this target's float graph"]
    measured = next((trial for trial in trials if trial.judged_by is not None), None)
    if measured is not None:
        notes.append(f"points lost: of {_JUDGED[measured.judged_by or '']}, on {measured.images} images")
    return add_notes(table, notes)


@of_escaped
def audit(audit: Audit) -> RenderableType:
    """Return fusion, precisions and files of a compiled model."""
    attention = audit.attention
    all_fused = bool(attention.sites) and attention.fused == attention.sites and attention.evidence == "compiled"
    precision = "quantized as it came" if audit.model_precision == "quantized" else audit.precision
    table = make_table(f"Audit of {audit.target} {precision}", "", "read back", right=())
    style = "bold green" if all_fused else "bold yellow"
    table.add_row("attention fused", Text(numbers.fused(attention), style=style))
    _add_reasons(table, attention.unfused)
    table.add_row("LayerNorm fused", f"{audit.layernorm.fused} of {audit.layernorm.sites}")
    _add_reasons(table, audit.layernorm.unfused)
    if audit.gelu is not None and audit.gelu.sites:
        table.add_row("GELU in one kernel", f"{audit.gelu.fused} of {audit.gelu.sites}")
        _add_reasons(table, audit.gelu.unfused)
    if any(audit.tokens):
        table.add_row("tokens by block", describe_tokens(audit.tokens))
    linears = {name: count for name, count in audit.linears.model_dump().items() if count}
    table.add_row("linears", ", ".join(f"{count} {name}" for name, count in linears.items()) or NOTHING)
    if audit.quantized is not None:
        share = audit.quantized
        table.add_row(f"in {share.precision}", numbers.quantized(share))
        for what, percent in share.outside.items():
            table.add_row("", f"{percent:.1f} % in another type: {what}")
        table.add_row("", numbers.attention_share(share))
    if audit.stored:
        stored = ", ".join(f"{count} in {name}" for name, count in Counter(audit.stored.values()).items())
        table.add_row("weights", f"{stored}, unpacked by the kernel")
    if audit.engine is not None:
        table.add_row("kernels", numbers.kernels(audit.engine))
    if audit.attention.kernels and audit.providers:
        kernels = Counter(audit.attention.kernels.values())
        table.add_row("attention kernels", ", ".join(f"{count} {name}" for name, count in kernels.items()))
    if audit.providers:
        table.add_row("nodes run by", ", ".join(f"{count} {name}" for name, count in audit.providers.items()))
    if audit.backend:
        table.add_row("backend", audit.backend)
    if audit.threads:
        table.add_row("threads", str(audit.threads))
    for entry in audit.files:
        table.add_row(entry.path, numbers.size(entry.bytes))
    return add_notes(table, audit.doubts)


def describe_tokens(tokens: Sequence[int | None]) -> str:
    """Return the tokens that each attention gets: `197 (blocks 0–3), 137 (4–6), 71 (7–11)`."""
    parts: list[str] = []
    start = 0
    for count, group in groupby(tokens):
        end = start + len(list(group)) - 1
        blocks = f"{start}" if start == end else f"{start}–{end}"
        word = "" if parts else "block " if start == end else "blocks "
        parts.append(f"{NOTHING if count is None else count} ({word}{blocks})")
        start = end + 1
    return ", ".join(parts)


def _add_reasons(table: Table, unfused: Sequence[Unfused]) -> None:
    for reason, sites in _by_reason(unfused).items():
        others = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        table.add_row(f"  {sites[0]}{others}", reason)


def _by_reason(unfused: Sequence[Unfused]) -> dict[str, list[str]]:
    """Return reason -> the sites that share it: often all sites of a model have one reason."""
    sites: dict[str, list[str]] = {}
    for entry in unfused:
        sites.setdefault(entry.reason, []).append(entry.site)
    return sites


@of_escaped
def sensitivity(sensitivity: Sensitivity) -> RenderableType:
    """Return the damage of each linear quantized alone, the most damaging first."""
    layers = sensitivity.layers
    title = f"Sensitivity: each linear alone in {sensitivity.precision}, {sensitivity.choice}"
    table = make_table(title, "linear", "own dB", "output dB", "damage", "same", "MMAC", right=(1, 2, 4, 5))
    best = max((layer.output_sqnr_db for layer in layers), default=0.0)
    span = best - min((layer.output_sqnr_db for layer in layers), default=0.0) or 1.0
    for layer in layers[:_MOST_ROWS]:
        bar = Bar(1.0, 0, (best - layer.output_sqnr_db) / span, width=_BAR_WIDTH, color="red")
        agreement = NOTHING if layer.agreement is None else f"{100 * layer.agreement:.0f} %"
        figures = f"{layer.sqnr_db:.1f}", f"{layer.output_sqnr_db:.1f}"
        table.add_row(fold_name(layer.name, _NAME_WIDTH), *figures, bar, agreement, three_digits(layer.macs / 1e6))
    notes = [
        f"measured on {sensitivity.images} images of {sensitivity.calibration}",
        "dB: signal to noise ratio of the linear's own output and of the model's; 10 dB less is ten times the noise",
        "same: images with the same answer as FP32; MMAC: 10⁶ multiply-accumulates an image",
    ]
    if len(sensitivity.regions) > 1:
        sums = [f"{r.region} {r.output_sqnr_db:.1f} dB ({r.linears} linears)" for r in sensitivity.regions]
        notes.insert(0, f"by region, with the noise of its linears added up: {', '.join(sums)}")
    if len(layers) > _MOST_ROWS:
        notes.insert(0, f"{len(layers) - _MOST_ROWS} more linears do less damage: --json lists them")
    return add_notes(table, notes)


@of_escaped
def evaluation(evaluation: Eval) -> RenderableType:
    """Return the accuracy of both sides on the same samples."""
    title = f"{evaluation.task} on {evaluation.n:,} samples"
    table = make_table(title, "", "reference", "deployed", "drop, 95 % interval", "at most", "unit")
    for name, metric in evaluation.metrics.items():
        sides = (f"{value:.2f}" for value in (metric.reference, metric.deployed))
        table.add_row(name, *sides, numbers.drop(metric), f"{metric.upper95:.2f}", metric.unit)
    same = numbers.agreement_name(evaluation.task)
    notes = [
        f"at most: with 95 % confidence; p = {evaluation.p_value:.2g} ({evaluation.test})",
        f"{same} {100 * evaluation.agreement:.2f} %; {evaluation.flips:,} samples have different answers",
    ]
    if evaluation.operating_point is not None:
        notes += _operating_point(evaluation.operating_point)
    if evaluation.skipped:
        notes.append(f"{evaluation.skipped:,} samples could not be read and were skipped")
    if evaluation.nonfinite:
        notes.append(f"{evaluation.nonfinite:,} samples gave NaN or infinity")
    notes += [f"doubt: {doubt}" for doubt in evaluation.doubts]
    return add_notes(table, notes)


def _operating_point(point: OperatingPoint) -> list[str]:
    """Return F1 and the number of findings at a threshold, as two lines."""
    score = point.score
    change = "" if point.count is None else f", {numbers.speedup(point.count)} times as many"
    return [
        f"at a score of {point.threshold:g}: F1 {score.reference:.2f} % and {score.deployed:.2f} %, drop "
        f"{numbers.drop(score)}",
        f"found: {point.reference:,} and {point.deployed:,}{change}",
    ]


@of_escaped
def gate(gate: Gate) -> RenderableType:
    """Return the verdict and every check."""
    title = Text.assemble("Gate: ", _status(gate.verdict))
    table = make_table(title, "check", "observed", "limit", "status", "reason", right=(1, 2))
    for check in gate.checks:
        figures = numbers.observed(check.observed), numbers.observed(check.limit)
        table.add_row(check.name, *figures, _status(check.status), check.why)
    return add_notes(table, (f"evidence sha256 {gate.digest}",) if numbers.is_digest(gate.digest) else ())


@of_escaped
def doctor(targets: Mapping[str, Availability]) -> Table:
    """Return the targets that can run here; for the others, the reason and what to do."""
    table = make_table("Targets on this machine", "target", "runs", "if not: reason, and what to do", right=())
    for name, target in targets.items():
        sign = Text("yes", style="green") if target.available else Text("no", style="yellow")
        table.add_row(name, sign, ". ".join(filter(None, (target.why.rstrip("."), target.fix))))
    return table


@of_escaped
def summary(summary: Summary) -> RenderableType:
    """Return FP32 and the artifact side by side."""
    table = make_table(None, "", summary.reference, summary.artifact)
    for row in summary.rows:
        colour = _COLOURS.get(row.artifact.lower(), "") if row.label == "verdict" else ""
        table.add_row(row.label, row.reference, Text(row.artifact, style=f"bold {colour}" if colour else ""))
    return add_notes(table, summary.notes)


def make_table(title: str | Text | None, *headers: str, right: Sequence[int] | None = None) -> Table:
    """Make an empty table. `right` are the columns with numbers; by default all but the first."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    for number, header in enumerate(headers):
        numeric = number > 0 if right is None else number in right
        table.add_column(header, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


def add_notes(table: Table, notes: Sequence[str]) -> RenderableType:
    """Return a table with lines and an empty one below it. They and its title may be wider than the table."""
    if not notes:
        return table
    title, table.title = table.title, None
    lines = Text("\n".join((*notes, "")))
    return Group(table, lines) if title is None else Group(Text.assemble(title, style="table.title"), table, lines)


def _status(status: str) -> Text:
    return Text(status.upper(), style=f"bold {_COLOURS[status]}")
