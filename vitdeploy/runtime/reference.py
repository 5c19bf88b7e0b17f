"""The FP32 reference for speed and accuracy, rebuilt from the manifest."""

from __future__ import annotations

from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import EXAMPLE
from vitdeploy.errors import MeasureError, SourceError
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.recipe import ModelSpec
from vitdeploy.runtime.artifact_session import EXAMPLES_OF
from vitdeploy.runtime.trial import try_model
from vitdeploy.session import Session


def open_reference(
    model: sources.LoadedModel, *, threads: int | None, device: str = "cpu", timed: bool = True
) -> Session:
    """Open a model as a session: with PyTorch on `device`, or an ONNX file with ONNX Runtime.

    Args:
        model: the model.
        threads: the number of threads; None for all cores.
        device: "cpu" or "cuda", for PyTorch.
        timed: False if only the numbers matter. A quantized ONNX file then runs operator by operator, as ONNX defines
            it: fused kernels of ONNX Runtime round otherwise, by up to 1.5 % of the largest output (a small ViT).
    """
    if model.module is not None:
        from vitdeploy.runtime.torch_session import TorchSession

        return TorchSession(model.module, threads=threads, device=device, outputs=model.outputs)
    assert model.onnx is not None
    quantized = model.precision == "quantized"
    name = "onnxruntime-quantized" if quantized else "onnxruntime-fp32"
    return OnnxSession(model.onnx, threads=threads, name=name, lean=quantized and not timed)


def rebuild_reference(artifact: Artifact, threads: int | None) -> Session:
    """Load the model of an artifact and open it, if possible on the kind of device that the artifact runs on.

    Raises:
        SourceError, MeasureError: see `rebuild_model`.
    """
    model = rebuild_model(artifact)
    runs_on = targets.find(artifact.manifest.recipe.target).runs_on
    return open_reference(model, threads=threads, device=choose_device(model, runs_on, same=False))


def rebuild_model(artifact: Artifact) -> sources.LoadedModel:
    """Load the model of an artifact, and check that it is the one that was exported.

    Code that only the manifest names does not run: see `Artifact.model`.

    Raises:
        SourceError: the model cannot be loaded here: a file has moved, a library is not installed, or it would run
            code that the user has not given.
        MeasureError: its weights or its code have changed since the export.
    """
    manifest = artifact.manifest
    spec, size = with_stored_examples(artifact), manifest.recipe.image_size
    try_model(spec, size, manifest.recipe.target.batch.opt)
    try:
        model = (sources.load if artifact.model else sources.load_received)(spec, size=size)
    except ImportError as error:
        raise missing_library(error) from None
    if model.digest != manifest.model.digest:
        raise MeasureError(
            f"{spec.spec} is not the model that was exported: its weights differ",
            fix="Export it again, or restore the weights.",
        )
    if sources.runs_code(spec.spec) and manifest.model.code not in ("", model.code_digest):
        raise MeasureError(
            f"{spec.spec} is not the model that was exported: its code differs",
            fix="Export it again, or restore the code.",
        )
    return model


def with_stored_examples(artifact: Artifact) -> ModelSpec:
    """Return the model of an artifact, with the examples that are stored in it in place of the user's files."""
    spec = artifact.model or artifact.manifest.recipe.model
    if not spec.open_inputs:
        return spec
    stored = str(artifact.file(EXAMPLE))
    inputs = {
        name: replace(each, examples=stored, array=f"{EXAMPLES_OF}{name}") for name, each in spec.open_inputs.items()
    }
    return replace(spec, inputs={**spec.inputs, **inputs})


def missing_library(error: ImportError) -> SourceError:
    """Return the error for a model library that is not installed."""
    return SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.")


def choose_device(model: sources.LoadedModel, runs_on: str, *, same: bool) -> str:
    """Return the device for the reference: "cuda" if the artifact runs there and PyTorch can; else "cpu".

    Raises:
        MeasureError: this is not the artifact's kind of device, and the caller needs the `same` for a fair comparison.
    """
    if runs_on == "cpu":
        return runs_on
    if model.onnx is not None:
        reason = "the reference of an ONNX file runs on the CPU"
    else:
        import torch

        if torch.cuda.is_available():
            return runs_on
        reason = "PyTorch on this machine has no CUDA, so it runs on the CPU"
    if same:
        raise MeasureError(
            f"{reason}, and the artifact does not", fix="Install a PyTorch with CUDA, and export from PyTorch."
        )
    return "cpu"
