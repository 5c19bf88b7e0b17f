"""Settings for throughput as tables for a terminal; they fit 80 columns."""

from __future__ import annotations

from rich.console import RenderableType

from vitdeploy.escaping import of_escaped
from vitdeploy.evidence import StreamTuning, TunedScenario
from vitdeploy.render import numbers
from vitdeploy.render.numbers import three_digits
from vitdeploy.render.tables import add_notes, make_table


@of_escaped
def tuning(result: StreamTuning) -> list[RenderableType]:
    """Return a table for each scenario."""
    return [_scenario(name, tuned) for name, tuned in result.scenarios.items()]


def _scenario(name: str, tuned: TunedScenario) -> RenderableType:
    table = make_table(f"Throughput, {name}", "", "streams", "batch", "images/s", "times untuned, 95 %")
    for run, setting in zip(tuned.runs, tuned.settings.values(), strict=True):
        ratio = "" if run.speedup is None else numbers.speedup(run.speedup)
        label = f"{run.name} (kept)" if run.name == tuned.kept else run.name
        table.add_row(label, str(setting.streams), str(setting.batch), three_digits(run.throughput_ips), ratio)
    return add_notes(table, [tuned.why, *(f"doubt: {doubt}" for doubt in tuned.doubts)])
