"""Sources of models, one file each, found by the scheme (`timm:NAME`) or the suffix (`FILE.onnx`) of a spec."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitdeploy import plugins
from vitdeploy.data.example_inputs import ExampleInputs
from vitdeploy.data.pixel_check import OwnProcessor
from vitdeploy.data.point_prompts import Prompt
from vitdeploy.errors import SourceError
from vitdeploy.evidence import CheckpointUse
from vitdeploy.recipe import Frozen, ModelSpec, Preprocess, TaskSpec
from vitdeploy.session import Array
from vitdeploy.sources._hub import no_network

if TYPE_CHECKING:
    from torch import nn

WeightsOrigin = Literal["pretrained", "random", "file", "own"]
ModelPrecision = Literal["float32", "float16", "bfloat16", "quantized"]

_FILE_PLUGIN = "file"  # the plug-in of FILE.onnx is onnxfile.py, of FILE.pt2 pt2file.py
_LIBRARIES = {"transformers": "hf"}  # library -> extra that installs it; all others come with "export"
_OWN_LIBRARIES = {
    "torch", "torchvision", "timm", "transformers", "huggingface_hub", "safetensors", "onnx", "onnx_ir", "onnxscript",
}  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model with all facts that later stages need; either `module` or `onnx` is set.

    Attributes:
        weights: their origin; "own" if they come from a `python:` factory, a FILE.onnx or a FILE.pt2.
        digest: sha256 of all parameters and buffers, or of the ONNX file and its external data.
        parameters: the number of trained numbers.
        preprocess: the steps from an image to the input; `preprocess.size` is the size that the model takes.
        labels: class names in the order of the outputs, if they are known.
        task: the task of the model with its options, if the source knows it.
        input_name: "input" for torch models, "pixel_values" for Hugging Face, the graph's own name for ONNX.
        module: in eval mode, float32, without gradients; it is called with one NCHW float32 tensor.
        onnx: the file of the graph, in float32 unless it is quantized.
        code_digest: digest of what a module computes, without its weights (see `_code_digest`); empty for ONNX.
        processor: the model's own preprocessing, to compare `preprocess` with; None if the source knows none.
        no_processor: the reason why there is none, where one is expected.
        checkpoint: how the checkpoint was read that the weights come from; None if they come from elsewhere.
        assumed: the parts of `preprocess` that the model does not say, by their key: the assumption in words.
        metadata: the facts that the metadata in the model's file gave, in words.
        run_whole: of an encoder: runs the whole model on one image and one prompt.
        make_inputs: of a part that takes no image: returns inputs to compare on, each with a name in words.
        further: examples of the inputs beside the image that stay open, in the order in which the model takes them.
        patch: height and width of the patches of a model whose image size varies; None if they are not known.
        outputs: the names of the outputs to keep, in the model's order; None: all. The graph in `onnx` has no others.
        precision: the numbers that the file came with. Float16 and bfloat16 are raised to float32; a quantized file
            stays as it is.
        license: that of pretrained weights, as their library or model card names it; empty if it is not known.
    """

    weights: WeightsOrigin
    digest: str
    parameters: int
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    input_name: str
    task: TaskSpec | None = None
    module: nn.Module | None = None
    onnx: Path | None = None
    code_digest: str = ""
    processor: OwnProcessor | None = None
    no_processor: str = ""
    checkpoint: CheckpointUse | None = None
    assumed: Mapping[str, str] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()
    run_whole: Callable[[Array, Prompt], dict[str, Array]] | None = None
    make_inputs: Callable[[], list[tuple[str, dict[str, Array]]]] | None = None
    further: ExampleInputs = field(default_factory=ExampleInputs)
    patch: tuple[int, int] | None = None
    outputs: tuple[str, ...] | None = None
    precision: ModelPrecision = "float32"
    license: str = ""


