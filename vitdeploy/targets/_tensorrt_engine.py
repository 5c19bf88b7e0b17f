"""Compile and audit as both TensorRT targets do it: one engine, and its layer plan kept as data beside it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NoReturn

from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit, Availability
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._match import audited
from vitdeploy.targets._tensorrt import Profile, build_engine
from vitdeploy.targets._tensorrt_attention import limit
from vitdeploy.targets._tensorrt_plan import attention_fusion, linear_precisions, norm_fusion, parse_plan

ENGINE = "engine.plan"
LAYERS = "layers.txt"
"""TensorRT's own words on the engine's layers: the engine opens only on its device, this can be read everywhere."""


def compile_engine(
    trt: ModuleType,
    bundle: Bundle,
    workdir: Path,
    *,
    compute_capability: str | None,
    workspace_bytes: int | None,
    optimization_level: int | None,
) -> Compiled:
    """Build the engine of `bundle` into `workdir`, with its layer plan.

    Raises:
        CompileError: TensorRT refused the graph, the options or the machine.
    """
    built = build_engine(
        trt,
        bundle.graph,
        compute_capability=compute_capability,
        workspace_bytes=workspace_bytes,
        optimization_level=optimization_level,
        profile=_profile(bundle),
    )
    (workdir / ENGINE).write_bytes(built.plan)
    (workdir / LAYERS).write_text(built.layer_plan, encoding="utf-8", newline="")
    return Compiled(workdir, ENGINE, f"{trt.__name__.replace('_', '-')} {built.version}")


def audit_engine(name: str, bundle: Bundle, compiled: Compiled) -> Audit:
    """Read the stored layer plan against the model's sites, linears and norms."""
    # Not splitlines(): TensorRT puts a record separator between names, and that would be cut at, too.
    layers = parse_plan((compiled.folder / LAYERS).read_text(encoding="utf-8").split("\n"))
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
    doubts = [] if layers else ["this TensorRT printed no layer plan: nothing is known about fusion"]
    return audited(
        name, bundle, compiled, fused=fusion.kernels, reasons=reasons, layers=precisions,
        norms=len(norms.kernels), doubts=doubts,
    )  # fmt: skip


NOT_RUN = Availability(
    available=False,
    why="this version does not run TensorRT engines itself",
    fix="On the GPU, load the engine with trtexec --loadEngine, or with the TensorRT-RTX runtime.",
)


def refuse_to_run(target: str, compiled: Compiled) -> NoReturn:
    """Engines are compiled and audited here; running them is the device's own tools' work for now."""
    runner = "trtexec --loadEngine" if target == "tensorrt" else "the TensorRT-RTX runtime"
    raise TargetUnavailable(
        f"{compiled.folder} holds a {target} engine, which this version does not run itself",
        fix=f"On the GPU, load {compiled.folder / compiled.runs} with {runner}.",
    )


def _profile(bundle: Bundle) -> Profile | None:
    if bundle.batch.static:
        return None
    image = bundle.input_shape[1:]
    return {bundle.input_name: ((bundle.batch.min, *image), (bundle.batch.opt, *image), (bundle.batch.max, *image))}
