"""The configuration with which Triton's backends open each engine.

| target      | backend       | file       | batches            | settings                              |
| onnxruntime | onnxruntime   | model.onnx | joined by Triton   | threads; on CUDA tf32 and sdpa_kernel |
| openvino    | openvino      | model.xml  | by the client only | hint, streams, threads, BF16          |
| tensorrt    | tensorrt_plan | model.plan | joined by Triton   | none: all are inside the plan         |

The OpenVINO backend fixes a model that batches to its largest batch, and pads or refuses smaller ones. So nothing is
joined there: a client may send a batch.

Sources: the READMEs of onnxruntime_backend and openvino_backend, `ModelState::ValidateInputs` of the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.commands.package._model_info import describe_model
from vitdeploy.commands.package._openvino_ir import list_properties, read_names, write_ir
from vitdeploy.commands.package._repository import copy_engine, count_threads, require_engine
from vitdeploy.commands.package._triton.config import CPU, GPU, Batching, choose_batching
from vitdeploy.commands.package._triton.pbtxt import Symbol, Value
from vitdeploy.errors import UsageError

_PYTHON = "python"
_NO_FLOAT32 = (
    "Triton's OpenVINO backend cannot be told to compute in float32: on CPUs with bfloat16 it computes in that, and "
    "what was measured is float32. --backend python, or --for ovms, computes as measured"
)
_CLIENTS_BATCH = "Triton's OpenVINO backend does not join requests: send batches of {batch}"


@dataclass(frozen=True)
class Served:
    """An engine as Triton serves it.

    Attributes:
        head: the fields that name the backend.
        batching: the batches that Triton makes.
        inputs, outputs: the names of the tensors.
        kind: where an instance runs.
        parameters: of the backend.
        tail: further fields.
        settings: what the program for the Python backend reads; None: Triton's own backend opens the engine.
        notes: for the user.
    """

    head: Mapping[str, Value]
    batching: Batching
    inputs: list[str]
    outputs: list[str]
    kind: Symbol = CPU
    parameters: Mapping[str, str] = field(default_factory=dict)
    tail: Mapping[str, Value] = field(default_factory=dict)
    settings: Mapping[str, object] | None = None
    notes: tuple[str, ...] = ()


def write_engine(artifact: Artifact, backend: str, folder: Path) -> Served:
    """Write the engine into the folder of a version, and return how it is served.

    Raises:
        UsageError: Triton has no backend for it, or it is a bundle.
    """
    manifest = artifact.manifest
    kind, device = manifest.target.kind, manifest.target.device
    if kind not in _WRITERS or device == "trt-rtx":
        fits = "Export with --target onnxruntime, openvino or tensorrt."
        raise UsageError(f"Triton has no backend for {kind if kind not in _WRITERS else device}", fix=fits)
    runs = require_engine(artifact, "Triton")
    if backend == _PYTHON and kind == "tensorrt":
        raise UsageError(
            "Triton's own backend runs engines of TensorRT, and every Triton for GPUs has it",
            fix="Leave out --backend.",
        )
    folder.mkdir(parents=True)
    return _WRITERS[kind](artifact, runs, folder, backend)


def _write_onnx(artifact: Artifact, runs: str, folder: Path, backend: str) -> Served:
    manifest = artifact.manifest
    copy_engine(artifact, runs, folder, "model.onnx")
    inputs, outputs = ([spec.name for spec in specs] for specs in (manifest.inputs, manifest.outputs))
    on_gpu = manifest.target.device == "cuda"
    threads, options = count_threads(artifact), manifest.recipe.target.options
    cuda = {"use_tf32": str(int(options.get("tf32", True))), "sdpa_kernel": str(options.get("sdpa_kernel", 0))}
    if backend == _PYTHON:
        settings: dict[str, object] = {"engine": "onnxruntime", "file": "model.onnx", "threads": threads}
        settings["cuda"] = cuda if on_gpu else None
        return _serve_in_python(artifact, inputs, outputs, settings, GPU if on_gpu else CPU)
    accelerator: Value = {
        "name": "cuda",
        "parameters": [{"key": key, "value": value} for key, value in cuda.items()],
    }
    return Served(
        head={"backend": "onnxruntime", "default_model_filename": "model.onnx"},
        batching=choose_batching(manifest),
        inputs=inputs,
        outputs=outputs,
        kind=GPU if on_gpu else CPU,
        parameters={"intra_op_thread_count": str(threads)} if threads else {},
        tail={"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}}
        if on_gpu
        else {},
    )


def _write_openvino(artifact: Artifact, runs: str, folder: Path, backend: str) -> Served:
    manifest = artifact.manifest
    inputs, outputs = read_names(artifact, runs)
    write_ir(artifact, runs, folder, describe_model(manifest)[0])
    device, properties = manifest.target.device, list_properties(artifact)
    if backend == _PYTHON:
        settings: dict[str, object] = {"engine": "openvino", "file": "model.xml", "threads": count_threads(artifact)}
        return _serve_in_python(
            artifact, inputs, outputs, {**settings, "device": device, "properties": properties}, CPU
        )
    known = ("PERFORMANCE_HINT", "NUM_STREAMS", *(["INFERENCE_NUM_THREADS"] if device.startswith("CPU") else []))
    parameters = {key: properties[key] for key in known if key in properties} | {"TARGET_DEVICE": device}
    in_bfloat16 = properties.get("INFERENCE_PRECISION_HINT") == "bf16"
    batch = manifest.recipe.target.batch
    return Served(
        head={"backend": "openvino", "default_model_filename": "model.xml"},
        batching=Batching(),
        inputs=inputs,
        outputs=outputs,
        parameters=parameters | ({"HINT_BF16": "YES"} if in_bfloat16 else {}),
        notes=(
            *([_NO_FLOAT32] if device.startswith("CPU") and not in_bfloat16 else []),
            *([] if batch.static else [_CLIENTS_BATCH.format(batch=f"{batch.min} to {batch.max}")]),
        ),
    )


def _write_tensorrt(artifact: Artifact, runs: str, folder: Path, backend: str) -> Served:  # noqa: ARG001  one only
    manifest = artifact.manifest
    copy_engine(artifact, runs, folder, "model.plan")
    engine = manifest.target.backend or "TensorRT"
    return Served(
        head={"platform": "tensorrt_plan", "default_model_filename": "model.plan"},
        batching=choose_batching(manifest),
        inputs=[spec.name for spec in manifest.inputs],
        outputs=[spec.name for spec in manifest.outputs],
        kind=GPU,
        notes=(f"the plan is for {engine} on this GPU: take the Triton that has this version",),
    )


def _serve_in_python(
    artifact: Artifact, inputs: list[str], outputs: list[str], settings: dict[str, object], kind: Symbol
) -> Served:
    """Return how Triton's Python backend serves an engine, with `settings` for the program that opens it."""
    batching = choose_batching(artifact.manifest)
    names: dict[str, object] = {"inputs": inputs, "outputs": outputs, "joins": batching.joins}
    return Served({"backend": "python"}, batching, inputs, outputs, kind, settings=settings | names)


_WRITERS = {"onnxruntime": _write_onnx, "openvino": _write_openvino, "tensorrt": _write_tensorrt}
