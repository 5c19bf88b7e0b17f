"""A sweep as tables for a terminal; they fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vitdeploy.escaping import of_escaped
from vitdeploy.evidence import Sweep, SweepEstimate, SweepRow
from vitdeploy.render import numbers
from vitdeploy.render.names import fold_name, shorten_paths
from vitdeploy.render.numbers import NOTHING, three_digits
from vitdeploy.render.tables import add_notes, make_table

_NAME_WIDTH = 26
_MOST_PENDING = 24  # fit on a screen; --json has all
_VERDICTS = {"pass": "green", "fail": "red", "invalid": "yellow"}


@of_escaped
def sweep(result: Sweep) -> list[RenderableType]:
    """Return the trials, the reasons of those that failed, what is left, and where the results are."""
    measured = [row for row in result.trials if row.status == "done"]
    lines: list[RenderableType] = [_describe_counts(result)]
    if measured:
        lines.append(add_notes(trials(measured), [*_find_marks(measured), *result.notes]))
    bundles = [row for row in result.trials if row.status == "bundle"]
    if bundles:
        lines.append(Text(f"{len(bundles)} bundles are not measured: {bundles[0].reason}. {bundles[0].fix}", "yellow"))
    for failure in result.failures:
        count = f"{len(failure.trials)} trials" if len(failure.trials) > 1 else failure.trials[0]
        lines.append(Text(f"failed at {failure.step}: {failure.reason.rstrip('.')}. {failure.fix} ({count})", "red"))
    pending = [row for row in result.trials if row.status == "pending"]
    if pending:
        short = _shorten(pending)
        lines += [Text(f"  to do: {label(row, short)}") for row in pending[:_MOST_PENDING]]
        more = len(pending) - _MOST_PENDING
        lines += [Text(f"  and {more} more")] if more > 0 else []
    if result.estimate.trials or result.estimate.seconds:
        lines.append(Text(describe_estimate(result.estimate), "bold"))
    return [*lines, *_describe_picked(result), *_list_files(result)]


def trials(rows: Sequence[SweepRow]) -> Table:
    """Return the measured trials, each with its accuracy, latency and size."""
    metric = rows[0].metric or "metric"
    group_header = ["group"] if len({row.group for row in rows}) > 1 else []  # of trials that may be compared
    headers = ["", metric, "drop", "latency ms", "speed-up", "size", "", *group_header]
    table = make_table("Trials", *headers, right=(1, 2, 3, 4, 5))
    table.padding = (0, 1, 0, 0)
    short = _shorten(rows)
    for row in rows:
        verdict = Text(row.verdict, _VERDICTS.get(row.verdict, ""))
        place = "in doubt" if row.doubts else "front" if row.front else ""
        state = Text.assemble((place, "yellow" if row.doubts else "bold"), " " if place else "", verdict)
        table.add_row(
            fold_name(label(row, short), _NAME_WIDTH),
            NOTHING if row.deployed is None else three_digits(row.deployed),
            NOTHING if row.drop is None else numbers.without_minus_zero(row.drop),
            NOTHING if row.latency_ms is None else three_digits(row.latency_ms),
            NOTHING if row.speedup is None else f"{row.speedup:.2f}",
            NOTHING if row.size_bytes is None else numbers.size(row.size_bytes),
            state,
            *([str(row.group or NOTHING)] if group_header else []),
        )
    return table


def _shorten(rows: Sequence[SweepRow]) -> Mapping[str, str]:
    return shorten_paths(value for row in rows for value in row.axes.values())


def label(row: SweepRow, short: Mapping[str, str]) -> str:
    """Return the values of a trial's axes in a few words, in their shorter forms where there are any."""
    return ", ".join(short.get(value, value) for value in row.axes.values()) or row.name


def describe_estimate(estimate: SweepEstimate) -> str:
    """Return the work that is left in words."""
    if estimate.seconds is None:
        return f"{estimate.trials} trials to run"
    if not estimate.trials:
        return f"{estimate.basis} to run, about {duration(estimate.seconds)}"
    return f"{estimate.trials} trials to run, about {duration(estimate.seconds)} ({estimate.basis})"


def duration(seconds: float) -> str:
    """Format a time in its two largest units: `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _describe_counts(result: Sweep) -> Text:
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    elsewhere = len(result.trials) - sum(result.counts.values())  # all of them finished before
    reused = sum(row.reused for row in result.trials) - elsewhere
    extra = [f"{reused} finished before"] if reused else []
    extra += [f"{elsewhere} of other machines"] if elsewhere else []
    extra += [f"{result.excluded} excluded"] if result.excluded else []
    rest = f" ({', '.join(extra)})" if extra else ""
    return Text.assemble(("sweep ", "bold"), (result.sweep, "bold cyan"), f": {counts}{rest}")


def _find_marks(rows: Sequence[SweepRow]) -> list[str]:
    doubtful = [row for row in rows if row.doubts]
    if not doubtful:
        return []
    reasons = list(dict.fromkeys(row.doubts[0] for row in doubtful))
    more = f", and {len(reasons) - 1} other reasons" if len(reasons) > 1 else ""
    return [f"in doubt, and so not on the front: {len(doubtful)} of {len(rows)}, such as: {reasons[0]}{more}"]


def _describe_picked(result: Sweep) -> list[RenderableType]:
    if result.picked is None:
        return []
    picked = result.picked
    value = numbers.size(int(picked.value)) if picked.metric in ("size", "memory") else three_digits(picked.value)
    return [
        Text.assemble(("picked ", "bold"), f"{picked.trial}, {picked.metric} {value}: ", (picked.path, "bold cyan")),
        *(Text(f"  {note}", "yellow") for note in picked.notes),
    ]


def _list_files(result: Sweep) -> list[RenderableType]:
    files = [path for path in (result.page, result.csv, result.jsonl) if path is not None]
    return [Text.assemble(("results ", "bold"), (", ".join(files), "cyan"))] if files else []
