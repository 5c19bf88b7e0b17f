"""Open an artifact to run it here, and convert images to its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitdeploy import environment, precision, targets
from vitdeploy.artifact import Artifact, Manifest, TensorSpec
from vitdeploy.artifact.layout import EXAMPLE, GRAPH, SITES, variant_graph, variant_sites
from vitdeploy.artifact.manifest import Placement
from vitdeploy.artifact.quantization import Quantization
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.example_inputs import ExampleInputs, FurtherInput
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import ArtifactError, DataError, TargetUnavailable, UsageError
from vitdeploy.evidence import StreamSetting
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.graph.dialect import Numbers
from vitdeploy.progress import Progress
from vitdeploy.recipe import DECODER, Batch, Recipe, SizeRange, TargetSpec, format_size
from vitdeploy.session import Array, Session
from vitdeploy.targets import Bundle, Compiled

EXAMPLES_OF = "examples."
"""Before the name of an input beside the image, in the file of the stored example: its examples."""


def make_bundle(
    folder: Path,
    numbers: Numbers,
    image: TensorSpec,
    outputs: Sequence[TensorSpec],
    batch: Batch,
    sizes: SizeRange | None,
    excluded: Mapping[str, str],
    further: Sequence[TensorSpec] = (),
    variant: str = "",
) -> Bundle:
    """Return the input of the target's compiler for the target-ready graph in `folder`; `variant` names another one."""
    return Bundle(
        graph=folder / (variant_graph(variant) if variant else GRAPH),
        structure=structures.load(folder / (variant_sites(variant) if variant else SITES)),
        numbers=numbers,
        batch=batch,
        sizes=sizes,
        input_name=image.name,
        input_shape=typical_shape(image, batch, sizes),
        output_names=tuple(output.name for output in outputs),
        excluded=excluded,
        further={spec.name: fill_shape(spec, batch) for spec in further},
        further_types={spec.name: numpy_type(spec) for spec in further},
    )


def read_bundle(folder: Path, manifest: Manifest, variant: str = "") -> Bundle:
    """Return the input of the target's compiler and audit for a bundle or artifact.

    Args:
        folder: of the bundle.
        manifest: with the variant selected.
        variant: read the graph and sites of this variant from their own files.

    Raises:
        UsageError: this version does not know its precision.
    """
    numbers = precision.kind_of(manifest.target.precision).numbers
    excluded = list_excluded(manifest.placement, manifest.quantized)
    batch, sizes = manifest.recipe.target.batch, manifest.recipe.model.size_range
    image, *further = manifest.inputs
    return make_bundle(folder, numbers, image, manifest.outputs, batch, sizes, excluded, further, variant)


def typical_shape(image: TensorSpec, batch: Batch, sizes: SizeRange | None) -> tuple[int, ...]:
    """Return the shape of an image input at the batch and the image size to optimise for."""
    if sizes is not None:
        return (batch.opt, *(d for d in image.shape[1:2] if isinstance(d, int)), *sizes.opt)
    return (batch.opt, *(d for d in image.shape[1:] if isinstance(d, int)))


def fill_shape(spec: TensorSpec, batch: Batch) -> tuple[int, ...]:
    """Return the shape of an input at the batch to optimise for."""
    return tuple(d if isinstance(d, int) else batch.opt for d in spec.shape)


def numpy_type(spec: TensorSpec) -> str:
    """Return the type of a tensor as NumPy names it."""
    return "float32" if spec.dtype in ("float", "unknown") else spec.dtype


def list_excluded(placement: Mapping[str, Placement], record: Quantization | None) -> dict[str, str]:
    """Return the sites that a rule keeps in float, with the rule."""
    in_float = {} if record is None or record.half is None else dict(record.half.float32)
    return in_float | {name: place.rule for name, place in placement.items() if not place.quantized}


