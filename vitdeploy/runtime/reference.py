"""The FP32 reference for speed and accuracy, rebuilt from the manifest."""

from __future__ import annotations

from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.errors import MeasureError, SourceError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Session


def open_reference(model: sources.LoadedModel, *, threads: int | None, device: str = "cpu") -> Session:
    """Open a model as a session: with PyTorch on `device`, or an ONNX file unchanged with ONNX Runtime."""
    if model.module is not None:
        from vitdeploy.runtime.torch_session import TorchSession

        return TorchSession(model.module, threads=threads, device=device)
    assert model.onnx is not None
    return OnnxSession(model.onnx, threads=threads, name="onnxruntime-fp32")


def rebuild_reference(artifact: Artifact, threads: int | None) -> Session:
    """Load the model of an artifact and open it, if possible on the kind of device that the artifact runs on.

    Raises:
        SourceError: the model cannot be loaded here.
        MeasureError: its weights have changed since the export.
    """
    model = rebuild_model(artifact.manifest)
    runs_on = targets.find(artifact.manifest.recipe.target).runs_on
    return open_reference(model, threads=threads, device=choose_device(model, runs_on, same=False))


def rebuild_model(manifest: Manifest) -> sources.LoadedModel:
    """Load the model of an artifact, and check that it is the one that was exported.

    Raises:
        SourceError: the model cannot be loaded here: a file has moved, or a library is not installed.
        MeasureError: its weights have changed since the export.
    """
    try:
        model = sources.load(manifest.recipe.model, size=manifest.recipe.image_size)
    except ImportError as error:
        raise missing_library(error) from None
    require_same_weights(manifest, model.digest)
    return model


def missing_library(error: ImportError) -> SourceError:
    """Return the error for a model library that is not installed."""
    return SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.")


def require_same_weights(manifest: Manifest, digest: str) -> None:
    """Check that a model has the weights of the exported one.

    Raises:
        MeasureError: its weights differ.
    """
    if digest != manifest.model.digest:
        raise MeasureError(
            f"{manifest.recipe.model.spec} is not the model that was exported: its weights differ",
            fix="Export it again, or restore the weights.",
        )


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
