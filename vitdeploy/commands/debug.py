"""`vitdeploy debug`: find where FP32 and an artifact part, at block ends, then inside the first block that is off."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.data.dataset import batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import DataError, MeasureError, UsageError
from vitdeploy.evidence import Comparison, Divergence
from vitdeploy.measure import divergence
from vitdeploy.measure.divergence import Step
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import read_compiled
from vitdeploy.session import Array, Session
from vitdeploy.targets import WatchedSession

if TYPE_CHECKING:
    from vitdeploy.graph.blocks import Part, Spot
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.sqnr import Noise

IMAGES = 8

_MOVED = {
    "norm": "migration divides its channels",
    "values": "migration may divide its values",
    "attention": "migration may divide its values",
}
"""Kinds of tensors that mean something else once outliers have been migrated."""


def debug(
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    images: int = IMAGES,
    cache: GraphCache | None = None,
) -> Divergence:
    """Compare the float32 graph and what runs as the artifact on the same images.

    Args:
        artifact: of a bundle, or where the target gives no tensors, its graph is run on this CPU.
        data: DATA; None takes what the recipe evaluates or calibrates on.
        progress: told about the steps.
        images: how many are looked at.
        cache: where the float32 graph may have been kept.

    Raises:
        UsageError: no data was named, here or in the recipe.
        DataError: there is no image.
        SourceError: the model cannot be had here.
        MeasureError: it is another model now, or no tensor is in both.
        TargetUnavailable: the backend is not here.
    """
    manifest = artifact.manifest
    spec = data or manifest.recipe.data.evaluation or manifest.recipe.data.calibration
    if spec is None:
        raise UsageError("there is nothing to compare on", fix="Give --data DATA: a folder of images, or an .npz.")
    feeds = _Feeds(artifact, spec, images)
    with tempfile.TemporaryDirectory(prefix="vitdeploy-debug-") as work:
        from vitdeploy.graph.blocks import find_parts

        prepared = rebuild_graph(manifest, Path(work), progress, cache=cache)
        model_parts = find_parts(prepared.graph, prepared.structure)
        sides = _Sides(artifact, prepared.graph, feeds, Path(work), progress)
        ends = sides.compare([part.end for part in model_parts], "Compare block ends")
        if not ends.noises:
            raise MeasureError("no block end is in what runs", fix="Export it again with this version.")
        blocks, steps = _compare_blocks(model_parts, ends)
        place = divergence.find_divergence(steps)
        shown = place if place is not None else divergence.find_noisiest(steps)
        assert shown is not None
        layers, culprit = _compare_inside(model_parts[shown], sides)
        apart, layer, part = place is not None, None if culprit is None else layers[culprit], model_parts[shown]
        block = blocks[shown]
        return Divergence(
            target=manifest.target.kind,
            precision=manifest.target.precision,
            block=part.name if apart else None,
            layer=layer.name if apart and layer is not None else None,
            why=_explain(block, layer, sides, part) if apart else _explain_agreement(block),
            rule=divergence.RULE,
            blocks=tuple(blocks),
            layers=tuple(layers),
            images=ends.images,
            data=spec,
            evidence=ends.watched.evidence,
            how=ends.watched.how,
        )


@dataclass(frozen=True)
class _Tensors:
    """The noise of tensors that both sides have, by name, and what ran as the artifact."""

    noises: dict[str, Noise]
    watched: WatchedSession
    images: int
    shapes: dict[str, str]
    """Tensors whose shapes differ, with both."""

    def why_missing(self, tensor: str) -> str:
        """Return why a tensor could not be compared."""
        return self.shapes.get(tensor, "it is no tensor of what runs")

    def sqnr_db(self, tensor: str) -> float | None:
        return self.noises[tensor].sqnr_db if tensor in self.noises else None


class _Feeds:
    """Images in the form and batch size that both graphs take."""

    def __init__(self, artifact: Artifact, spec: str, images: int) -> None:
        self._artifact = artifact
        self._dataset = open_dataset(
            spec, artifact.manifest.preprocess, labels=None, need_labels=False, split="evaluation"
        )
        self.size = artifact.manifest.recipe.target.batch.min
        self.count = -(-min(images, len(self._dataset)) // self.size)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        manifest = self._artifact.manifest
        stream = batches(self._dataset, self.size, limit=self.count * self.size)
        for pixels, _ in islice(stream, self.count):
            short = self.size - len(pixels)
            filled = np.concatenate([pixels, np.repeat(pixels[-1:], short, axis=0)]) if short else pixels
            yield {manifest.inputs[0].name: to_input(filled, manifest.preprocess, manifest.recipe.target.input)}


class _Sides:
    """Both sides of an artifact, opened anew for each set of tensors: reading fewer leaves more of the fusion."""

    def __init__(self, artifact: Artifact, reference: Graph, feeds: _Feeds, work: Path, progress: Progress) -> None:
        record = artifact.manifest.quantized
        self.migrated = record is not None and record.migration is not None
        self._artifact = artifact
        self._reference = reference
        self._feeds = feeds
        self._work = work
        self._progress = progress

    def compare(self, tensors: Sequence[str], title: str) -> _Tensors:
        """Run both on all images, and compare those of `tensors` that both have."""
        from vitdeploy.graph.sqnr import Noise

        with ExitStack() as stack, self._progress.step(title, self._feeds.count) as advance:
            reference = stack.enter_context(self._float32(tensors))
            watched = self._watch(tensors)
            stack.enter_context(watched.session)
            compared = _Tensors({}, watched, self._feeds.count * self._feeds.size, {})
            for feeds in self._feeds:
                ours, theirs = reference.run(feeds), watched.session.run(feeds)
                for name in (t for t in tensors if t in watched.tensors):
                    if ours[name].shape != theirs[name].shape:
                        compared.shapes[name] = f"its shape is {theirs[name].shape}, not {ours[name].shape}"
                        continue
                    compared.noises.setdefault(name, Noise()).add(ours[name], theirs[name])
                advance(1)
            if not compared.noises and not compared.shapes and not self._feeds.count:
                raise DataError("there is no image to compare on", fix="Give --data a folder with images.")
        return compared

    def first_nonfinite(self, part: Part) -> str | None:
        """Return the first tensor in this part of the target-ready graph that is NaN or infinite."""
        from vitdeploy.graph.extra_outputs import tensors_between

        tensors = tensors_between(self._artifact.file(GRAPH), part.start, part.end)
        watched = self._watch(tensors)
        with watched.session as session:
            for feeds in self._feeds:
                outputs = session.run(feeds)
                for name in (t for t in tensors if t in watched.tensors):
                    values = outputs[name]
                    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                        return name
        return None

    def _float32(self, tensors: Sequence[str]) -> Session:
        from vitdeploy.graph.extra_outputs import with_outputs
        from vitdeploy.graph.onnx_session import OnnxSession

        with_outputs(self._reference, tensors, self._work / "reference.onnx")
        return OnnxSession(self._work / "reference.onnx", lean=True)

    def _watch(self, tensors: Sequence[str]) -> WatchedSession:
        manifest = self._artifact.manifest
        compiled = read_compiled(self._artifact) if manifest.stage == "artifact" else None
        target = targets.find(manifest.recipe.target)
        return target.watch(self._artifact.file(GRAPH), compiled, tensors, self._work)


def _compare_blocks(model_parts: Sequence[Part], ends: _Tensors) -> tuple[list[Comparison], list[Step]]:
    """Compare the end of each part; one whose end cannot be compared leaves its noise to the next."""
    from vitdeploy.graph.sqnr import MOST_DB

    rows, steps, before = [], [], MOST_DB
    for part in model_parts:
        sqnr = ends.sqnr_db(part.end)
        steps.append(Step(sqnr, before, alike=part.block is not None))
        rows.append(_row(part.name, part.end, "end", steps[-1], ends))
        before = before if sqnr is None else sqnr
    return rows, steps


def _compare_inside(part: Part, sides: _Sides) -> tuple[list[Comparison], int | None]:
    """Compare what is computed in a part, and return the place where the noise comes in."""
    spots = [spot for spot in part.spots if not _why_skipped(spot, part, sides)]
    tensors = sides.compare([part.start, *(spot.tensor for spot in spots)], f"Compare the layers of {part.name}")
    steps, rows = [], []
    for spot in part.spots:
        skipped = _why_skipped(spot, part, sides)
        sqnr = None if skipped else tensors.sqnr_db(spot.tensor)
        step = Step(sqnr, _noise_before(spot, part, tensors), alike=spot.kind in ("linear", "values", "attention"))
        steps.append(step)
        rows.append(_row(spot.layer, spot.tensor, spot.kind, step, tensors, skipped))
    at = divergence.find_divergence(steps)
    return rows, at if at is not None else divergence.find_noisiest(steps)


def _why_skipped(spot: Spot, part: Part, sides: _Sides) -> str:
    return _MOVED.get(spot.kind, "") if sides.migrated and spot.tensor != part.end else ""


def _noise_before(spot: Spot, part: Part, tensors: _Tensors) -> float:
    """Return the worst ratio among what a spot reads; where that cannot be compared, among what that reads."""
    from vitdeploy.graph.sqnr import MOST_DB

    by_tensor = {s.tensor: s for s in part.spots}
    worst, pending, visited = MOST_DB, list(spot.reads), set(spot.reads)
    while pending:
        tensor = pending.pop()
        sqnr = tensors.sqnr_db(tensor)
        if sqnr is not None:
            worst = min(worst, sqnr)
        elif tensor in by_tensor:
            pending += set(by_tensor[tensor].reads) - visited
            visited.update(by_tensor[tensor].reads)
    return worst


def _row(name: str, tensor: str, kind: str, step: Step, tensors: _Tensors, skipped: str = "") -> Comparison:
    from vitdeploy.graph.sqnr import decibels

    if step.sqnr_db is None:
        return Comparison(name=name, tensor=tensor, kind=kind, note=skipped or tensors.why_missing(tensor))
    noise = tensors.noises[tensor]
    return Comparison(
        name=name,
        tensor=tensor,
        kind=kind,
        sqnr_db=step.sqnr_db,
        adds_db=decibels(1.0, step.added),
        cosine=noise.cosine,
        max_abs=noise.max_abs if np.isfinite(noise.max_abs) else None,
        reference_max=noise.reference_max,
        nonfinite=noise.nonfinite,
    )


def _explain(block: Comparison, layer: Comparison | None, sides: _Sides, part: Part) -> str:
    if block.nonfinite:
        first = sides.first_nonfinite(part)
        return f"{block.name} gives NaN or infinity" + (f"; the first tensor that does is {first}" if first else "")
    sentence = f"{block.name} ends at {block.sqnr_db:.1f} dB and adds noise of {block.adds_db:.1f} dB"
    return sentence if layer is None else f"{sentence}; in it {layer.name} adds {layer.adds_db:.1f} dB"


def _explain_agreement(most: Comparison) -> str:
    return f"they do not part; {most.name} adds most noise, {most.adds_db:.1f} dB"
