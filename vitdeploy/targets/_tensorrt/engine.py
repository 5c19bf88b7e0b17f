"""Compile and audit as both TensorRT targets do it: one engine, and its layer plan kept as data beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from vitdeploy.evidence import Audit, EvidenceLevel
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._audit import audited
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.attention import limit
from vitdeploy.targets._tensorrt.build import BuildOptions, BuiltEngine, Profile, build_engine
from vitdeploy.targets._tensorrt.gpu import Gpu
from vitdeploy.targets._tensorrt.kernels import count_kernels
from vitdeploy.targets._tensorrt.layers import INSPECTED, LAYERS, stored_layers
from vitdeploy.targets._tensorrt.log import PHASE
from vitdeploy.targets._tensorrt.plan import attention_fusion, linear_precisions, norm_fusion
from vitdeploy.targets._tensorrt.record import EngineRecord, load_record
from vitdeploy.targets._tensorrt.session import engine_information
from vitdeploy.targets._tensorrt.timing_cache import cache_file, store

ENGINE = "engine.plan"
UNTOLD = "N/A due to dynamic shapes"
"""What 10.x writes for the types of tensors whose shapes vary; for given shapes the inspector tells them."""

FROM_REHEARSAL = "it finds parse errors and lost fusions, it does not prove what TensorRT does on the device"


def compile_engine(
    trt: ModuleType,
    bundle: Bundle,
    workdir: Path,
    options: BuildOptions,
    *,
    gpu: Gpu | None,
    keep_timings: bool = True,
    report: Callable[[str], None] | None = None,
) -> Compiled:
    """Build the engine of `bundle` into `workdir`, with its layer plan and what it belongs to.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        bundle: What to build.
        workdir: Where to.
        options: How to build; precision and profile are the bundle's.
        gpu: Of this machine, when the engine is built for it.
        keep_timings: Whether kernel timings are kept for the next build.
        report: Told the phases of the build as they begin: on a board they take minutes.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine.
    """
    api = Api(trt)
    timings = cache_file(api, gpu) if keep_timings else None
    options = replace(options, precision=bundle.numbers.products, profile=_profile(bundle), timing_cache=timings)

    def pass_on(line: str) -> None:
        if report is not None and line.startswith(PHASE):
            report(f"{api.product}: {line.removeprefix(PHASE)}")

    built = build_engine(trt, bundle.graph, options, on_line=pass_on)
    notes = [*built.notes]
    if timings is not None and built.timings and (problem := store(timings, built.timings)):
        notes.append(problem)
    (workdir / ENGINE).write_bytes(built.plan)
    (workdir / LAYERS).write_text(built.layer_plan, encoding="utf-8", newline="")
    if gpu is not None and (not built.layer_plan or UNTOLD in built.layer_plan):
        shapes = {name: optimal for name, (_, optimal, _) in options.profile.items()}
        if told := engine_information(trt, built.plan, shapes):
            (workdir / INSPECTED).write_text(told, encoding="utf-8")
    _record(api, built, options, gpu, tuple(notes)).save(workdir)
    return Compiled(workdir, ENGINE, api.backend)


def audit_engine(name: str, bundle: Bundle, compiled: Compiled, *, evidence: EvidenceLevel = "compiled") -> Audit:
    """Read the stored layer plan against the model's sites, linears and norms."""
    layers = stored_layers(compiled.folder)
    structure = bundle.structure
    cores = {
        site.name: [n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))] or list(site.nodes)
        for site in structure.attention
    }
    fusion = attention_fusion(layers, cores)
    causes = {site.name: site.refused or limit(site, bundle.batch) for site in structure.attention}
    reasons = {site: f"{causes[site]}; {how}" if causes[site] else how for site, how in fusion.unfused.items()}
    norms = norm_fusion(layers, {norm.name: norm.nodes for norm in structure.norms})
    told = linear_precisions(layers, {linear.name: linear.nodes for linear in structure.linears})
    precisions = {linear: precision for linear, precision in told.items() if precision is not None}
    record = load_record(compiled.folder)
    doubts = [*record.notes]
    if not layers:
        doubts.append("this TensorRT printed no layer plan: nothing is known about fusion")
    if len(record.compute_capabilities) > 1:
        doubts.append(f"one layer plan was printed for all of {', '.join(record.compute_capabilities)}")
    return audited(
        name, bundle, compiled, fused=fusion.kernels, reasons=reasons, layers=precisions,
        norms=len(norms.kernels), doubts=doubts, evidence=evidence, engine=count_kernels(layers),
    )  # fmt: skip


def _record(
    api: Api, built: BuiltEngine, options: BuildOptions, gpu: Gpu | None, notes: tuple[str, ...]
) -> EngineRecord:
    return EngineRecord(
        backend=api.backend,
        typing=built.typing,
        gpu=gpu,
        compute_capabilities=options.compute_capabilities,
        hardware_level=options.hardware_level,
        version_compatible=options.version_compatible,
        dynamic=bool(options.profile),
        build_seconds=round(built.seconds, 1),
        notes=notes,
    )


def _profile(bundle: Bundle) -> Profile:
    if bundle.batch.static:
        return {}
    image = bundle.input_shape[1:]
    return {bundle.input_name: ((bundle.batch.min, *image), (bundle.batch.opt, *image), (bundle.batch.max, *image))}