class Source(Frozen, ABC):
    """A way to get a model. In all methods `argument` is the spec without its scheme."""

    runs_code: ClassVar[bool] = False
    """True if loading runs code that the argument names, and not only installed libraries."""
    takes_size_range: ClassVar[bool] = False
    """True if a model of it may take images of several sizes."""

    takes_inputs: ClassVar[bool] = False
    """True if a model of it may take inputs beside the image."""
    takes_prompts: ClassVar[bool] = False
    """True if a model of it may have a text tower."""

    takes_parts: ClassVar[bool] = False
    """True if a part of a model of it can be exported alone."""

    @abstractmethod
    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the model that `argument` names, for images of `size` (height, width).

        Raises:
            SourceError: there is no such model, no such weights, or the weights or the size do not fit.
        """

    def list_parts(self, argument: str, spec: ModelSpec) -> tuple[str, ...]:  # noqa: ARG002  few models have parts
        """Return the parts that the model is exported in; none if it is one artifact."""
        return ()

    def default_data(self, argument: str) -> str | None:  # noqa: ARG002  few models come with data
        """Return the DATA that comes with the model, to calibrate and evaluate on; None if there is none."""
        return None

    def short_name(self, argument: str) -> str:
        """Return a short name of the model, for the name of the output folder."""
        return Path(argument.rpartition(":")[2]).name

    def is_quantized(self, argument: str) -> bool:  # noqa: ARG002  only files can be
        """Return True if the model computes in integers already, so that its precision cannot be chosen."""
        return False

    def anchor(self, argument: str, folder: Path) -> str:  # noqa: ARG002  most arguments are not paths
        """Make a relative path in the argument absolute; it is relative to `folder`, the recipe's."""
        return argument


class FileSource(Source, ABC):
    """A model in one file, found by its suffix: `onnxfile.py` opens `FILE.onnx`."""

    def short_name(self, argument: str) -> str:
        """Return the name of the file, without its suffix."""
        return Path(argument).stem

    def anchor(self, argument: str, folder: Path) -> str:
        """Return the path of the file below `folder`."""
        return str(folder / argument)


def runs_code(spec: str) -> bool:
    """Return True if loading this model runs code that the spec names.

    Raises:
        SourceError: the spec has none of the known forms.
    """
    return _find(spec)[0].runs_code


def find_file(spec: str) -> Path | None:
    """Return the file that this model is in; None if it comes from a library or from code.

    Raises:
        SourceError: the spec has none of the known forms.
    """
    source, argument = _find(spec)
    return Path(argument).expanduser() if isinstance(source, FileSource) else None


def load_received(spec: ModelSpec, *, size: tuple[int, int] | None = None) -> LoadedModel:
    """Load a model that an artifact names, which may come from anyone: with installed code, and without the network.

    Raises:
        SourceError: the model runs code, its arguments name a file or an address, or it is not in a local cache; and
            see `load`.
    """
    if runs_code(spec.spec):
        raise SourceError(
            f"this artifact's model is {spec.spec}: its code does not run unless you give --model or --trust-code",
            fix=f"Give --model {spec.spec} if this is your model, or --trust-code if you trust the artifact.",
        )
    refuse_paths(spec)
    with no_network():
        return load(spec, size=size)


def refuse_paths(spec: ModelSpec) -> None:
    """Refuse arguments of a received model that name a file or an address.

    Raises:
        SourceError: there is such an argument.
    """
    for name, path in spec.fixed_inputs.items():
        if isinstance(path, str):
            raise SourceError(
                f"this artifact's model has the input {name} in the file {path!r}",
                fix="If you trust the artifact: --trust-code.",
            )
    for name, text in _texts(spec.kwargs, ""):
        if "/" in text or "\\" in text or text.startswith("~"):
            raise SourceError(
                f"this artifact's model has the argument {name}={text!r}, which may name a file or an address",
                fix="If you trust the artifact: --trust-code.",
            )


