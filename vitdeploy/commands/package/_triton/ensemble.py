"""An ensemble that takes image files and gives answers: `NAME-prepare` → `NAME` → `NAME-decode`, as `NAME-images`.

    IMAGE ─▶ prepare ─▶ the model's input ─▶ NAME ─▶ SCORES, BOXES ─▶ decode ─▶ PROBABILITY, CLASS, LABEL, BOX
                └──────────────────── IMAGE_SIZE ───────────────────────▶

IMAGE is the content of a JPEG, PNG, …; BOX and IMAGE_SIZE are there for detectors.
Preparing and decoding run in Triton's Python backend, with NumPy and Pillow.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from vitdeploy import tasks
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.commands.package._repository import VERSION, list_labels
from vitdeploy.commands.package._triton.config import ModelConfig, TritonTensor
from vitdeploy.commands.package._triton.pbtxt import Symbol, Value
from vitdeploy.data import geometry, picture
from vitdeploy.errors import UsageError
from vitdeploy.evidence.reading import PostProcessing

SERVER = Path(__file__).with_name("server")
CONFIG = "config.pbtxt"
_IMAGE_DIMS = 4
_NAMES = ("IMAGE", "IMAGE_SIZE", "SCORES", "BOXES", "PROBABILITY", "CLASS", "LABEL", "BOX")
"""The ensemble's own tensors. The prepared image has the name of the model's input, unless that is one of them."""
_BYTES, _FLOAT, _INT = Symbol("TYPE_STRING"), Symbol("TYPE_FP32"), Symbol("TYPE_INT32")


def require_answers(manifest: Manifest) -> PostProcessing:
    """Return how the outputs are read.

    Raises:
        UsageError: they are not classes or boxes, or the model takes more than one image.
    """
    task = tasks.find(manifest.recipe.task)
    reading = task.describe_reading({output.name: output.shape for output in manifest.outputs})
    fix = "Leave out --ensemble, and prepare images and read outputs in the client."
    if reading is None:
        raise UsageError(f"an ensemble reads classes and boxes, and this model's task is {task.name}", fix=fix)
    if len(manifest.inputs) != 1 or len(manifest.inputs[0].shape) != _IMAGE_DIMS:
        raise UsageError("an ensemble prepares one image, and this model takes more inputs, or clips", fix=fix)
    return reading


def write_ensemble(artifact: Artifact, reading: PostProcessing, model: ModelConfig, repository: Path) -> str:
    """Write the three further models, and return the name of the ensemble."""
    manifest, batching, (image,) = artifact.manifest, model.batching, model.inputs
    prepared = dataclasses.replace(image, name="PIXELS") if image.name in _NAMES else image
    count, has_boxes = _count_answers(manifest, reading), reading.boxes is not None

    def shaped(name: str, kind: Symbol, *dims: int) -> TritonTensor:
        """Return a tensor with the batch before its dimensions, unless Triton adds it."""
        return TritonTensor(name, kind, dims if batching.joins else (image.dims[0], *dims))

    files = TritonTensor("IMAGE", _BYTES, (1,) if batching.joins else (image.dims[0],))
    sizes = [shaped("IMAGE_SIZE", _INT, 2)] if has_boxes else []
    by_name = {spec.name: tensor for spec, tensor in zip(manifest.outputs, model.outputs, strict=True)}
    outputs = {"SCORES": by_name[reading.scores], **({"BOXES": by_name[reading.boxes]} if reading.boxes else {})}
    takes = [TritonTensor(name, tensor.type, tensor.dims) for name, tensor in outputs.items()]
    answers = [shaped("PROBABILITY", _FLOAT, count), shaped("CLASS", _INT, count), shaped("LABEL", _BYTES, count)]
    answers += [shaped("BOX", _FLOAT, count, 4)] if has_boxes else []

    python: dict[str, Value] = {"backend": "python"}
    prepare = ModelConfig(f"{model.name}-prepare", python, batching, [files], [prepared, *sizes])
    decode = ModelConfig(f"{model.name}-decode", python, batching, [*takes, *sizes], answers)
    steps = [
        _step(prepare, {"IMAGE": "IMAGE"}, {tensor.name: tensor.name for tensor in prepare.outputs}),
        _step(model, {image.name: prepared.name}, {tensor.name: name for name, tensor in outputs.items()}),
        _step(decode, {t.name: t.name for t in decode.inputs}, {tensor.name: tensor.name for tensor in answers}),
    ]
    ensemble = ModelConfig(
        f"{model.name}-images", {"platform": "ensemble"}, batching, [files], answers,
        kind=None, tail={"ensemble_scheduling": {"step": steps}},
    )  # fmt: skip
    preprocess = manifest.preprocess.model_dump(mode="json")
    prepares = {
        "preprocess": preprocess,
        "form": manifest.recipe.target.input,
        "outputs": [tensor.name for tensor in prepare.outputs],
    }
    reads = {"preprocess": preprocess, "reading": reading.model_dump(mode="json"), "labels": list_labels(artifact)}
    write_program(repository, prepare, "prepare_model.py", prepares)
    copied = {"images": SERVER / "images.py", "picture": Path(picture.__file__)}
    for name, source in copied.items():
        (repository / prepare.name / VERSION / f"vitdeploy_{name}.py").write_bytes(source.read_bytes())
    write_program(repository, decode, "decode_model.py", {**reads, "count": count})
    for step in (prepare, decode):
        target = repository / step.name / VERSION / "vitdeploy_geometry.py"
        target.write_bytes(Path(geometry.__file__).read_bytes())
    (repository / ensemble.name / VERSION).mkdir(parents=True)  # Triton wants a version, though nothing is in it
    (repository / ensemble.name / VERSION / ".keep").touch()  # so that copies and archives keep the folder
    (repository / ensemble.name / CONFIG).write_text(ensemble.format(), encoding="utf-8")
    return ensemble.name


def write_program(repository: Path, model: ModelConfig, program: str, settings: Mapping[str, object]) -> None:
    """Write a model for Triton's Python backend: its configuration, program and settings."""
    folder = repository / model.name / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_bytes((SERVER / program).read_bytes())
    (folder / "settings.json").write_text(f"{json.dumps(settings, indent=1)}\n", encoding="utf-8")
    (repository / model.name / CONFIG).write_text(model.format(), encoding="utf-8")


def _count_answers(manifest: Manifest, reading: PostProcessing) -> int:
    """Return the number of answers to an image: at most as many as there are classes, or boxes, where that is known."""
    shapes = {output.name: output.shape for output in manifest.outputs}
    sides = shapes[reading.scores][1:]
    if reading.boxes is None:
        sides = sides[-1:]
    elif reading.candidates != "every class":
        sides = sides[:1]
    known = [side for side in sides if isinstance(side, int)]
    return min(reading.top_k, math.prod(known)) if len(known) == len(sides) else reading.top_k


def _step(model: ModelConfig, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Value:
    """Return a step: the model's tensors by name, each with its name in the ensemble."""
    maps = {"input_map": inputs, "output_map": outputs}
    described = {field: [{"key": k, "value": v} for k, v in pairs.items()] for field, pairs in maps.items()}
    return {"model_name": model.name, "model_version": -1, **described}
