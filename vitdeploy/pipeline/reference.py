"""The FP32 reference that speed and accuracy are compared with, rebuilt from what the manifest says."""

from __future__ import annotations

from vitdeploy import sources
from vitdeploy.artifact import Manifest
from vitdeploy.errors import MeasureError
from vitdeploy.graph.runner import OnnxSession
from vitdeploy.session import Session


def open_reference(model: sources.LoadedModel, *, threads: int | None) -> Session:
    """The model as a session: PyTorch, or ONNX Runtime on the untouched graph when the source is an ONNX file."""
    if model.onnx is not None:
        return OnnxSession(model.onnx, threads=threads, name="onnxruntime-fp32")
    from vitdeploy.sources._torch import TorchSession

    assert model.module is not None
    return TorchSession(model.module, threads=threads)


def rebuild_reference(manifest: Manifest, *, threads: int | None) -> Session:
    """The reference of an artifact, opened; see `rebuild_model`."""
    return open_reference(rebuild_model(manifest), threads=threads)


def rebuild_model(manifest: Manifest) -> sources.LoadedModel:
    """The model of an artifact, refused when it is not the one that was exported.

    Raises:
        SourceError: the source cannot be had here (a file that moved, a library that is missing).
        MeasureError: it is another model now.
    """
    recipe = manifest.recipe
    size = recipe.model.image_size or (recipe.preprocess.size if recipe.preprocess else None)
    model = sources.load(recipe.model, size=size)
    if model.digest != manifest.model.digest:
        raise MeasureError(
            f"{recipe.model.spec} is not the model that was exported: its weights differ",
            fix="Export it again, or restore the weights.",
        )
    return model
