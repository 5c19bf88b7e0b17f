"""A configuration of nvinfer, the element of NVIDIA DeepStream's pipelines that runs TensorRT engines.

nvinfer scales a frame to the size of the network, and fills the input as float32 with

    y = net-scale-factor · (x − offsets[channel])      x: 0 to 255; one factor for all channels

so it cannot divide each channel by a standard deviation of its own. An artifact with `--input pixels` has mean and std
inside its weights, and takes y = x. This is the only form that is written.

Sources: Gst-nvinfer in NVIDIA's DeepStream documentation (preprocessing, keys, filters); the default classification
parser, which takes float32 outputs as probabilities and returns the largest that is above 0 and above the threshold.
None of this was run with DeepStream.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vitdeploy import tasks
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.commands.package import Packager, copy_file
from vitdeploy.data.geometry import size_before_crop
from vitdeploy.errors import UsageError
from vitdeploy.evidence.reading import PostProcessing
from vitdeploy.recipe import format_size
from vitdeploy.runtime.artifact_session import read_compiled
from vitdeploy.version import __version__

CONFIG, LABELS = "config_infer.txt", "labels.txt"
_IMAGE_DIMS = 4  # batch, channels, height, width
_FLOAT = ("float", "float32")
_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 4}  # NvBufSurfTransform's, on the GPU
_BILINEAR = 1
_SEPARATOR = ";"  # between the labels of one classifier
_NOT_RUN = "not run: vitdeploy's tests have no DeepStream; the keys follow NVIDIA's documentation"


class DeepStream(Packager):
    """`config_infer.txt`, `labels.txt` and the engine, for nvinfer as a classifier of whole frames."""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        """Write the three files.

        Raises:
            UsageError: nvinfer cannot prepare the images of this artifact, or read its outputs.
        """
        manifest = artifact.manifest
        engine = _require_engine(artifact)
        reading = _require_classifier(manifest)
        _require_arithmetic(manifest)
        _require_geometry(manifest)
        labels, are_changed = _list_labels(manifest)
        copy_file(artifact, engine, folder / engine)
        (folder / LABELS).write_text(_SEPARATOR.join(labels) + "\n", encoding="utf-8")
        notes = (
            _NOT_RUN,
            "nvinfer takes outputs as probabilities: what it reports is the logit of the best class, and a frame whose "
            "logits are all below 0 gets no class",
            f"nvinfer resizes without antialiasing, the model's preprocessing is {manifest.preprocess.interpolation} "
            "with it: the scores differ a little",
            *(["in labels.txt a ; in the names became a comma, because ; separates the labels"] if are_changed else []),
        )
        text = _write_config(manifest, engine, reading, notes)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        return notes

    def suggest(self, package: Path) -> str:
        """Return the element of a pipeline."""
        return f"nvinfer config-file-path={shlex.quote(str(package / CONFIG))}"


def _require_engine(artifact: Artifact) -> str:
    manifest = artifact.manifest
    if manifest.target.kind != "tensorrt":
        raise UsageError(
            f"nvinfer runs engines of TensorRT, and {artifact.path} is for {manifest.target.kind}",
            fix="Export with --target tensorrt --input pixels --resize exact, and compile it on the device.",
        )
    if manifest.runs is None:
        raise UsageError(
            f"{artifact.path} is a bundle: nvinfer would build its graph by other rules, and nothing would check it",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    return read_compiled(artifact).runs


def _require_classifier(manifest: Manifest) -> PostProcessing:
    task = tasks.find(manifest.recipe.task)
    reading = task.describe_reading({output.name: output.shape for output in manifest.outputs})
    if task.name != tasks.DEFAULT or reading is None:
        raise UsageError(
            f"nvinfer's own parsers read classes, and this model's task is {task.name}",
            fix="Read the outputs in the pipeline yourself: examples/cpp shows how.",
        )
    if len(manifest.inputs) != 1:
        raise UsageError(
            f"nvinfer feeds one image input, and this model has {len(manifest.inputs)} inputs",
            fix="Fix the others at export with --bind.",
        )
    if len(manifest.inputs[0].shape) != _IMAGE_DIMS:
        raise UsageError("nvinfer feeds images, and this model takes clips of frames", fix="Use another pipeline.")
    scores = next(output for output in manifest.outputs if output.name == reading.scores)
    if scores.dtype not in _FLOAT:
        raise UsageError(
            f"nvinfer reads float32 outputs, and {scores.name} is {scores.dtype}", fix="Export it in another precision."
        )
    return reading


def _require_arithmetic(manifest: Manifest) -> None:
    form, std = manifest.recipe.target.input, manifest.preprocess.std
    if form == "normalized":
        values = ", ".join(f"{value:g}" for value in std)
        raise UsageError(
            "nvinfer has one scale for all channels, and this artifact takes images that are normalized with a mean "
            f"and a std for each (std {values})",
            fix="Export it with --input pixels: mean and std are then inside the weights.",
        )
    if form == "uint8":
        raise UsageError(
            "nvinfer fills its input as float32, and this artifact takes uint8",
            fix="Export it with --input pixels: the same arithmetic, as float32.",
        )


def _require_geometry(manifest: Manifest) -> None:
    preprocess = manifest.preprocess
    if manifest.recipe.model.size_range is not None:
        raise UsageError(
            "nvinfer has one image size, and this artifact takes a range", fix="Export it with one --image-size."
        )
    if preprocess.resize != "exact" or size_before_crop(preprocess) != preprocess.size:
        raise UsageError(
            f"nvinfer stretches a frame to {format_size(preprocess.size)}, and this model's preprocessing crops or "
            f"pads it (resize: {preprocess.resize})",
            fix="Export it with --resize exact --crop-pct 1: vitdeploy eval then says what that costs.",
        )


def _list_labels(manifest: Manifest) -> tuple[list[str], bool]:
    """Return the names of the classes, each without separators, and whether that changed any."""
    labels = list(manifest.labels or ())
    cleaned = [" ".join(label.replace(_SEPARATOR, ",").split()) for label in labels]
    return cleaned, cleaned != labels


def _write_config(manifest: Manifest, engine: str, reading: PostProcessing, notes: tuple[str, ...]) -> str:
    preprocess = manifest.preprocess
    colours = {"rgb": 0, "bgr": 1}[preprocess.channel_order] if preprocess.channels > 1 else 2
    height, width = preprocess.size
    mode = next((number for name, number in _NETWORK_MODES.items() if manifest.target.precision.startswith(name)), 0)
    keys = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,  # whole frames
        "network-type": 1,  # a classifier
        "model-engine-file": engine,
        "network-mode": mode,  # of builds only, and nothing is built
        "batch-size": manifest.recipe.target.batch.max,
        "infer-dims": f"{preprocess.channels};{height};{width}",
        "model-color-format": colours,
        "net-scale-factor": 1,
        "offsets": ";".join("0" for _ in range(preprocess.channels)),
        "maintain-aspect-ratio": 0,
        "scaling-compute-hw": 1,  # the GPU, on Jetson too: the filters are named after it
        "scaling-filter": _FILTERS.get(preprocess.interpolation, _BILINEAR),
        "output-blob-names": reading.scores,
        "classifier-threshold": 0,
        **({"labelfile-path": LABELS} if manifest.labels else {}),
    }
    head = [f"# Written by vitdeploy {__version__} for nvinfer of NVIDIA DeepStream.", *(f"# {note}" for note in notes)]
    for key, value in keys.items():
        if not str(value).isprintable():  # a line end would begin a key of its own
            raise UsageError(f"nvinfer cannot read {str(value)!r} as {key}", fix="Export the model with another name.")
    return "\n".join([*head, "[property]", *(f"{key}={value}" for key, value in keys.items()), ""])
