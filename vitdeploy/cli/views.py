"""Results as people read them: lists of rich renderables, in the order they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitdeploy import tasks
from vitdeploy.recipe import TaskSpec
from vitdeploy.render import bench_tables as speed
from vitdeploy.render import numbers, tables
from vitdeploy.render.summary import summarize

if TYPE_CHECKING:
    from vitdeploy.commands.doctor import Diagnosis
    from vitdeploy.commands.predict import Prediction
    from vitdeploy.commands.report.report import Reported
    from vitdeploy.commands.run import Outcome
    from vitdeploy.evidence import Audit
    from vitdeploy.pipeline.finish import Exported
    from vitdeploy.remote.messages import Probe
    from vitdeploy.remote.near.listing import Listing


def exported(found: Exported, *, benched: bool = False) -> list[RenderableType]:
    """Where it is, how the numbers compare, and what to know."""
    lines = [
        Text.assemble((f"{found.stage} ", "bold"), (found.artifact, "bold cyan"), f" in {found.seconds} s"),
        Text(f"  exporter {found.exporter}, weights {found.weights}"),
        Text(f"  graph against FP32: {_parity(found)}"),
    ]
    refused = [(record.name, refusal) for record in found.passes for refusal in record.refused]
    lines += [Text(f"  {name} refused {refusal.site}: {refusal.reason}", style="yellow") for name, refusal in refused]
    lines += [Text(f"  {note}", style="yellow" if found.stage == "bundle" else "") for note in found.notes]
    kept = next((t for t in found.trials if t.kept), None)
    if kept is not None and kept.speedup is not None and len(found.trials) == 1:
        lines.append(Text(f"  {numbers.speedup(kept.speedup)} times as fast as this target's float graph, at a glance"))
    if found.stage == "artifact" and not benched:
        told = f"how fast it is there: vitdeploy bench {found.artifact} --host {found.host}"
        here = f"against FP32 PyTorch on this machine: vitdeploy bench {found.artifact}"
        lines.append(Text(f"  {told if found.host else here}"))
    return [*lines, *([tables.trials(found.trials)] if len(found.trials) > 1 else [])]


def inspected(found: Audit) -> list[RenderableType]:
    """What the model is made of, then what became of it."""
    shown: list[RenderableType] = [tables.structure(found.structure)] if found.structure is not None else []
    shown.append(tables.audit(found))
    return [*shown, *([tables.sensitivity(found.sensitivity)] if found.sensitivity is not None else [])]


def predictions(answers: Sequence[Prediction]) -> list[RenderableType]:
    """Return the answers about each image."""
    shown: list[RenderableType] = []
    for prediction in answers:
        shown.append(Text(prediction.image, style="bold"))
        lines = tasks.find(TaskSpec(kind=prediction.task)).format_answer(prediction)
        shown += [f"  {escape(line)}" for line in lines]
    return shown


def reported(found: Reported) -> list[RenderableType]:
    """Where the page is, and what it could not show."""
    shown = sum(section.missing is None for section in found.sections)
    lines = [
        Text.assemble(("report ", "bold"), (found.report, "bold cyan"), f", {numbers.size(found.bytes)}"),
        Text(f"  verdict {found.verdict}; {shown} of {len(found.sections)} sections have evidence"),
    ]
    gaps = [section for section in found.sections if section.missing is not None]
    return [*lines, *(Text(f"  {s.name}: {s.missing}. {s.fix}", style="yellow") for s in gaps)]


def doctor(found: Diagnosis) -> list[RenderableType]:
    """Targets, then this machine."""
    export = {"export (models to ONNX)": found.export}
    host = Table.grid(padding=(0, 2))
    gpu = found.host.gpu or "none seen"
    for label, value in (
        ("CPU", f"{found.host.cpu}, {found.host.cores} cores, {found.host.memory_gib} GiB"),
        ("ISA", " ".join(found.host.isa) or "unknown"),
        ("GPU", gpu if found.host.jetpack is None else f"{gpu}, L4T {found.host.jetpack}"),
        ("Python", f"{found.host.python} on {found.host.system}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in found.libraries.items())),
    ):
        host.add_row(f"  {label}", escape(value))
    return [tables.doctor({**found.targets, **export}), host]


def hosts(found: Listing) -> list[RenderableType]:
    """One line a host, and below it what it is."""
    if not found.hosts:
        return [f"no host is named in {escape(found.file)}; one a line: NAME: ssh://USER@HOST"]
    shown: list[RenderableType] = []
    for host in found.hosts:
        colour = {"ready": "green", "busy": "yellow"}.get(host.state, "red")
        url = f"  {host.url}" if host.url != host.name else ""
        shown.append(Text.assemble((host.name, "bold cyan"), f"{url}  ", (host.state, colour)))
        told = ". ".join(filter(None, (host.why.rstrip("."), host.fix)))
        freed = "" if host.freed_bytes is None else f"freed {numbers.size(host.freed_bytes)}"
        lines = [told, *(_device(host.device) if host.device else ()), freed]
        shown += [Padding(Text(line), (0, 0, 0, 2)) for line in lines if line]
    return shown


def _device(probe: Probe) -> list[str]:
    """What a device is, what it can do, and how it is."""
    state, host = probe.condition, probe.doctor.host
    l4t = f"L4T {state.l4t}" + (f" (JetPack {state.jetpack})" if state.jetpack else "") if state.l4t else ""
    tensorrt = f"TensorRT {state.tensorrt}" if state.tensorrt else ""
    can = [name for name, target in probe.doctor.targets.items() if target.available]
    figures = (
        (state.power_mode, "power mode {}"),
        (state.temperature_c, "{:.0f} °C"),
        (state.cpu_mhz, "CPU {:.0f} MHz"),
        (state.gpu_mhz, "GPU {:.0f} MHz"),
        (state.memory_free_gib, "{:.1f} GiB memory free"),
        (state.disk_free_gib, "{:.1f} GiB disk free"),
    )
    return [
        ", ".join(filter(None, (state.module or host.cpu, l4t, tensorrt, f"Python {host.python}"))),
        f"vitdeploy {probe.version} for {', '.join(can) or 'no target'}",
        ", ".join(form.format(value) for value, form in figures if value is not None),
    ]


def recipes(found: Mapping[str, str]) -> list[RenderableType]:
    """Names and what they are for."""
    table = Table.grid(padding=(0, 2))
    for name, text in found.items():
        table.add_row(Text(name, style="bold cyan"), escape(text))
    return [table, Text("\nvitdeploy recipes NAME prints one; vitdeploy run NAME runs it.", style="dim")]


def outcome(found: Outcome) -> list[RenderableType]:
    """Everything that `run` measured, and the one table that sums it up."""
    shown: list[RenderableType] = [
        *exported(found.export, benched=found.bench is not None),
        "",
        tables.audit(found.audit),
    ]
    if found.eval is not None:
        shown.append(tables.evaluation(found.eval))
    if found.bench is not None:
        shown.append(speed.latencies(found.bench))
    shown.append(tables.gate(found.gate))
    random_weights = found.export.weights == "random"
    summary = summarize(found.audit, found.bench, found.eval, found.gate, random_weights=random_weights)
    page = [Text.assemble(("report ", "bold"), (found.report, "bold cyan"))] if found.report is not None else []
    return [*shown, tables.summary(summary), *page]


def _parity(found: Exported) -> str:
    parity = found.graph_parity
    if parity is None:
        return "not compared"
    return (
        f"cosine {parity.cosine:.6f}, largest difference {parity.max_abs:.2g} where values reach "
        f"{parity.reference_max:.3g}"
    )
