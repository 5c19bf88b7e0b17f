"""Results for people: lists of rich renderables, in the order they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitdeploy import precision, tasks
from vitdeploy.escaping import of_escaped
from vitdeploy.recipe import TaskSpec
from vitdeploy.render import bench_tables, numbers, tables
from vitdeploy.render.summary import summarize

if TYPE_CHECKING:
    from vitdeploy.artifact.manifest import Parity
    from vitdeploy.commands.board.recording import Recorded
    from vitdeploy.commands.doctor import Diagnosis
    from vitdeploy.commands.family.export import ExportedFamily
    from vitdeploy.commands.family.inspect import InspectedFamily
    from vitdeploy.commands.package import Packaged
    from vitdeploy.commands.predict import Prediction
    from vitdeploy.commands.report.report import Reported
    from vitdeploy.commands.run import Outcome
    from vitdeploy.evidence import Audit
    from vitdeploy.pipeline.summary import Exported
    from vitdeploy.remote.messages import Probe
    from vitdeploy.remote.near.listing import Listing

_CLOSE = 0.99
"""A cosine from which on nobody asks."""


@of_escaped
def show_export(export: Exported, *, benched: bool = False) -> list[RenderableType]:
    """Show the folder, the parity of the graph, refusals and notes; and the next command unless it is `benched`."""
    lines = [
        Text.assemble((f"{export.stage} ", "bold"), (export.artifact, "bold cyan"), f" in {export.seconds} s"),
        Text(f"  exporter {export.exporter}, weights {export.weights}"),
        *(Text(f"  {line}") for line in _describe_parity(export)),
    ]
    refused = [(record.name, refusal) for record in export.passes for refusal in record.refused]
    lines += [Text(f"  {name} refused {refusal.site}: {refusal.reason}", style="yellow") for name, refusal in refused]
    lines += [Text(f"  {note}", style="yellow" if export.stage == "bundle" else "") for note in export.notes]
    if export.quantized is not None:
        lines.append(Text(f"  in {export.quantized.precision}: {numbers.quantized(export.quantized)}"))
    chosen = next((trial for trial in export.trials if trial.kept), None)
    if chosen is not None and chosen.speedup is not None and len(export.trials) == 1:
        ratio = numbers.speedup(chosen.speedup)
        lines.append(Text(f"  {ratio} times as fast as this target's float graph, in a short measurement"))
    following: list[RenderableType] = []
    if export.next and not benched:
        where = " on the device" if export.stage == "bundle" else ""
        command = " && ".join(
            f"{part} --host {export.host}" if export.host else part for part in export.next.split(" && ")
        )
        # One line, however long: what is copied from a terminal must be the whole command.
        following = [Text.assemble((f"Next{where}: ", "bold"), command, no_wrap=True, overflow="ignore")]
    return [*lines, *([tables.trials(export.trials)] if len(export.trials) > 1 else []), *following]


@of_escaped
def show_family(family: ExportedFamily) -> list[RenderableType]:
    """Show the parts of a family, and how they compare with the whole model in turn."""
    lines: list[RenderableType] = [
        Text.assemble((f"family {family.stage} ", "bold"), (family.artifact, "bold cyan"), f" in {family.seconds} s")
    ]
    for part in family.parts.values():
        lines += [Padding(line, (0, 0, 0, 2)) for line in show_export(part, benched=True)]
    lines += _describe_pair(family.parity, family.graph_parity, family.mask_iou)
    lines += [Text(f"  {note}") for note in (f"memory over time: {family.memory}", *family.notes)]
    return [*lines, Text.assemble(("Next: ", "bold"), family.next, no_wrap=True, overflow="ignore")]


@of_escaped
def show_inspected_family(family: InspectedFamily) -> list[RenderableType]:
    """Show the audit of each part of a family, and how the pair compares with the whole model."""
    lines: list[RenderableType] = []
    for name, audit in family.parts.items():
        record = family.records[name]
        reason = f": {record.reason}" if record.reason else ""
        lines += [Text.assemble((name, "bold"), f" in {record.precision}{reason}"), *show_audit(audit)]
    lines += _describe_pair(family.parity, family.graph_parity, family.mask_iou)
    lines += [Text(f"  doubt: {doubt}", style="yellow") for doubt in family.doubts]
    return [*lines, Text(f"  memory over time: {family.memory}")]


def _describe_pair(parity: Parity | None, graphs: Parity | None, overlap: float | None) -> list[RenderableType]:
    """Return how both parts in turn compare with the whole model."""
    lines: list[RenderableType] = []
    compared = parity or graphs
    if compared is not None:
        what = "both parts in turn" if parity is not None else "the graphs of both parts in turn"
        largest = f"largest difference {compared.max_abs:.2g} where values reach {compared.reference_max:.2g}"
        lines.append(Text(f"  {what} against the whole model: cosine {compared.cosine:.6f}, {largest}"))
    if overlap is not None:
        lines.append(Text(f"  masks overlap with the whole model's: IoU {overlap:.4f}"))
    return lines


@of_escaped
def show_audit(audit: Audit) -> list[RenderableType]:
    """Show the structure of the model, the audit of the compiled model, and the sensitivity if it was measured."""
    structure = [] if audit.structure is None else [tables.structure(audit.structure)]
    sensitivity = [] if audit.sensitivity is None else [tables.sensitivity(audit.sensitivity)]
    pixels = [] if audit.pixels is None else [tables.pixels(audit.pixels)]
    return [*structure, tables.audit(audit), *pixels, *sensitivity]


@of_escaped
def show_predictions(predictions: Sequence[Prediction]) -> list[RenderableType]:
    """Show the answers about each image."""
    lines: list[RenderableType] = []
    for prediction in predictions:
        lines.append(Text(prediction.image, style="bold", no_wrap=True, overflow="ignore"))  # a path to copy
        answers = tasks.find(TaskSpec(kind=prediction.task)).format_answer(prediction)
        lines += [f"  {answer}" for answer in answers]
    return lines


@of_escaped
def show_report(report: Reported) -> list[RenderableType]:
    """Show the path of the page, its verdict, and how to fill its empty sections."""
    title = Text.assemble(
        ("report ", "bold"), (report.report, "bold cyan"), f", {numbers.size(report.bytes)}", no_wrap=True,
        overflow="ignore",
    )  # fmt: skip
    if report.runs:
        return [title, *_show_runs(report)]
    empty = [section for section in report.sections if section.missing is not None]
    filled = len(report.sections) - len(empty)
    return [
        title,
        Text(f"  verdict {report.verdict}; {filled} of {len(report.sections)} sections have evidence"),
        *(Text(f"  {section.name}: {section.missing}. {section.fix}", style="yellow") for section in empty),
    ]


def _show_runs(report: Reported) -> list[RenderableType]:
    """Show the groups of a page about several artifacts, why they are apart, and what is missing."""
    names = {run.number: run.name for run in report.runs}
    others = [run.name for run in report.runs if not run.group]
    groups = [
        f"group {group.number}: {', '.join(names[n] for n in group.runs)}. {group.apart}".rstrip()
        for group in report.groups
    ]
    groups += [f"not compared: {', '.join(others)}"] if others else []
    gaps = [f"{run.name}: {gap.missing}. {gap.fix}" for run in report.runs for gap in run.missing]
    return [
        *(Text(f"  {line}") for line in groups),
        *(Text(f"  {line}", style="yellow") for line in gaps),
    ]


@of_escaped
def show_package(packaged: Packaged) -> list[RenderableType]:
    """Show the folder, its files and what to know before using it."""
    total = numbers.size(sum(file.bytes for file in packaged.files))
    following = [Text.assemble(("Next: ", "bold"), packaged.next, no_wrap=True, overflow="ignore")]
    return [
        Text.assemble(("package ", "bold"), (packaged.package, "bold cyan"), f" for {packaged.serves}, {total}"),
        *(Text(f"  {file.path}, {numbers.size(file.bytes)}") for file in packaged.files),
        *(Text(f"  {note}", style="yellow") for note in packaged.notes),
        *(following if packaged.next else []),
    ]


@of_escaped
def show_diagnosis(diagnosis: Diagnosis) -> list[RenderableType]:
    """Show the targets, then this machine."""
    export = {"export (models to ONNX)": diagnosis.export}
    host = diagnosis.host
    gpu = host.gpu or "none seen"
    table = Table.grid(padding=(0, 2))
    for label, value in (
        ("CPU", f"{host.cpu}, {host.cores} cores, {host.memory_gib} GiB"),
        ("ISA", " ".join(host.isa) or "unknown"),
        ("GPU", gpu if host.jetpack is None else f"{gpu}, L4T {host.jetpack}"),
        ("Python", f"{host.python} on {host.system}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in diagnosis.libraries.items())),
    ):
        table.add_row(f"  {label}", value)
    install: list[RenderableType] = []
    if diagnosis.install:  # each command on one line, however narrow the terminal is, so that it can be copied
        lines = [f"  {extra:<13} {command}" for extra, command in diagnosis.install.items()]
        install = [Text("\n".join(["  Not installed, and how to install it:", *lines, ""]), no_wrap=True)]
    faults = [
        Text(f"  reported of {name}: {fault}")
        for name, reported in diagnosis.known_faults.items()
        for fault in reported
    ]
    recording = _describe_recording(diagnosis.recording) if diagnosis.recording is not None else []
    rows = {}
    for name, availability in diagnosis.targets.items():
        rows[name] = availability
        rows |= {f"{name} --device {device}": each for device, each in diagnosis.devices.get(name, {}).items()}
    return [tables.doctor({**rows, **export}), *install, table, *faults, *recording]


def _describe_recording(recorded: Recorded) -> list[RenderableType]:
    """Return the outcome of each model, the files, and what to do with them."""
    counts = Counter(attempt.status for attempt in recorded.attempts)
    outcome = ", ".join(f"{number} {status}" for status, number in counts.items()) or "no models built"
    state = "" if recorded.complete else f"; not complete: {recorded.why}"
    return [
        Text(""),
        Text.assemble(("recording ", "bold"), (recorded.folder, "bold cyan"), f": {outcome}{state}"),
        *(Text(f"  {name}") for name in recorded.files),
        *(Text(f"  note: {note}") for note in recorded.notes),
        Text("Nothing was sent. Read the files, then attach this one to an issue (docs/compatibility.md):"),
        Text(f"  {recorded.archive}", no_wrap=True),
    ]


@of_escaped
def show_hosts(listing: Listing) -> list[RenderableType]:
    """Show one line for each host, and its device below it."""
    if not listing.hosts:
        return [f"no host is named in {listing.file}. Write one on each line: NAME: ssh://USER@HOST"]
    lines: list[RenderableType] = []
    for host in listing.hosts:
        colour = {"ready": "green", "busy": "yellow"}.get(host.state, "red")
        url = f"  {host.url}" if host.url != host.name else ""
        lines.append(Text.assemble((host.name, "bold cyan"), f"{url}  ", (host.state, colour)))
        problem = ". ".join(filter(None, (host.why.rstrip("."), host.fix)))
        freed = "" if host.freed_bytes is None else f"freed {numbers.size(host.freed_bytes)}"
        details = [problem, *(_describe_device(host.device) if host.device else ()), freed]
        lines += [Padding(Text(detail), (0, 0, 0, 2)) for detail in details if detail]
    return lines


def _describe_device(probe: Probe) -> list[str]:
    """Return three lines: the hardware and its software, the targets, and the current condition."""
    state, host = probe.condition, probe.doctor.host
    l4t = f"L4T {state.l4t}" + (f" (JetPack {state.jetpack})" if state.jetpack else "") if state.l4t else ""
    tensorrt = f"TensorRT {state.tensorrt}" if state.tensorrt else ""
    available = [name for name, target in probe.doctor.targets.items() if target.available]
    for name, devices in probe.doctor.devices.items():
        available += [f"{name} --device {device}" for device, each in devices.items() if each.available]
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
        f"vitdeploy {probe.version} for {', '.join(available) or 'no target'}",
        ", ".join(form.format(value) for value, form in figures if value is not None),
    ]


@of_escaped
def show_recipes(purposes: Mapping[str, str]) -> list[RenderableType]:
    """Show the names of the recipes that come with vitdeploy, and the purpose of each."""
    table = Table.grid(padding=(0, 2))
    for name, purpose in purposes.items():
        table.add_row(Text(name, style="bold cyan"), purpose)
    return [table, Text("\nvitdeploy recipes NAME prints one; vitdeploy run NAME runs it.", style="dim")]


@of_escaped
def show_outcome(outcome: Outcome) -> list[RenderableType]:
    """Show the results of all steps of `run`, and the table that sums them up."""
    evaluation = [] if outcome.eval is None else [tables.evaluation(outcome.eval)]
    bench = [] if outcome.bench is None else [bench_tables.latencies(outcome.bench)]
    random_weights = outcome.export.weights == "random"
    summary = summarize(outcome.audit, outcome.bench, outcome.eval, outcome.gate, random_weights=random_weights)
    page = [] if outcome.report is None else [Text.assemble(("report ", "bold"), (outcome.report, "bold cyan"))]
    return [
        *show_export(outcome.export, benched=outcome.bench is not None),
        "",
        tables.audit(outcome.audit),
        *evaluation,
        *bench,
        tables.gate(outcome.gate),
        tables.summary(summary),
        *page,
    ]


def _describe_parity(export: Exported) -> list[str]:
    """Return the comparison of what was compiled with FP32: the worst of its outputs, and the images."""
    parity = export.parity
    if not parity.batches:
        return ["not run here, so its numbers are not compared with FP32"]
    figures = (
        f"cosine {parity.cosine:.6f}, largest difference {parity.max_abs:.2g} where values reach "
        f"{parity.reference_max:.3g}"
    )
    sizes = ", ".join(map(str, sorted(set(parity.batches))))
    images = f"{sum(parity.batches)} made-up images in batches of {sizes}"
    if parity.image_sizes:
        images += f", of {', '.join(dict.fromkeys(parity.image_sizes))}"
    outputs = f"the worst of {len(parity.outputs)} outputs " if len(parity.outputs) > 1 else ""
    reference = "the quantized file" if export.model_precision == "quantized" else "FP32"
    if export.tokens is not None:
        reference += " with dropped tokens" if export.tokens.dropped else " with merged tokens"
    lines = [f"what was compiled against {reference}: {figures}", f"{outputs}on {images}"]
    if moved := max((output.moved_rows for output in parity.outputs), default=0):
        lines.append(f"rows that the model selects by score are compared as a set: {moved} changed their places")
    if export.precision != "fp32" and export.graph_parity is not None:
        graph = f"cosine {export.graph_parity.cosine:.6f} in ONNX Runtime"
        lines.append(f"the {export.precision} graph itself: {graph}; eval measures on your images")
        lines += _explain_worst(parity, export.precision)
    return lines


def _explain_worst(parity: Parity, name: str) -> list[str]:
    """Return the made-up images whose cosine is low, and why, if the ranges of the precision are calibrated."""
    cosines = {case[0].where: min(output.cosine for output in case) for case in parity.cases if case}
    calibrated = name in precision.names() and precision.kind_of(name).needs_images
    if len(cosines) < 2 or parity.cosine >= _CLOSE or not calibrated:
        return []
    worst, *others = sorted(cosines, key=cosines.__getitem__)
    return [
        f"the lowest cosine is that of {worst}; on the other made-up images it is at least {cosines[others[0]]:.4f}",
        "ranges are those of the calibration images; made-up images that look different leave them",
    ]
