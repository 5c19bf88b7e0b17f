"""Opponents of an artifact: FP32 PyTorch, torch.compile, the plain engines, or another artifact."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vitdeploy import artifact as artifacts
from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError
from vitdeploy.plugins import did_you_mean
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.runtime.artifact_session import feed, open_session
from vitdeploy.runtime.reference import choose_device, open_reference, rebuild_model
from vitdeploy.session import Array, Feeds, Session
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from torch import nn

_EAGER, _COMPILED = "pytorch-fp32", "torch-compile"
_PLAIN = "-fp32"


def opponent_names() -> list[str]:
    """Return the opponents that are no artifacts: PyTorch eager and compiled, and the engines on the plain export."""
    found = {name: targets.find(TargetSpec(kind=name)) for name in targets.names()}
    engines = [name for name, target in found.items() if type(target).open_plain is not Target.open_plain]
    return [_EAGER, _COMPILED, *(f"{name}{_PLAIN}" for name in engines)]


@dataclass(frozen=True)
class Opponent:
    """An opened opponent.

    Attributes:
        session: stays open until the opponents are closed.
        artifact: which one it is; None of a plain model.
        input_name: of a plain model.
    """

    session: Session
    artifact: Artifact | None
    input_name: str

    def feed(self, pixels: Array, about: Artifact) -> Feeds:
        """Return images (uint8 NCHW) in the form that the opponent takes."""
        if self.artifact is not None:
            return feed(self.artifact, pixels)
        return {self.input_name: normalize(pixels, about.manifest.preprocess)}


@dataclass
class Opponents:
    """The opponents of `artifact` by name, each loaded and opened once; close them by the end of `stack`.

    Attributes:
        artifact: whose model the plain engines run.
        pixels: uint8 NCHW, to check a plain export on.
        threads: for all sides alike.
        stack: closes what was opened.
        progress: told what is loaded.
    """

    artifact: Artifact
    pixels: Array
    threads: int
    stack: ExitStack
    progress: Progress
    _opened: dict[str, Opponent] = field(default_factory=dict)

    def open_all(self, names: Sequence[str]) -> tuple[dict[str, Opponent], dict[str, str]]:
        """Open those that can be had here; return them, and why the others cannot."""
        missing: dict[str, str] = {}
        for name in names:
            try:
                self._opened[name] = self._open(name)
            except (SourceError, MeasureError) as error:
                missing[name] = error.message
        return self._opened, missing

    def _open(self, name: str) -> Opponent:
        """Open one opponent: a name of `opponent_names`, or the folder of another artifact.

        Raises:
            UsageError: there is no such opponent.
            SourceError: the model cannot be rebuilt here.
            MeasureError: it is another model now, or would run on another device than the artifact.
            TargetUnavailable: what should run it is not here.
        """
        if name not in opponent_names():
            other = _load_artifact(name)
            return Opponent(self.stack.enter_context(open_session(other, self.threads, self.progress)), other, "")
        manifest = self.artifact.manifest
        runs_on = targets.find(manifest.recipe.target).runs_on
        if runs_on != "cpu" and name not in (_EAGER, _COMPILED):
            raise MeasureError(
                f"{name} runs on the CPU, another device than the artifact's", fix="Time against pytorch-fp32."
            )
        model = self._model
        with self.progress.step(f"Open {name}"):
            if name in (_EAGER, _COMPILED):
                session = _open_in_pytorch(name, model, self.threads, choose_device(model, runs_on, same=True))
            else:
                session = _open_in_engine(name, self._plain_graph, self.threads)
        return Opponent(self.stack.enter_context(session), None, manifest.inputs[0].name)

    @cached_property
    def _model(self) -> sources.LoadedModel:
        """The model of the artifact, loaded once for all opponents."""
        with self.progress.step(f"Load {self.artifact.manifest.model.spec} for its opponents"):
            return rebuild_model(self.artifact.manifest)

    @cached_property
    def _plain_graph(self) -> Path:
        """The model as its exporter leaves it, nothing raised or folded: what users would give the engine."""
        if self._model.onnx is not None:
            return self._model.onnx
        from vitdeploy import onnx_export
        from vitdeploy.runtime.torch_session import TorchSession

        assert self._model.module is not None
        manifest = self.artifact.manifest
        path = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="vitdeploy-plain-"))) / "plain.onnx"
        name, image = manifest.inputs[0].name, normalize(self.pixels, manifest.preprocess)
        expected = TorchSession(self._model.module).run({name: image})
        batch = manifest.recipe.target.batch
        onnx_export.export(self._model.module, [(image, expected)], input_name=name, batch=batch, path=path)
        return path


def loaded_artifacts(opponents: Mapping[str, Opponent]) -> list[Artifact]:
    """Return the artifacts among opponents."""
    return [opponent.artifact for opponent in opponents.values() if opponent.artifact is not None]


def _load_artifact(name: str) -> Artifact:
    if not Path(name).is_dir():
        names = opponent_names()
        raise UsageError(
            f"there is nothing named {name!r} to time against{did_you_mean(Path(name).name, names)}",
            fix=f"Choose {', '.join(names)}, or the folder of an artifact.",
        )
    return artifacts.load(Path(name))


def _open_in_pytorch(name: str, model: sources.LoadedModel, threads: int, device: str) -> Session:
    if name == _EAGER:
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


def _open_in_engine(name: str, plain: Path, threads: int) -> Session:
    target = targets.find(TargetSpec(kind=name.removesuffix(_PLAIN)))
    target.require()
    session = target.open_plain(plain, threads)
    if session is None:
        raise UsageError(f"{target.name} does not run a plain ONNX file", fix="Time against another engine.")
    return session
