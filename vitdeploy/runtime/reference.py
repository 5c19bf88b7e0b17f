"""The FP32 reference that speed and accuracy are compared with, rebuilt from what the manifest says."""

from __future__ import annotations

from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.errors import MeasureError, SourceError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Session


def open_reference(model: sources.LoadedModel, *, threads: int | None, device: str = "cpu") -> Session:
    """The model as a session: PyTorch on `device`, or ONNX Runtime on the untouched graph of an ONNX source."""
    if model.onnx is not None:
        return OnnxSession(model.onnx, threads=threads, name="onnxruntime-fp32")
    from vitdeploy.runtime.torch_session import TorchSession

    assert model.module is not None
    return TorchSession(model.module, threads=threads, device=device)


def rebuild_reference(manifest: Manifest, *, threads: int | None, runs_on: str = "cpu") -> Session:
    """The reference of an artifact, opened; see `rebuild_model` and `device_for`."""
    model = rebuild_model(manifest)
    return open_reference(model, threads=threads, device=device_for(model, runs_on, same=False))


def rebuild_model(manifest: Manifest) -> sources.LoadedModel:
    """The model of an artifact, refused when it is not the one that was exported.

    Raises:
        SourceError: the source cannot be had here (a file that moved, a library that is missing).
        MeasureError: it is another model now.
    """
    recipe = manifest.recipe
    model = sources.load(recipe.model, size=recipe.image_size)
    require_same_weights(manifest, model.digest)
    return model


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


def device_for(model: sources.LoadedModel, wanted: str, *, same: bool) -> str:
    """Where the reference runs: on "cuda" if the artifact does and PyTorch can; else on the CPU.

    Raises:
        MeasureError: that is another device, and only the `same` would make a fair comparison.
    """
    if wanted == "cpu":
        return wanted
    if model.onnx is not None:
        why = "the reference of an ONNX file runs on the CPU"
    else:
        import torch

        if torch.cuda.is_available():
            return wanted
        why = "PyTorch here has no CUDA"
    if same:
        raise MeasureError(
            f"{why}, another device than the artifact's", fix="Install a PyTorch with CUDA, and export from PyTorch."
        )
    return "cpu"


def reference_of(artifact: Artifact, threads: int | None) -> Session:
    """The FP32 reference of an artifact, opened.

    Raises:
        SourceError: it cannot be rebuilt here.
        MeasureError: it is another model now.
    """
    try:
        runs_on = targets.find(artifact.manifest.recipe.target).runs_on
        return rebuild_reference(artifact.manifest, threads=threads, runs_on=runs_on)
    except ImportError as error:
        raise SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.") from None
