"""Open an artifact to run it here, and give it images in the form that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact, Manifest, TensorSpec
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import (
    TargetUnavailable,
    UsageError,
)
from vitdeploy.graph import structure as structures
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch, Recipe, TargetSpec
from vitdeploy.session import Array, Session
from vitdeploy.targets import Bundle, Compiled


def target_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """What the target's compiler and audit are given."""
    return bundle_of(folder, manifest.target.precision, manifest.inputs[0], manifest.recipe.target.batch)


def bundle_of(folder: Path, precision: str, image: TensorSpec, batch: Batch) -> Bundle:
    """The same, of a target-ready graph that is not an artifact yet."""
    shape = (batch.opt, *(d for d in image.shape[1:] if isinstance(d, int)))
    return Bundle(
        graph=folder / GRAPH,
        structure=structures.load(folder / SITES),
        precision=precision,
        batch=batch,
        input_name=image.name,
        input_shape=shape,
    )


def compiled_of(artifact: Artifact) -> Compiled:
    """What was compiled into a loaded artifact."""
    manifest = artifact.manifest
    if manifest.runs is None or manifest.target.backend is None:
        raise UsageError(f"{artifact.path} is a bundle", fix=f"On the device run: vitdeploy compile {artifact.path}")
    return Compiled(artifact.path, manifest.runs, manifest.target.backend)


def same_images(loaded: Sequence[Artifact]) -> Array:
    """Images that all artifacts take, uint8 NCHW, at the batch the first is optimised for.

    Raises:
        UsageError: they take inputs of different shapes.
    """
    first = loaded[0].manifest
    if any(a.manifest.inputs[0].shape != first.inputs[0].shape for a in loaded):
        raise UsageError(
            "the artifacts take inputs of different shapes", fix="Compare those of one model and one batch."
        )
    return natural_image(0, first.preprocess, first.recipe.target.batch.opt)


def with_streams(artifact: Artifact, streams: int | None) -> Artifact:
    """The artifact, to be opened with so many streams; a target that has none refuses the option by name."""
    if streams is None:
        return artifact
    manifest = artifact.manifest
    target = TargetSpec.model_validate({**manifest.recipe.target.model_dump(), "streams": streams})
    recipe = manifest.recipe.model_copy(update={"target": target})
    return Artifact(artifact.path, manifest.model_copy(update={"recipe": recipe}), artifact.digest)


def feeds(artifact: Artifact, pixels: Array) -> dict[str, Array]:
    """The images in the form that the artifact takes; turning them into it is no part of a timed run."""
    manifest = artifact.manifest
    return {manifest.inputs[0].name: to_input(pixels, manifest.preprocess, manifest.recipe.target.input)}


def open_session(artifact: Artifact, threads: int | None, progress: Progress | None = None) -> Session:
    """Open an artifact to run it here; `progress` is told when its numbers may differ on this CPU.

    Raises:
        TargetUnavailable: it is a bundle, or its backend or device is not here.
    """
    manifest = artifact.manifest
    if manifest.stage == "bundle":
        raise TargetUnavailable(
            f"{artifact.path} is a bundle: nothing is compiled yet",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    if (
        progress is not None
        and manifest.quantized.get("weight_bits") == "8"
        and not environment.host().int8_dot_product
    ):
        progress.warn(
            f"{artifact.path} was quantized on a CPU with INT8 dot products; this one saturates sums of u8 x s8: its "
            "accuracy may be lower here, so evaluate it here, or export it on this machine"
        )
    return targets.find(manifest.recipe.target).open(compiled_of(artifact), manifest.target.precision, threads)


def threads_of(recipe: Recipe) -> int:
    """What the recipe says for measuring or for its target, else all cores that this process may use."""
    own = recipe.target.options.get("threads")
    found = own if recipe.bench.threads == "auto" else recipe.bench.threads
    return found or environment.available_cores()
