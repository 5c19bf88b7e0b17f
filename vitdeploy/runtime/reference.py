"""The FP32 reference that speed and accuracy are compared with, rebuilt from what the manifest says."""

from __future__ import annotations

from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.errors import MeasureError, SourceError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Session


def open_reference(model: sources.LoadedModel, *, threads: int | None, device: str = "cpu") -> Session:
    """Open the model as a session: PyTorch on `device`, or ONNX Runtime on the untouched graph of an ONNX source."""
    if model.module is not None:
        from vitdeploy.runtime.torch_session import TorchSession

        return TorchSession(model.module, threads=threads, device=device)
    assert model.onnx is not None
    return OnnxSession(model.onnx, threads=threads, name="onnxruntime-fp32")


def rebuild_reference(artifact: Artifact, threads: int | None) -> Session:
    """Load the model of an artifact and open it, on the device where the artifact runs if that can be.

    Raises:
        SourceError: it cannot be rebuilt here.
        MeasureError: it is another model now.
    """
    model = rebuild_model(artifact.manifest)
    runs_on = targets.find(artifact.manifest.recipe.target).runs_on
    return open_reference(model, threads=threads, device=choose_device(model, runs_on, same=False))


def rebuild_model(manifest: Manifest) -> sources.LoadedModel:
    """Load the model of an artifact; refuse it when it is not the one that was exported.

    Raises:
        SourceError: the source cannot be had here (a file that moved, a library that is missing).
        MeasureError: it is another model now.
    """
    try:
        model = sources.load(manifest.recipe.model, size=manifest.recipe.image_size)
    except ImportError as error:
        raise missing_library(error) from None
    require_same_weights(manifest, model.digest)
    return model


def missing_library(error: ImportError) -> SourceError:
    """Return the error for a model library that a device does not have."""
    return SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.")


def require_same_weights(manifest: Manifest, digest: str) -> None:
    """Refuse a model with other weights than the one that was exported.

    Raises:
        MeasureError: it has.
    """
    if digest != manifest.model.digest:
        raise MeasureError(
            f"{manifest.recipe.model.spec} is not the model that was exported: its weights differ",
            fix="Export it again, or restore the weights.",
        )


def choose_device(model: sources.LoadedModel, runs_on: str, *, same: bool) -> str:
    """Return where the reference runs: on "cuda" if the artifact does and PyTorch can; else on the CPU.

    Raises:
        MeasureError: that is another device than the artifact's, and only the `same` would make a fair comparison.
    """
    if runs_on == "cpu":
        return runs_on
    if model.onnx is not None:
        reason = "the reference of an ONNX file runs on the CPU"
    else:
        import torch

        if torch.cuda.is_available():
            return runs_on
        reason = "PyTorch here has no CUDA"
    if same:
        raise MeasureError(
            f"{reason}, another device than the artifact's", fix="Install a PyTorch with CUDA, and export from PyTorch."
        )
    return "cpu"
