"""The tables of `vitdeploy debug`: where FP32 and an artifact diverge."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from vitdeploy.escaping import of_escaped
from vitdeploy.evidence import Comparison, Divergence
from vitdeploy.render.names import fold_name
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.tables import add_notes, make_table

_NAME_WIDTH = 30  # what the columns of figures leave of 80
_FIGURE_WIDTH = 11
_SILENT_DB = 120.0  # noise below this comes from rounding in another order


@of_escaped
def divergence(divergence: Divergence) -> Group:
    """Return the comparison of all blocks, then of the layers in the block that diverges."""
    count = "1 image" if divergence.images == 1 else f"{divergence.images} images"
    title = f"At the end of each block, on {count} of {divergence.data}"
    blocks = _comparisons(title, divergence.blocks, divergence.block)
    last = divergence.layers[-1].tensor if divergence.layers else ""
    block = next((row.name for row in divergence.blocks if row.tensor == last), "")
    layers = [_comparisons(f"Inside {block}", divergence.layers, divergence.layer)] if divergence.layers else []
    conclusion = Text(divergence.why, style="bold red" if divergence.block is not None else "bold green")
    legend = "dB: signal to noise ratio; adds dB: the same, counting only the noise that is not in the inputs"
    if any(row.graph_db is not None for row in divergence.blocks):
        legend += "; graph dB: against its own graph, computed operator by operator"
    rule, ran = f"the rule: they diverge {divergence.rule}", f"what ran: {divergence.how}"
    alike = divergence.selected_alike_pct
    rows = (
        [] if alike is None else [f"rows selected by score: {alike:.1f} % are the same; behind it these are compared"]
    )
    return Group(blocks, *layers, conclusion, *divergence.notes, legend, *rows, rule, ran)


def _comparisons(title: str, rows: Sequence[Comparison], marked: str | None) -> RenderableType:
    has_graph = any(row.graph_db is not None for row in rows)
    further = ("graph dB",) if has_graph else ()
    table = make_table(title, "", "dB", "adds dB", "cosine", "largest error", *further)
    left_out: dict[str, list[str]] = {}
    for row in rows:
        is_marked = row.name == marked
        further_figures = (NOTHING if row.graph_db is None else f"{row.graph_db:.1f}",) if has_graph else ()
        shown = fold_name(row.name, _NAME_WIDTH - (_FIGURE_WIDTH if has_graph else 0)).replace("\n", "\n  ")
        name = Text(f"{'▶' if is_marked else ' '} {shown}", style="bold red" if is_marked else "")
        if row.sqnr_db is None or row.adds_db is None or row.cosine is None:
            left_out.setdefault(row.note, []).append(row.name)
            table.add_row(name, *[NOTHING] * 4, *further_figures)
            continue
        adds = NOTHING if row.adds_db >= _SILENT_DB else f"{row.adds_db:.1f}"
        error = f"{row.nonfinite:,} not finite" if row.max_abs is None else three_digits(row.max_abs)
        table.add_row(name, f"{row.sqnr_db:.1f}", adds, f"{row.cosine:.6f}", error, *further_figures)
    return add_notes(table, [f"not compared: {', '.join(names)} ({note})" for note, names in left_out.items()])
