"""Audits of ONNX Runtime: run the graph once, and read which kernel of which provider computed what."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitdeploy import frozen
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.evidence import Audit
from vitdeploy.graph.onnx_provider import CPU, Provider
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.quantized_share import type_by_plan
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._audit import make_audit
from vitdeploy.targets._onnxruntime.attention_kernels import parse_choices, printed_choices
from vitdeploy.targets._onnxruntime.kernels import (
    NORMS,
    ExecutedKernel,
    count_providers,
    doubt_cpu,
    explain_norms,
    find_on_cpu,
    match_attention,
    match_gelus,
    match_linears,
    read_kernels,
    read_stored_types,
)
from vitdeploy.targets._onnxruntime.layers import read_layers
from vitdeploy.targets._tensorrt.plan import match_attention as match_layers
from vitdeploy.targets._tensorrt.plan import match_gelus as match_plan_gelus
from vitdeploy.targets._tensorrt.plan import match_norms


def audit_on_cpu(name: str, bundle: Bundle, compiled: Compiled, threads: int) -> Audit:
    """Audit a run on the CPU."""
    path = compiled.folder / compiled.runs
    with scratch_folder("profile") as folder:
        kernels = _run(path, bundle, folder, CPU, threads)
    fused, reasons = match_attention(bundle.structure, kernels)
    products = match_linears(bundle.structure, kernels)
    return make_audit(
        name, bundle, compiled, fused=fused, reasons=reasons,
        layers={product: kernel.product_type for product, kernel in products.items()},
        norms=sum(kernel.op in NORMS for kernel in kernels), stored=read_stored_types(path, products, bundle.numbers),
        norm_reasons=explain_norms(bundle.structure, kernels), gelus=match_gelus(bundle.structure, kernels),
        threads=threads,
    )  # fmt: skip


def audit_on_cuda(name: str, bundle: Bundle, compiled: Compiled, provider: Provider) -> Audit:
    """Audit a run on CUDA: the provider of each node, and the kernel that it chose for each attention."""
    structure = bundle.structure
    with scratch_folder("profile") as folder:
        with printed_choices(folder) as output:
            kernels = _run(compiled.folder / compiled.runs, bundle, folder, provider)
        choices = parse_choices(output.text())
    fused, reasons = match_attention(structure, kernels, choices)
    products = match_linears(structure, kernels)
    audit = make_audit(
        name, bundle, compiled, fused=fused, reasons=reasons,
        layers={product: kernel.product_type for product, kernel in products.items()},
        norms=sum(kernel.op in NORMS for kernel in kernels), norm_reasons=explain_norms(structure, kernels),
        gelus=match_gelus(structure, kernels), doubts=tuple(doubt_cpu(kernels)),
    )  # fmt: skip
    return frozen.replace(audit, providers=count_providers(kernels), elsewhere=find_on_cpu(structure, kernels))


def audit_on_trt_rtx(name: str, bundle: Bundle, compiled: Compiled, provider: Provider) -> Audit:
    """Audit a run on TensorRT-RTX's plug-in: the provider of each node, and the layers of its engine."""
    structure = bundle.structure
    with scratch_folder("profile") as folder:
        trace = folder / "layers.json"
        traced = provider.with_options(nv_enable_profiling="1", nv_profiling_output_file=str(trace))
        kernels = _run(compiled.folder / compiled.runs, bundle, folder, traced)
        layers = read_layers(trace)
    cores = {
        site.name: [n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))] or list(site.nodes)
        for site in structure.attention
    }
    attention = match_layers(layers, cores)
    norms = match_norms(layers, {norm.name: norm.nodes for norm in structure.norms})
    doubts = [*doubt_cpu(kernels)]
    if not layers:
        doubts.append("the plug-in wrote no trace of its layers: nothing is known about fusion")
    audit = make_audit(
        name, bundle, compiled, fused=attention.kernels, reasons=attention.unfused, layers={},
        planned=type_by_plan(structure, bundle.numbers, bundle.excluded),
        norms=len(norms.kernels), norm_reasons=norms.unfused,
        gelus=match_plan_gelus(layers, structure.gelus or ()), doubts=doubts,
    )  # fmt: skip
    return frozen.replace(audit, providers=count_providers(kernels), elsewhere=find_on_cpu(structure, kernels))


def _run(
    path: Path,
    bundle: Bundle,
    folder: Path,
    provider: Provider,
    threads: int | None = None,
) -> list[ExecutedKernel]:
    """Return the kernels of one inference, from ONNX Runtime's own profile.

    Args:
        path: the graph.
        bundle: its inputs.
        folder: for the profile.
        provider: runs it.
        threads: of the CPU.
    """
    with OnnxSession(path, threads=threads, profile=folder / "run", provider=provider) as session:
        image = np.zeros(bundle.input_shape, np.uint8 if session.takes_bytes else np.float32)
        session.run(bundle.feed(image))
        return read_kernels(session.read_profile())
