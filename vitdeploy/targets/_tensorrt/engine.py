"""Compile and audit for both TensorRT targets, with the layer plan stored beside the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from vitdeploy.evidence import Audit, EvidenceLevel
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._audit import make_audit
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.attention import FLOAT32_RULE, broken_rule
from vitdeploy.targets._tensorrt.build import BuildOptions, BuiltEngine, ShapeProfile, build_engine
from vitdeploy.targets._tensorrt.gpu import Gpu
from vitdeploy.targets._tensorrt.kernels import count_kernels
from vitdeploy.targets._tensorrt.layers import INSPECTED, LAYERS, read_layers
from vitdeploy.targets._tensorrt.log import PHASE
from vitdeploy.targets._tensorrt.plan import find_float32, match_attention, match_gelus, match_linears, match_norms
from vitdeploy.targets._tensorrt.record import EngineRecord, load_record
from vitdeploy.targets._tensorrt.session import inspect_engine
from vitdeploy.targets._tensorrt.timing_cache import locate_cache, save_timings

_ENGINE = "engine.plan"
_UNKNOWN_TYPE = "N/A due to dynamic shapes"
"""TensorRT 10.x writes this for the types of tensors whose shapes vary. The inspector tells the types for given
shapes."""


def compile_engine(
    trt: ModuleType,
    bundle: Bundle,
    workdir: Path,
    options: BuildOptions,
    *,
    gpu: Gpu | None,
    keep_timings: bool = True,
    report: Callable[[str], None] | None = None,
    on_message: Callable[[str, str], None] | None = None,
) -> Compiled:
    """Build the engine of `bundle` into `workdir`, with its layer plan and its record.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        bundle: the graph and the structure of the model.
        workdir: an existing folder.
        options: of the build; precision and profile are replaced by the bundle's.
        gpu: of this machine, if the engine is built for it.
        keep_timings: whether to store kernel timings for the next build.
        report: called with each phase of the build when it begins. On a board they take minutes.
        on_message: called with every message of TensorRT, see `build_engine`.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine.
    """
    api = Api(trt)
    cache = locate_cache(api, gpu) if keep_timings else None
    options = replace(options, precision=bundle.numbers.products, profile=_make_profile(bundle), timing_cache=cache)

    def report_phase(line: str) -> None:
        if report is not None and line.startswith(PHASE):
            report(f"{api.product}: {line.removeprefix(PHASE)}")

    engine = build_engine(trt, bundle.graph, options, on_line=report_phase, on_message=on_message)
    notes = [*engine.notes]
    if cache is not None and engine.timings and (problem := save_timings(cache, engine.timings)):
        notes.append(problem)
    (workdir / _ENGINE).write_bytes(engine.plan)
    (workdir / LAYERS).write_text(engine.layer_plan, encoding="utf-8", newline="")
    if gpu is not None and (not engine.layer_plan or _UNKNOWN_TYPE in engine.layer_plan):
        shapes = {name: optimal for name, (_, optimal, _) in options.profile.items()}
        if layers := inspect_engine(trt, engine.plan, shapes):
            (workdir / INSPECTED).write_text(layers, encoding="utf-8")
    _make_record(api, engine, options, gpu, tuple(notes)).save(workdir)
    outputs = (*bundle.output_names, *engine.marked)
    return Compiled(workdir, _ENGINE, api.backend, input_names=bundle.input_names, output_names=outputs)


def audit_engine(name: str, bundle: Bundle, compiled: Compiled, *, evidence: EvidenceLevel = "compiled") -> Audit:
    """Match the stored layer plan to the model's attention sites, linears and norms."""
    layers = read_layers(compiled.folder)
    structure = bundle.structure
    cores = {
        site.name: [n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))] or list(site.nodes)
        for site in structure.attention
    }
    attention = match_attention(layers, cores)
    float32 = find_float32(layers, cores)
    rules = {
        site.name: site.refused or (FLOAT32_RULE if site.name in float32 else broken_rule(site, bundle.batch))
        for site in structure.attention
    }
    reasons = {site: f"{rules[site]}; {how}" if rules[site] else how for site, how in attention.unfused.items()}
    norms = match_norms(layers, {norm.name: norm.nodes for norm in structure.norms})
    types = match_linears(layers, {product.name: product.nodes for product in structure.weighted})
    record = load_record(compiled.folder)
    doubts = [*record.notes]
    if not layers:
        doubts.append("this TensorRT printed no layer plan: nothing is known about fusion")
    if len(record.compute_capabilities) > 1:
        doubts.append(f"one layer plan was printed for all of {', '.join(record.compute_capabilities)}")
    return make_audit(
        name, bundle, compiled, fused=attention.kernels, reasons=reasons,
        layers={linear: number_type for linear, number_type in types.items() if number_type is not None},
        norms=len(norms.kernels), norm_reasons=norms.unfused, gelus=match_gelus(layers, structure.gelus or ()),
        doubts=doubts, evidence=evidence, engine=count_kernels(layers),
    )  # fmt: skip


def _make_record(
    api: Api, engine: BuiltEngine, options: BuildOptions, gpu: Gpu | None, notes: tuple[str, ...]
) -> EngineRecord:
    return EngineRecord(
        backend=api.backend,
        typing=engine.typing,
        gpu=gpu,
        compute_capabilities=options.compute_capabilities,
        hardware_level=options.hardware_level,
        version_compatible=options.version_compatible,
        dynamic=bool(options.profile),
        build_seconds=round(engine.seconds, 1),
        notes=notes,
    )


def _make_profile(bundle: Bundle) -> ShapeProfile:
    if bundle.static:
        return {}
    batch = bundle.batch
    further = {
        name: ((batch.min, *shape[1:]), shape, (batch.max, *shape[1:])) for name, shape in bundle.further.items()
    }
    return {bundle.input_name: bundle.shapes, **further}
