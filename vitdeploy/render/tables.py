"""Evidence as tables for a terminal; they are right at 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vitdeploy.artifact import Trial
from vitdeploy.evidence import (
    Audit,
    Availability,
    BlockGroup,
    Comparison,
    Divergence,
    Eval,
    Gate,
    LinearGroup,
    Outline,
    Sensitivity,
    Unfused,
)
from vitdeploy.render import numbers
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.summary import Summary

_JUDGED = {"labels": "top-1", "agreement": "agreement"}
_COLOURS = {"pass": "green", "fail": "red", "invalid": "yellow"}


_IN_BLOCKS = ("qkv", "proj", "fc1", "fc2")
_MOST_ROWS = 24  # fits a screen; JSON has all
_BAR_WIDTH = 12
_SILENT_DB = 120.0  # what rounding in another order adds
_GAP = (0, 1, 0, 0)  # of two columns; a ViT-L's sizes fit into 80 columns with it


def structure(found: Outline) -> Group:
    """Blocks that are alike in one row, with the K×N of their linears; then all linears by role."""
    linears = Text.assemble((f"{sum(found.linears.values())} linears", "bold"), f": {_by_role(found)}", "\n")
    if not found.blocks:
        return Group("no attention site: nothing in it is recognised as a Vision Transformer", linears)
    count = found.blocks[-1].last + 1
    title = Text(f"{count} attention block{'s' if count > 1 else ''}, {found.layernorms} LayerNorms", style="bold")
    table = table_of(None, "blocks", "heads", "queries × keys", *_IN_BLOCKS, right=())
    table.padding = _GAP
    for column in (table.columns[0], *table.columns[3:]):
        column.no_wrap = True
    for group in found.blocks:
        numbered = f"{group.first}–{group.last}" if group.last > group.first else str(group.first)
        sizes = (_sizes(group.linears, role) for role in _IN_BLOCKS)
        table.add_row(numbered, _heads(group), _tokens(group), *sizes)
    return Group(title, table, linears)


def _heads(group: BlockGroup) -> str:
    if group.heads is None:
        return NOTHING
    values = "" if group.value_size in (None, group.head_size) else f"\nvalues × {group.value_size}"
    return f"{group.heads} × {group.head_size or '?'}{values}"


def _tokens(group: BlockGroup) -> str:
    """`197 × 197`, and in a second line what is not plain: `64 windows + bias`."""
    if group.queries is None:
        return "not raised" if group.kind == "unraised" else NOTHING
    # A bias for each window is told in JSON alone.
    added = [f"+ {what}" for what in dict.fromkeys(bias.removeprefix("window ") for bias in group.bias)]
    more = [f"{group.windows} windows", *added] if (group.windows or 1) > 1 else added
    pair = f"{group.queries} × {group.keys or '?'}"
    return "\n".join(filter(None, (pair, " ".join(more))))


def _sizes(linears: Sequence[LinearGroup], role: str) -> str:
    found = [f"{f'{g.count} of ' if g.count > 1 else ''}{g.k}×{g.n}" for g in linears if g.role == role]
    return "\n".join(found) or NOTHING


def _by_role(found: Outline) -> str:
    """`1 patch 768×192, 12 qkv, 12 proj, …, 3 other (merge.0 384×192 and 2 more)`."""
    told = []
    for role, count in found.linears.items():
        groups = [group for group in found.outside if group.role == role]
        if role == "other":
            more = f" and {count - 1} more" if count > 1 else ""
            told.append(f"{count} other ({groups[0].names[0]} {groups[0].k}×{groups[0].n}{more})")
        else:
            told.append(" ".join((f"{count} {role}", *(f"{group.k}×{group.n}" for group in groups))))
    return ", ".join(told) or NOTHING


def trials(found: Sequence[Trial]) -> Table:
    """What was tried to lower the precision: what each way lost and gained, and which one was kept."""
    table = table_of(None, "precision", "in float", "points lost", "times float", "", right=(1, 2, 3))
    for trial in found:
        table.add_row(
            trial.precision,
            str(trial.float_linears) if trial.float_linears else NOTHING,
            NOTHING if trial.lost is None else f"{trial.lost:.2f}",
            numbers.speedup(trial.speedup),
            Text("kept", style="bold green") if trial.kept else Text(trial.why),
        )
    judged = next((t for t in found if t.judged_by is not None), None)
    notes = [] if judged is None else [f"points of {_JUDGED[judged.judged_by or '']}, on {judged.images} images"]
    return noted(table, notes)


def audit(found: Audit) -> Table:
    """What the compiled thing does, attention first."""
    attention = found.attention
    whole = bool(attention.sites) and attention.fused == attention.sites and attention.evidence == "compiled"
    table = table_of(f"{found.target} {found.precision}: what runs", "", "found", right=())
    table.add_row("attention fused", Text(numbers.fused(attention), style="bold green" if whole else "bold yellow"))
    for reason, sites in _by_reason(attention.unfused).items():
        others = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        table.add_row(f"  {escape(sites[0])}{others}", escape(reason))
    table.add_row("LayerNorm fused", f"{found.layernorm.fused} of {found.layernorm.sites}")
    linears = {name: count for name, count in found.linears.model_dump().items() if count}
    table.add_row("linears", ", ".join(f"{count} {name}" for name, count in linears.items()) or NOTHING)
    if found.stored:
        stored = ", ".join(f"{count} in {name}" for name, count in Counter(found.stored.values()).items())
        table.add_row("weights", f"{stored}, unpacked by the kernel")
    if found.engine is not None:
        table.add_row("kernels", numbers.kernels(found.engine))
    if found.backend:
        table.add_row("backend", escape(found.backend))
    if found.threads:
        table.add_row("threads", str(found.threads))
    for entry in found.files:
        table.add_row(escape(entry.path), numbers.size(entry.bytes))
    return noted(table, found.doubts)


def _by_reason(unfused: Sequence[Unfused]) -> dict[str, list[str]]:
    """Reason -> the sites that share it: a model where nothing fuses has one reason throughout."""
    found: dict[str, list[str]] = {}
    for site in unfused:
        found.setdefault(site.reason, []).append(site.site)
    return found


def sensitivity(found: Sensitivity) -> Table:
    """Every linear quantized alone, worst first: the longer the bar, the more noise in the model's outputs."""
    title = f"{found.precision}, one linear at a time: {found.choice}"
    table = table_of(title, "linear", "own dB", "output dB", "", "same", "MMAC", right=(1, 2, 4, 5))
    best = max((layer.output_sqnr_db for layer in found.layers), default=0.0)
    span = best - min((layer.output_sqnr_db for layer in found.layers), default=0.0) or 1.0
    for layer in found.layers[:_MOST_ROWS]:
        bar = Bar(1.0, 0, (best - layer.output_sqnr_db) / span, width=_BAR_WIDTH, color="red")
        agrees = NOTHING if layer.agreement is None else f"{100 * layer.agreement:.0f} %"
        figures = f"{layer.sqnr_db:.1f}", f"{layer.output_sqnr_db:.1f}"
        table.add_row(escape(layer.name), *figures, bar, agrees, three_digits(layer.macs / 1e6))
    notes = [f"on {found.images} images of {found.calibration}; 10 dB less is ten times the noise in the outputs"]
    if len(found.layers) > _MOST_ROWS:
        notes.insert(0, f"less than these cost {len(found.layers) - _MOST_ROWS} more: --json")
    return noted(table, notes)