def read_compiled(artifact: Artifact) -> Compiled:
    """Return the compiled file of an artifact.

    Raises:
        UsageError: it is a bundle, with nothing compiled yet.
        ArtifactError: it is not a file that its target writes, or the manifest names two targets.
    """
    manifest = artifact.manifest
    if manifest.runs is None or manifest.target.backend is None:
        raise UsageError(
            f"{artifact.path} is a bundle: nothing is compiled yet",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    kind = manifest.recipe.target.kind
    if manifest.target.kind != kind:  # each is read elsewhere, to find the files that belong to the engine
        raise ArtifactError(
            f"{artifact.path}: the manifest names two targets, {kind} in the recipe and {manifest.target.kind} for "
            "what was compiled",
            fix="Export it again.",
        )
    suffix = targets.kind_of(kind).runs_suffix
    if not manifest.runs.endswith(suffix):  # an engine would read it in another format, with other files beside it
        raise ArtifactError(
            f"{artifact.path}: the manifest names {manifest.runs!r} as the file to run, not a file {suffix}",
            fix="Export it again.",
        )
    inputs, outputs = (tuple(spec.name for spec in specs) for specs in (manifest.inputs, manifest.outputs))
    return Compiled(artifact.path, manifest.runs, manifest.target.backend, input_names=inputs, output_names=outputs)


def open_session(
    artifact: Artifact, threads: int | None, progress: Progress | None = None, setting: StreamSetting | None = None
) -> Session:
    """Open an artifact to run it here.

    Args:
        artifact: the artifact.
        threads: the number of threads; None: the recipe's, else all cores.
        progress: gets a warning if the artifact's numbers may differ on this CPU.
        setting: open it for throughput, with these streams; None: for latency, or as the recipe says.

    Raises:
        TargetUnavailable: it is a bundle, or this machine does not have its backend or device.
        ArtifactError: a file was changed since it was hashed.
    """
    manifest = artifact.manifest
    if manifest.stage == "bundle":
        raise TargetUnavailable(
            f"{artifact.path} is a bundle: nothing is compiled yet",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    record = manifest.quantized
    if record is not None and record.weight_bits == 8 and not environment.host().int8_dot_product and progress:
        progress.warn(
            f"{artifact.path} was quantized for CPUs with INT8 dot products. This CPU has none, so sums of u8 x s8 "
            "saturate and accuracy may be lower: run vitdeploy eval on this machine, or export it here"
        )
    if progress and (doubt := doubt_choice(manifest)):
        progress.warn(f"doubt: {artifact.path} {doubt}")
    numbers = precision.kind_of(manifest.target.precision).numbers
    target, compiled = targets.find(manifest.recipe.target), read_compiled(artifact)
    if setting is None or not (target.runs_streams or setting.hint):
        session = target.open(compiled, numbers, threads)
    else:
        session = target.open_streams(compiled, numbers, threads, None if setting.hint else setting.streams)
    try:
        artifact.check_unchanged()
    except ArtifactError:
        session.close()
        raise
    return session


def doubt_choice(manifest: Manifest) -> str:
    """Return the reason to doubt the choice of precision on this CPU; empty if there is none.

    The fastest precision depends on the instruction sets: bfloat16 and INT8 dot products above all.
    """
    chosen_on = manifest.target.host
    timed = any(trial.speedup is not None for trial in manifest.trials) and len(manifest.trials) > 1
    if not timed or chosen_on is None or targets.find(manifest.recipe.target).runs_on != "cpu":
        return ""
    here = environment.host()
    if set(chosen_on.isa) == set(here.isa):
        return ""
    changes = [f"no {name}" for name in chosen_on.isa if name not in here.isa]
    changes += [f"also {name}" for name in here.isa if name not in chosen_on.isa]
    again = "vitdeploy compile DIR chooses again here" if manifest.variants else "export it with --portable"
    return (
        f"was chosen as the fastest on a CPU with other instruction sets (this one has {', '.join(changes)}): {again}"
    )


def check_image_size(artifact: Artifact, size: tuple[int, int]) -> None:
    """Check that an artifact for a range of image sizes accepts images of `size` (height, width).

    Raises:
        UsageError: it does not.
    """
    manifest = artifact.manifest
    sizes, patch = manifest.recipe.model.size_range, manifest.model.patch
    if sizes is None:
        return
    if not sizes.includes(size):
        raise UsageError(
            f"{artifact.path} accepts images of {sizes}, not of {format_size(size)}",
            fix="Resize them, or export it with a wider --image-size MIN:OPT:MAX.",
        )
    if patch is not None and any(side % step for side, step in zip(size, patch, strict=True)):
        raise UsageError(
            f"{artifact.path} cuts images into patches of {format_size(patch)}, and {format_size(size)} is no multiple",
            fix="Resize them to multiples of the patch.",
        )


def set_streams(artifact: Artifact, streams: int | None) -> Artifact:
    """Return the artifact with another number of streams in its recipe; None changes nothing.

    Raises:
        RecipeError: its target does not have the option `streams`.
    """
    if streams is None:
        return artifact
    manifest = artifact.manifest
    target = TargetSpec.model_validate({**manifest.recipe.target.model_dump(), "streams": streams})
    recipe = replace(manifest.recipe, target=target)
    return dataclasses.replace(artifact, manifest=replace(manifest, recipe=recipe))


def count_threads(recipe: Recipe) -> int:
    """Return the recipe's number of threads for `bench` or for its target; else all cores that this process may use."""
    of_target = recipe.target.options.get("threads")
    threads = of_target if recipe.bench.threads == "auto" else recipe.bench.threads
    return threads or environment.available_cores()


def feed(artifact: Artifact, pixels: Array, further: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Convert images (uint8 NCHW) to the artifact's inputs. Timed runs do not include this.

    A part that takes no image gets the inputs that are stored beside it.

    Args:
        artifact: the artifact.
        pixels: the images.
        further: the values of the other inputs; what is missing comes from the stored examples, in turn.
    """
    manifest = artifact.manifest
    if takes_no_image(manifest):
        return read_stored_inputs(artifact)
    images = to_input(pixels, manifest.preprocess, manifest.recipe.target.input)
    return {manifest.inputs[0].name: images, **fill_inputs(artifact, further or {}, len(pixels))}


def open_inputs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Return the inputs beside the image."""
    return () if takes_no_image(manifest) else manifest.inputs[1:]


def describe_input(spec: TensorSpec) -> FurtherInput:
    """Return an input beside the image with the shape of one sample's value."""
    return FurtherInput(spec.name, numpy_type(spec), tuple(int(d) for d in spec.shape[1:]))


def fill_inputs(artifact: Artifact, given: Mapping[str, Array], count: int) -> dict[str, Array]:
    """Return the values of the inputs beside the image for `count` images: the given ones, or the stored examples.

    Raises:
        DataError: the stored examples are damaged.
    """
    names = [spec.name for spec in open_inputs(artifact.manifest)]
    if all(name in given for name in names):
        return {name: given[name] for name in names}
    stored = read_example_inputs(artifact).take(count)
    return {name: given.get(name, stored[name]) for name in names}


def read_example_inputs(artifact: Artifact) -> ExampleInputs:
    """Return the stored examples of the inputs beside the image.

    Raises:
        DataError: they are damaged.
    """
    fix, path = "Export the artifact again.", artifact.file(EXAMPLE)
    names = [spec.name for spec in open_inputs(artifact.manifest)]
    if not names:
        return ExampleInputs()
    arrays = read_npz(path, fix)
    missing = [name for name in names if not len(arrays.get(f"{EXAMPLES_OF}{name}", ()))]
    if missing:
        raise DataError(f"{path} has no examples of the input {missing[0]}", fix=fix)
    return ExampleInputs({name: arrays[f"{EXAMPLES_OF}{name}"] for name in names})


def takes_no_image(manifest: Manifest) -> bool:
    """Return True for the decoder of a family, whose inputs are those of its encoder and a prompt."""
    return manifest.recipe.model.part == DECODER


def refuse_decoder(artifact: Artifact, command: str) -> None:
    """Refuse the decoder of a family where a command runs images.

    Raises:
        UsageError: the artifact is one.
    """
    if takes_no_image(artifact.manifest):
        raise UsageError(
            f"{artifact.path} is the decoder of a family: without its encoder it takes no image",
            fix=f"Give the family, the folder with encoder and decoder: vitdeploy {command} FAMILY.",
        )


def read_stored_inputs(artifact: Artifact) -> dict[str, Array]:
    """Return the inputs of the stored example.

    Raises:
        DataError: they are damaged.
    """
    fix = "Export the artifact again."
    path = artifact.file(EXAMPLE)
    arrays = read_npz(path, fix)
    names = [spec.name for spec in artifact.manifest.inputs]
    stored = {name: arrays.get(f"input.{name}" if place else "input") for place, name in enumerate(names)}
    missing = [name for name, value in stored.items() if value is None]
    if missing:
        raise DataError(f"{path} has no input {missing[0]}", fix=fix)
    return {name: value for name, value in stored.items() if value is not None}


def make_shared_images(artifacts: Sequence[Artifact], batch: int) -> Array:
    """Make images that fit all artifacts: uint8 NCHW.

    Raises:
        UsageError: their inputs have different shapes, or one does not accept this batch size.
    """
    first = artifacts[0].manifest
    shapes = {a.manifest.preprocess.sample_shape for a in artifacts}
    if len(shapes) > 1:
        raise UsageError(
            "the inputs of the artifacts have different shapes", fix="Compare artifacts of one model and image size."
        )
    for artifact in artifacts:
        allowed = artifact.manifest.recipe.target.batch
        if not allowed.min <= batch <= allowed.max:
            raise UsageError(
                f"{artifact.path} accepts batches of {allowed}, not of {batch}",
                fix="Give a --batch that all artifacts accept, or export with --batch MIN:OPT:MAX.",
            )
    return natural_image(0, first.preprocess, batch)
