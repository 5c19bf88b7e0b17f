"""A model repository of NVIDIA's Triton Inference Server: `NAME/config.pbtxt` and `NAME/1/` with the engine.

Triton's own backends open the engines of ONNX Runtime, OpenVINO and TensorRT. `--backend python` is for servers without
them: a program opens the engine in Triton's Python backend, with the settings of `load`. `--ensemble` adds models that
prepare images and read answers, so that a client sends image files.

`benchmarks/served.py` serves a repository of `--backend python` with Triton itself, unedited. The configurations for
the other backends were not run: they follow Triton's documentation, and the tests read them by its schema.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Literal

from vitdeploy.artifact import Artifact
from vitdeploy.commands.package import Packager
from vitdeploy.commands.package._repository import LABELS, VERSION, list_labels, name_model
from vitdeploy.commands.package._triton.config import ModelConfig, list_tensors, warm_up
from vitdeploy.commands.package._triton.engines import Served, write_engine
from vitdeploy.commands.package._triton.ensemble import CONFIG, require_answers, write_ensemble, write_program

_NOT_RUN = "not run: vitdeploy's tests have no Triton with the {backend} backend; the keys follow its documentation"
_NEEDS = {"onnxruntime": "numpy and onnxruntime", "openvino": "numpy and openvino"}


class Triton(Packager):
    """`config.pbtxt`, the engine, the labels, and programs for Triton's Python backend.

    Attributes:
        backend: "native": Triton's own backend for the engine; "python": its Python backend.
        ensemble: also write an ensemble that takes image files and gives classes or boxes.
        name: of the model on the server; empty: that of the artifact's folder.
    """

    backend: Literal["native", "python"] = "native"
    ensemble: bool = False
    name: str = ""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        """Write the repository.

        Raises:
            UsageError: Triton cannot serve this artifact, or an ensemble cannot read its answers.
        """
        manifest = artifact.manifest
        name = name_model(artifact, self.name)
        reading = require_answers(manifest) if self.ensemble else None
        served = write_engine(artifact, self.backend, folder / name / VERSION)
        model = _configure(artifact, name, served)
        labels = list_labels(artifact)
        if any(tensor.labels for tensor in model.outputs):
            (folder / name / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        if served.settings is None:
            (folder / name / CONFIG).write_text(model.format(), encoding="utf-8")
        else:
            write_program(folder, model, "engine_model.py", served.settings)
        notes = [*_list_needs(artifact, served), *served.notes]
        if reading is not None:
            ensemble = write_ensemble(artifact, reading, model, folder)
            notes.append(f"{ensemble} takes image files; Triton's Python needs numpy and Pillow for it")
        return tuple(notes)

    def suggest(self, package: Path) -> str:
        """Return the command that serves the repository."""
        return f"tritonserver --model-repository={shlex.quote(str(package))}"


def _configure(artifact: Artifact, name: str, served: Served) -> ModelConfig:
    manifest, batching = artifact.manifest, served.batching
    inputs = list_tensors(manifest.inputs, served.inputs, batching)
    outputs = list_tensors(manifest.outputs, served.outputs, batching)
    usage = manifest.usage
    reading = None if usage is None else usage.post_processing
    if manifest.labels and reading is not None and reading.boxes is None:
        outputs = [
            dataclasses.replace(tensor, labels=LABELS) if spec.name == reading.scores else tensor
            for spec, tensor in zip(manifest.outputs, outputs, strict=True)
        ]
    return ModelConfig(
        name, served.head, batching, inputs, outputs, kind=served.kind, parameters=served.parameters,
        tail={**served.tail, **warm_up(manifest, inputs, batching)}, notes=served.notes,
    )  # fmt: skip


def _list_needs(artifact: Artifact, served: Served) -> list[str]:
    """Return what was not run, or what the Python of the server needs."""
    kind = artifact.manifest.target.kind
    if served.settings is None:
        return [_NOT_RUN.format(backend=kind)]
    backend = artifact.manifest.target.backend
    return [f"Triton's Python needs {_NEEDS[kind]}; what was measured here ran in {backend}"]