def divergence(found: Divergence) -> Group:
    """Block by block, then the layers of the one where FP32 and the artifact part."""
    blocks = _comparisons(f"At block ends, {found.images} images of {found.data}", found.blocks, found.block)
    looked_into = next((row.name for row in found.blocks if row.tensor == found.layers[-1].tensor), "")
    layers = _comparisons(f"Inside {looked_into}", found.layers, found.layer)
    why = Text(found.why, style="bold red" if found.block is not None else "bold green")
    return Group(blocks, layers, why, f"they part {found.rule}", f"what ran: {escape(found.how)}")


def _comparisons(title: str, rows: Sequence[Comparison], marked: str | None) -> Table:
    table = table_of(title, "", "dB", "adds dB", "cosine", "largest error")
    left_out: dict[str, list[str]] = {}
    for row in rows:
        here = row.name == marked
        name = Text(f"{'▶' if here else ' '} {row.name}", style="bold red" if here else "")
        if row.sqnr_db is None or row.adds_db is None or row.cosine is None:
            left_out.setdefault(row.note, []).append(row.name)
            table.add_row(name, *[NOTHING] * 4)
            continue
        adds = NOTHING if row.adds_db >= _SILENT_DB else f"{row.adds_db:.1f}"
        error = f"{row.nonfinite:,} not finite" if row.max_abs is None else three_digits(row.max_abs)
        table.add_row(name, f"{row.sqnr_db:.1f}", adds, f"{row.cosine:.6f}", error)
    return noted(table, [f"{', '.join(names)}: not compared, {note}" for note, names in left_out.items()])


