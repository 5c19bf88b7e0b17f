"""Compile and audit as both TensorRT targets do it: one engine, and its layer plan kept as data beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from vitdeploy.artifact import Artifact
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit, NormAudit
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._match import attention_audit, linear_audit
from vitdeploy.targets._tensorrt import Profile, build_engine
from vitdeploy.targets._tensorrt_plan import PlanLayer, PlanTensor, attention_fusion, linear_precisions, norm_fusion

ENGINE = "engine.plan"
LAYERS = "layers.json"
"""The layer plan: an engine opens only on its own device, this file says everywhere what is in it."""


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
    plan = json.dumps([asdict(layer) for layer in built.layers], indent=1)
    (workdir / LAYERS).write_text(plan + "\n", encoding="utf-8")
    return Compiled(workdir, ENGINE, f"{trt.__name__.replace('_', '-')} {built.version}")


def audit_engine(name: str, bundle: Bundle, compiled: Compiled) -> Audit:
    """Read the stored layer plan against the model's sites, linears and norms."""
    layers = _load_layers(compiled.folder / LAYERS)
    structure = bundle.structure
    cores = {
        site.name: [n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))] or list(site.nodes)
        for site in structure.attention
    }
    fusion = attention_fusion(layers, cores)
    norms = norm_fusion(layers, {norm.name: norm.nodes for norm in structure.norms})
    told = linear_precisions(layers, {linear.name: linear.nodes for linear in structure.linears})
    precisions = {linear: precision for linear, precision in told.items() if precision is not None}
    return Audit(
        target=name,
        precision=bundle.precision,
        attention=attention_audit(structure, fusion.kernels, fusion.unfused, "compiled"),
        layernorm=NormAudit(sites=len(structure.norms), fused=len(norms.kernels)),
        linears=linear_audit(structure, precisions),
        layers=precisions,
        backend=compiled.backend,
        doubts=() if layers else ("this TensorRT printed no layer plan: nothing is known about fusion",),
    )


def refuse_to_run(artifact: Artifact) -> NoReturn:
    """Engines are compiled and audited here; running them is the device's own tools' work for now."""
    raise TargetUnavailable(
        f"{artifact.path} holds a {artifact.manifest.target.kind} engine, which this version does not run itself",
        fix=f"On the GPU run: trtexec --loadEngine={artifact.path / ENGINE}",
    )


def _profile(bundle: Bundle) -> Profile | None:
    if bundle.batch.static:
        return None
    image = bundle.input_shape[1:]
    return {bundle.input_name: ((bundle.batch.min, *image), (bundle.batch.opt, *image), (bundle.batch.max, *image))}


def _load_layers(path: Path) -> Sequence[PlanLayer]:
    def tensors(raw: list[dict[str, object]]) -> tuple[PlanTensor, ...]:
        return tuple(PlanTensor(str(t["name"]), str(t["dtype"]), tuple(t["shape"])) for t in raw)  # type: ignore[arg-type]

    return [
        PlanLayer(
            name=raw["name"],
            kind=raw["kind"],
            onnx_nodes=tuple(raw["onnx_nodes"]),
            inputs=tensors(raw["inputs"]),
            constants=tensors(raw["constants"]),
            outputs=tensors(raw["outputs"]),
            tactic=raw["tactic"],
        )
        for raw in json.loads(path.read_text(encoding="utf-8"))
    ]
