"""What an artifact is timed against: FP32 PyTorch, torch.compile, the plain engines, or another artifact."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vitdeploy import artifact as artifacts
from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError
from vitdeploy.plugins import did_you_mean
from vitdeploy.progress import Progress
from vitdeploy.recipe import OPPONENTS, TargetSpec
from vitdeploy.runtime.artifact_session import feeds, open_session
from vitdeploy.runtime.reference import device_for, open_reference, rebuild_model
from vitdeploy.session import Array, Feeds, Session

if TYPE_CHECKING:
    from torch import nn

_IN_PYTORCH = ("pytorch-fp32", "torch-compile")


@dataclass(frozen=True)
class Opponent:
    """An opened opponent, the images in the form that it takes, and which artifact it is; None: a plain model."""

    session: Session
    feeds: Feeds
    artifact: Artifact | None = None


@contextmanager
def opened(name: str, artifact: Artifact, pixels: Array, threads: int, progress: Progress) -> Iterator[Opponent]:
    """The opponent, until the end of the block.

    Args:
        name: one of `OPPONENTS`, or the folder of another artifact.
        artifact: whose model the plain engines run.
        pixels: uint8 NCHW.
        threads: for all sides alike.
        progress: told what is loaded.

    Raises:
        UsageError: there is no such opponent.
        SourceError: the model cannot be rebuilt here.
        MeasureError: it is another model now, or would run on another device than the artifact.
        TargetUnavailable: what should run it is not here.
    """
    if name not in OPPONENTS:
        other = _artifact(name)
        with open_session(other, threads, progress) as session:
            yield Opponent(session, feeds(other, pixels), other)
        return
    manifest = artifact.manifest
    runs_on = targets.find(manifest.recipe.target).runs_on
    if runs_on != "cpu" and name not in _IN_PYTORCH:
        raise MeasureError(
            f"{name} runs on the CPU, another device than the artifact's", fix="Time against pytorch-fp32."
        )
    images = {manifest.inputs[0].name: normalize(pixels, manifest.preprocess)}
    with progress.step(f"Load {name} of {manifest.model.spec}"):
        model = _rebuilt(manifest)
    with tempfile.TemporaryDirectory(prefix="vitdeploy-plain-") as folder:
        with progress.step(f"Open {name}"):
            if name in _IN_PYTORCH:
                session = _in_pytorch(name, model, threads, device_for(model, runs_on, same=True))
            else:
                session = _in_engine(name, _plain_graph(model, manifest, images, Path(folder) / "plain.onnx"), threads)
        with session:
            yield Opponent(session, images)


def _artifact(name: str) -> Artifact:
    if not Path(name).is_dir():
        raise UsageError(
            f"there is nothing named {name!r} to time against{did_you_mean(Path(name).name, list(OPPONENTS))}",
            fix=f"Choose {', '.join(OPPONENTS)}, or the folder of an artifact.",
        )
    return artifacts.load(Path(name))


def _rebuilt(manifest: Manifest) -> sources.LoadedModel:
    try:
        return rebuild_model(manifest)
    except ImportError as error:
        raise SourceError(f"{error.name} is not installed", fix="pip install 'vitdeploy[export]'.") from None


def _in_pytorch(name: str, model: sources.LoadedModel, threads: int, device: str) -> Session:
    if name == "pytorch-fp32":
        return open_reference(model, threads=threads, device=device)
    if model.module is None:
        raise UsageError("torch-compile needs a PyTorch model, not an ONNX file", fix="Time against onnxruntime-fp32.")
    if device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise TargetUnavailable(
            "torch.compile writes C++, and there is no compiler here", fix="Install g++, or time against another."
        )
    import torch

    from vitdeploy.runtime.torch_session import TorchSession

    compiled = cast("nn.Module", torch.compile(model.module))  # of a module it makes a module
    return TorchSession(compiled, threads=threads, name=name, device=device)


def _in_engine(name: str, plain: Path, threads: int) -> Session:
    target = targets.find(TargetSpec(kind=name.removesuffix("-fp32")))
    target.require()
    session = target.open_plain(plain, threads)
    if session is None:
        raise UsageError(f"{target.name} does not run a plain ONNX file", fix="Time against another engine.")
    return session


def _plain_graph(model: sources.LoadedModel, manifest: Manifest, images: Feeds, path: Path) -> Path:
    """The model as its exporter leaves it, nothing raised or folded: what users would give the engine."""
    if model.onnx is not None:
        return model.onnx
    from vitdeploy import onnx_export as exporting
    from vitdeploy.runtime.torch_session import TorchSession

    assert model.module is not None
    name, image = next(iter(images.items()))
    expected = TorchSession(model.module).run(images)
    exporting.export(model.module, [(image, expected)], input_name=name, batch=manifest.recipe.target.batch, path=path)
    return path