def evaluation(found: Eval) -> Table:
    """Accuracy of both sides on the same samples."""
    title = f"{found.task} on {found.n:,} samples"
    table = table_of(title, "", "reference", "deployed", "drop, 95 % interval", "at most", "unit")
    for name, metric in found.metrics.items():
        sides = (f"{value:.2f}" for value in (metric.reference, metric.deployed))
        table.add_row(escape(name), *sides, numbers.drop(metric), f"{metric.upper95:.2f}", metric.unit)
    same = numbers.agreement_name(found.task)
    notes = [f"{same} {100 * found.agreement:.2f} %, {found.flips:,} flips, {found.test} p = {found.p_value:.2g}"]
    if found.skipped:
        notes.append(f"{found.skipped:,} samples could not be read and were skipped")
    if found.nonfinite:
        notes.append(f"{found.nonfinite:,} samples gave NaN or infinity")
    notes += [f"in doubt: {doubt}" for doubt in found.doubts]
    return noted(table, notes)


def gate(found: Gate) -> Table:
    """The verdict and every check."""
    table = table_of(
        Text.assemble("Gate: ", _status(found.verdict)), "check", "observed", "limit", "", "why", right=(1, 2)
    )
    for check in found.checks:
        figures = numbers.observed(check.observed), numbers.observed(check.limit)
        table.add_row(escape(check.name), *figures, _status(check.status), escape(check.why))
    return table


def doctor(found: Mapping[str, Availability]) -> Table:
    """Which targets can run here; if not, why and what to do."""
    table = table_of("Targets", "target", "here", "why not, and what to do", right=())
    for name, target in found.items():
        sign = Text("yes", style="green") if target.available else Text("no", style="yellow")
        table.add_row(escape(name), sign, escape(". ".join(filter(None, (target.why.rstrip("."), target.fix)))))
    return table


def summary(found: Summary) -> Table:
    """FP32 and the artifact side by side."""
    table = table_of(None, "", escape(found.reference), escape(found.artifact))
    for row in found.rows:
        colour = _COLOURS.get(row.artifact.lower(), "") if row.label == "verdict" else ""
        table.add_row(row.label, escape(row.reference), Text(row.artifact, style=f"bold {colour}" if colour else ""))
    return noted(table, found.notes)


def table_of(title: str | Text | None, *headers: str, right: Sequence[int] | None = None) -> Table:
    """A plain table; all columns but the first are numbers unless `right` names those that are."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    for number, header in enumerate(headers):
        numeric = number > 0 if right is None else number in right
        table.add_column(header, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


def noted(table: Table, notes: Sequence[str]) -> Table:
    """The table with lines below it."""
    if notes:
        table.caption = Text("\n".join(notes), style="not dim")
    return table


def _status(status: str) -> Text:
    return Text(status.upper(), style=f"bold {_COLOURS[status]}")