def load(spec: ModelSpec, *, size: tuple[int, int] | None = None) -> LoadedModel:
    """Load the model of `spec`, ready to export; `size` is (height, width), by default the model's own.

    Raises:
        SourceError: the spec has none of the known forms, or the model or its weights are not available.
        GraphError: an ONNX file is damaged or has no image input.
    """
    source, argument = _find(spec.spec)
    if isinstance(source, FileSource) and (spec.num_classes is not None or spec.weights_key is not None):
        raise SourceError(
            f"{spec.spec} has its weights and classes in it", fix="Leave out --num-classes, --weights-key and --ema."
        )
    if spec.size_range is not None and not source.takes_size_range:
        raise SourceError(
            f"{spec.spec} is exported for one image size, so it cannot take {spec.size_range}",
            fix="Give one size with --image-size HxW, or a FILE.onnx whose height and width vary.",
        )
    further = [*spec.fixed_inputs, *spec.open_inputs]
    if further and not source.takes_inputs:
        raise SourceError(f"{spec.spec} takes images only", fix=f"Leave out the input {', '.join(further)}.")
    if spec.prompts is not None and not source.takes_prompts:
        raise SourceError(
            f"{spec.spec} has no text tower, so it has no prompts",
            fix="Leave out --prompts, or give hf: with a model with two towers, such as CLIP.",
        )
    if spec.part is not None and not source.takes_parts:
        raise SourceError(f"{spec.spec} has no parts: it is exported whole", fix="Leave out --part.")
    from vitdeploy.sources import _weights

    try:
        model = source.load(argument, spec, size)
    except _weights.Misfit as misfit:
        from vitdeploy.sources._nearest import explain

        raise explain(misfit, spec.spec) from None
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _OWN_LIBRARIES:
            raise
        extra = _LIBRARIES.get(library, "export")
        raise SourceError(
            f"{spec.spec} needs {library}, which is not installed", fix=f"Install it: pip install 'vitdeploy[{extra}]'."
        ) from None
    if spec.weights_key is not None and model.checkpoint is None:
        raise SourceError(
            f"--weights-key and --ema choose a part of a checkpoint, and {spec.spec} has none",
            fix="Give --weights FILE.",
        )
    from vitdeploy.sources._overrides import override

    left = {key: text for key, text in model.assumed.items() if key not in spec.overrides}
    model = replace(model, preprocess=override(model.preprocess, spec, sized=size is not None), assumed=left)
    return keep_outputs(model, spec.outputs) if isinstance(spec.outputs, tuple) else model


def keep_outputs(model: LoadedModel, names: tuple[str, ...]) -> LoadedModel:
    """Return the model with these outputs alone. A graph is written anew without the others; a module runs as before.

    Raises:
        SourceError: the graph has no such output. A module says so when it runs.
    """
    if model.onnx is None:
        return replace(model, outputs=names)
    from vitdeploy.sources._onnx_outputs import write_outputs

    return replace(model, outputs=names, onnx=write_outputs(model.onnx, names, model.digest))


def list_parts(spec: ModelSpec) -> tuple[str, ...]:
    """Return the parts that a model is exported in, each an artifact of its own; none if it is one artifact.

    Raises:
        SourceError: the spec has none of the known forms, or the model's config cannot be read.
    """
    source, argument = _find(spec.spec)
    return source.list_parts(argument, spec)


def is_quantized(spec: str) -> bool:
    """Return True if the model of a spec is quantized already. A file that cannot be read is not: loading says why."""
    source, argument = _find(spec)
    return source.is_quantized(argument)


def default_data(spec: str) -> str | None:
    """Return the DATA that comes with the model of a spec; None if there is none."""
    source, argument = _find(spec)
    return source.default_data(argument)


def short_name(spec: str) -> str:
    """Return a short name of the model of a spec."""
    source, argument = _find(spec)
    return source.short_name(argument)


def anchor(spec: str, folder: Path) -> str:
    """Make a relative path in a spec absolute; it is relative to `folder`. An unknown spec stays as it is."""
    try:
        source, argument = _find(spec)
    except SourceError:  # `load` raises it with its message
        return spec
    anchored = source.anchor(argument, folder)
    return anchored if argument == spec else f"{spec.partition(':')[0]}:{anchored}"


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in nested arguments, each with the name of its place."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(str(key), name)
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)


def _find(spec: str) -> tuple[Source, str]:
    """Return the source of a spec, and its argument."""
    name, argument = _split(spec)
    return plugins.find(sys.modules[__name__], name, Source)(), argument  # type: ignore[type-abstract]


def _split(spec: str) -> tuple[str, str]:
    """Return the name of a spec's plug-in, and its argument."""
    known = plugins.names(sys.modules[__name__])
    schemes = [name for name in known if not name.endswith(_FILE_PLUGIN)]
    scheme, colon, argument = spec.partition(":")
    if colon and scheme in schemes and argument:
        return scheme, argument
    by_suffix = f"{Path(spec).suffix.removeprefix('.')}{_FILE_PLUGIN}"
    if by_suffix in known:
        return by_suffix, spec
    from vitdeploy.sources._suggest import suggest

    hint = plugins.did_you_mean(scheme, schemes) if colon and scheme not in schemes else ""
    fix = suggest(spec) or f"Give {', '.join(plugins.forms_in('sources'))}."
    raise SourceError(f"{spec!r} is not a model{hint}", fix=fix)
