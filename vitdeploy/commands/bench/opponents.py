"""Opponents of an artifact: FP32 PyTorch, torch.compile, an engine on the plain export, or another artifact."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vitdeploy import artifact as artifacts
from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError
from vitdeploy.plugins import did_you_mean
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.runtime.artifact_session import feed, fill_inputs, open_session, read_stored_inputs, takes_no_image
from vitdeploy.runtime.reference import choose_device, open_reference, rebuild_model
from vitdeploy.session import Array, Feeds, Session
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from torch import nn

_EAGER, _COMPILED = "pytorch-fp32", "torch-compile"
_PLAIN = "-fp32"


def opponent_names() -> list[str]:
    """Return the opponents that are not artifacts: PyTorch eager and compiled, and the engines on the plain export."""
    kinds = {name: targets.find(TargetSpec(kind=name)) for name in targets.names()}
    engines = [name for name, target in kinds.items() if type(target).open_plain is not Target.open_plain]
    return [_EAGER, _COMPILED, *(f"{name}{_PLAIN}" for name in engines)]


@dataclass(frozen=True)
class Opponent:
    """An open opponent.

    Attributes:
        session: stays open until the opponents are closed.
        artifact: the opponent, if it is an artifact; else None.
        input_name: the name of the input, if it is not an artifact.
    """

    session: Session
    artifact: Artifact | None
    input_name: str

    def feed(self, pixels: Array, about: Artifact) -> Feeds:
        """Convert images (uint8 NCHW) to the opponent's input."""
        if self.artifact is not None:
            return feed(self.artifact, pixels)
        if takes_no_image(about.manifest):
            return read_stored_inputs(about)
        images = normalize(pixels, about.manifest.preprocess)
        return {self.input_name: images, **fill_inputs(about, {}, len(pixels))}


@dataclass
class Opponents:
    """The opponents of `artifact` by name, each loaded and opened once. The end of `stack` closes them.

    Attributes:
        artifact: the artifact whose model the opponents run.
        pixels: images (uint8 NCHW) to check a plain export with.
        threads: the number of threads, for all sides.
        stack: closes the sessions.
        progress: gets the steps and warnings.
    """

    artifact: Artifact
    pixels: Array
    threads: int
    stack: ExitStack
    progress: Progress
    _opened: dict[str, Opponent] = field(default_factory=dict)

    def open_all(self, names: Sequence[str], *, any_model: bool = False) -> tuple[dict[str, Opponent], dict[str, str]]:
        """Open the opponents that are available here. Return them, and the reasons why others are not.

        With `any_model`, an artifact of another model is an opponent too.
        """
        if not any_model:
            folders = [_load_artifact(name) for name in names if name not in opponent_names()]
            refuse_other_models([self.artifact, *folders])
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
            SourceError: the model cannot be loaded here.
            MeasureError: its weights have changed since the export, or it would run on another device than the
                artifact.
            TargetUnavailable: the engine for it is not installed here.
        """
        if name not in opponent_names():
            other = _load_artifact(name)
            return Opponent(self.stack.enter_context(open_session(other, self.threads, self.progress)), other, "")
        manifest = self.artifact.manifest
        runs_on = targets.find(manifest.recipe.target).runs_on
        if runs_on != "cpu" and name not in (_EAGER, _COMPILED):
            raise MeasureError(f"{name} runs on the CPU, but the artifact does not", fix="Time against pytorch-fp32.")
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
            return rebuild_model(self.artifact)

    @cached_property
    def _plain_graph(self) -> Path:
        """The model as the exporter writes it, without any pass: the graph that users would give the engine."""
        if self._model.onnx is not None:
            return self._model.onnx
        from vitdeploy import onnx_export
        from vitdeploy.runtime.torch_session import TorchSession

        assert self._model.module is not None
        manifest = self.artifact.manifest
        path = self.stack.enter_context(scratch_folder("plain")) / "plain.onnx"
        name = manifest.inputs[0].name
        further = fill_inputs(self.artifact, {}, len(self.pixels))
        inputs: Feeds = {name: normalize(self.pixels, manifest.preprocess), **further}
        if takes_no_image(manifest):
            inputs = read_stored_inputs(self.artifact)
        expected = TorchSession(self._model.module, outputs=self._model.outputs).run(inputs)
        batch = manifest.recipe.target.batch
        further = {key: value for key, value in inputs.items() if key != name}
        example = onnx_export.Example(inputs[name], expected, further=further)
        onnx_export.export(
            self._model.module, [example], input_name=name, batch=batch, path=path, outputs=self._model.outputs
        )
        return path


def refuse_other_models(artifacts: Sequence[Artifact], fix: str = "") -> None:
    """Refuse artifacts of different models or weights.

    Raises:
        UsageError: they are.
    """
    first = artifacts[0]
    for other in artifacts[1:]:
        if other.manifest.model.digest != first.manifest.model.digest:
            raise UsageError(
                f"{other.path} is of another model, or of other weights, than {first.path}: "
                f"{other.manifest.model.spec} and {first.manifest.model.spec}",
                fix=fix
                or "Give --any-model if you want to time both. To compare their accuracy: vitdeploy gate NEW "
                "--baseline OLD --data DATA.",
            )


def artifacts_among(opponents: Mapping[str, Opponent]) -> list[Artifact]:
    """Return the opponents that are artifacts."""
    return [opponent.artifact for opponent in opponents.values() if opponent.artifact is not None]


def _load_artifact(name: str) -> Artifact:
    if not Path(name).is_dir():
        names = opponent_names()
        raise UsageError(
            f"--against {name!r} is not a known opponent or a folder{did_you_mean(Path(name).name, names)}",
            fix=f"Give {', '.join(names)}, or the folder of an artifact.",
        )
    return artifacts.load(Path(name))


def _open_in_pytorch(name: str, model: sources.LoadedModel, threads: int, device: str) -> Session:
    if name == _EAGER:
        return open_reference(model, threads=threads, device=device)
    if model.module is None:
        raise UsageError("torch-compile needs a PyTorch model, not an ONNX file", fix="Time against onnxruntime-fp32.")
    if device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise TargetUnavailable(
            "torch-compile needs a C++ compiler, and there is none here",
            fix="Install g++, or time against another opponent.",
        )
    import torch

    from vitdeploy.runtime.torch_session import TorchSession

    compiled = cast("nn.Module", torch.compile(model.module))  # it is typed as a function
    return TorchSession(compiled, threads=threads, name=name, device=device, outputs=model.outputs)


def _open_in_engine(name: str, plain: Path, threads: int) -> Session:
    target = targets.find(TargetSpec(kind=name.removesuffix(_PLAIN)))
    target.require()
    session = target.open_plain(plain, threads)
    if session is None:
        raise UsageError(f"{target.name} does not run plain ONNX files", fix="Time against another engine.")
    return session
