"""`vitdeploy debug`: find the block and the layer at which FP32 and an artifact diverge."""

from __future__ import annotations

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
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.debug_on_device import debug_on_device
from vitdeploy.data.dataset import named_batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import DataError, MeasureError, UsageError
from vitdeploy.evidence import Comparison, Divergence
from vitdeploy.measure import divergence
from vitdeploy.measure.divergence import Step
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import (
    describe_input,
    feed,
    open_inputs,
    read_bundle,
    read_compiled,
    refuse_decoder,
)
from vitdeploy.session import Array, Session
from vitdeploy.targets import WatchedSession

if TYPE_CHECKING:
    from vitdeploy.graph.blocks import Part, Spot
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.sqnr import Noise

COMPARED_IMAGES = 8

_MIGRATED = {
    "norm": "migration divides its channels",
    "values": "migration may divide its values",
    "attention": "migration may divide its values",
}
"""Kinds of tensors that cannot be compared after outliers have been migrated, with the reason."""


def debug(
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    images: int = COMPARED_IMAGES,
    cache: GraphCache | None = None,
) -> Divergence:
    """Compare the tensors of the float32 graph and of the artifact on the same images.

    If the target cannot return inner tensors, or it is a bundle, the artifact's graph runs on this CPU instead. On a
    device with a GPU the engine is compared with the values that its bundle brought, unless `data` names images.

    Args:
        artifact: an artifact or bundle.
        data: DATA; None is the recipe's data for evaluation, or else for calibration.
        progress: gets the steps and warnings.
        images: the number of images.
        cache: the cache of exported graphs, which may have the float32 graph.

    Raises:
        UsageError: no data is named, here or in the recipe.
        DataError: there is no image.
        SourceError: the model cannot be loaded here.
        MeasureError: its weights have changed since the export, or no tensor is in both graphs.
        TargetUnavailable: the backend is not installed here.
    """
    refuse_decoder(artifact, "eval")
    if (compared := debug_on_device(artifact, data, progress)) is not None:
        return compared
    manifest = artifact.manifest
    spec = data or manifest.recipe.data.evaluation or manifest.recipe.data.calibration
    if spec is None:
        raise UsageError("there are no images to compare on", fix="Give --data DATA: a folder of images, or an .npz.")
    feeds = _Feeds(artifact, spec, images)
    with scratch_folder("debug") as work:
        from vitdeploy.graph.blocks import find_parts

        prepared = rebuild_graph(artifact, work, progress, cache=cache)
        model_parts = find_parts(prepared.graph, prepared.structure)
        sides = _Sides(artifact, prepared.graph, feeds, work, progress)
        ends = sides.compare([part.end for part in model_parts], "Compare block ends")
        if not ends.noises:
            raise MeasureError("no block end is in the graph that runs", fix="Export it again with this version.")
        blocks, steps = _compare_blocks(model_parts, ends)
        diverging = divergence.find_divergence(steps)
        number = diverging if diverging is not None else divergence.find_noisiest(steps)
        assert number is not None
        block, part = blocks[number], model_parts[number]
        layers, layer_number = _compare_inside(part, sides)
        layer = layers[layer_number] if layer_number is not None and diverging is not None else None
        return Divergence(
            target=manifest.target.kind,
            precision=manifest.target.precision,
            block=part.name if diverging is not None else None,
            layer=layer.name if layer is not None else None,
            why=_explain(block, layer, sides, part) if diverging is not None else _explain_agreement(block),
            selected_alike_pct=sides.common_pct,
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
    """The noise of tensors that both sides have, by name, and the session that ran as the artifact."""

    noises: dict[str, Noise]
    watched: WatchedSession
    images: int
    shapes: dict[str, str]
    """Messages about tensors whose shapes differ."""

    def explain_missing(self, tensor: str) -> str:
        """Return the reason why a tensor could not be compared."""
        return self.shapes.get(tensor, "the graph that runs does not have it")

    def sqnr_db(self, tensor: str) -> float | None:
        return self.noises[tensor].sqnr_db if tensor in self.noises else None


class _Feeds:
    """Images in the form and batch size that both graphs take, as an iterable of feeds."""

    def __init__(self, artifact: Artifact, spec: str, images: int) -> None:
        self._artifact = artifact
        self._dataset = open_dataset(
            spec, artifact.manifest.preprocess, labels=None, need_labels=False, split="evaluation",
            inputs=[describe_input(each) for each in open_inputs(artifact.manifest)],
        )  # fmt: skip
        self.size = artifact.manifest.recipe.target.batch.min
        self.count = -(-min(images, len(self._dataset)) // self.size)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        stream = named_batches(self._dataset, self.size, limit=self.count * self.size)
        for batch in islice(stream, self.count):
            further = {name: self._fill(value) for name, value in batch.further.items()}
            yield feed(self._artifact, self._fill(batch.images), further)

    def _fill(self, values: Array) -> Array:
        """Repeat the last sample up to the batch size."""
        missing = self.size - len(values)
        return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


class _Sides:
    """FP32 and the artifact, opened again for each set of tensors: the fewer are read, the more fusion is left.

    Behind a selection by score, only rows that both sides have selected are compared. `common_pct` is their share.
    """

    def __init__(self, artifact: Artifact, reference: Graph, feeds: _Feeds, work: Path, progress: Progress) -> None:
        record = artifact.manifest.quantized
        self.migrated = record is not None and record.migration is not None
        self._artifact = artifact
        self._reference = reference
        self._feeds = feeds
        self._work = work
        self._progress = progress
        self._indices = _find_indices(reference)
        self._selected_rows = self._common_rows = 0
        self.common_pct: float | None = None

    def compare(self, tensors: Sequence[str], title: str) -> _Tensors:
        """Run both sides on all images, and compare those of `tensors` that both have."""
        from vitdeploy.graph.row_matching import take_common_rows
        from vitdeploy.graph.selection import find_selected
        from vitdeploy.graph.sqnr import Noise

        selected = find_selected(self._reference, tensors) if self._indices is not None else {}
        tensors = [*tensors, self._indices] if self._indices is not None and selected else tensors
        with ExitStack() as stack, self._progress.step(title, self._feeds.count) as advance:
            session, known = self._open_float32(tensors)
            reference = stack.enter_context(session)
            watched = self._watch(tensors)
            stack.enter_context(watched.session)
            result = _Tensors({}, watched, self._feeds.count * self._feeds.size, {})
            for feeds in self._feeds:
                expected, actual = reference.run(feeds), watched.session.run(feeds)
                indices = self._compare_selections(expected, actual) if self._indices in watched.tensors else None
                for name in (t for t in tensors if t in watched.tensors & known and t != self._indices):
                    if expected[name].shape != actual[name].shape:
                        result.shapes[name] = f"its shape is {actual[name].shape}, not {expected[name].shape}"
                        continue
                    pair = expected[name], actual[name]
                    if name in selected and indices is not None:
                        pair = take_common_rows(*pair, selected[name], indices)
                    result.noises.setdefault(name, Noise()).add(*pair)
                advance(1)
            if not result.noises and not result.shapes and not self._feeds.count:
                raise DataError("there is no image to compare on", fix="Give --data a folder with images.")
        return result

    def _compare_selections(self, expected: dict[str, Array], actual: dict[str, Array]) -> tuple[Array, Array] | None:
        """Return what each side has selected, (images, rows), and note the share of common rows."""
        one, two = (np.asarray(side[self._indices or ""]) for side in (expected, actual))
        if one.ndim != 2 or one.shape != two.shape:
            return None
        self._selected_rows += one.size
        self._common_rows += sum(len(np.intersect1d(a, b)) for a, b in zip(one, two, strict=True))
        self.common_pct = 100.0 * self._common_rows / self._selected_rows
        return one, two

    def find_first_nonfinite(self, part: Part) -> str | None:
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

    def _open_float32(self, tensors: Sequence[str]) -> tuple[Session, frozenset[str]]:
        """Return the float32 graph, and those of `tensors` that it computes: an input, where a part starts, is none."""
        from vitdeploy.graph.extra_outputs import with_outputs
        from vitdeploy.graph.onnx_session import OnnxSession

        known = with_outputs(self._reference, tensors, self._work / "reference.onnx")
        return OnnxSession(self._work / "reference.onnx", lean=True), known

    def _watch(self, tensors: Sequence[str]) -> WatchedSession:
        manifest = self._artifact.manifest
        compiled = read_compiled(self._artifact) if manifest.stage == "artifact" else None
        target = targets.find(manifest.recipe.target)
        return target.watch(read_bundle(self._artifact.path, manifest), compiled, tensors, self._work)


def _find_indices(graph: Graph) -> str | None:
    """Return the tensor of the indices that the model selects rows by; None without a single selection."""
    from vitdeploy.graph.forced_selection import list_selections

    selections = list_selections(graph)
    nodes = [node for node in graph.nodes if node.name in selections]
    return nodes[0].outputs[1].name if len(nodes) == 1 else None


def _compare_blocks(model_parts: Sequence[Part], ends: _Tensors) -> tuple[list[Comparison], list[Step]]:
    """Compare the end of each part. The noise of a part whose end cannot be compared is counted in the next one."""
    from vitdeploy.graph.sqnr import MOST_DB

    rows, steps, before = [], [], MOST_DB
    for part in model_parts:
        sqnr = ends.sqnr_db(part.end)
        steps.append(Step(sqnr, before, alike=part.block is not None))
        rows.append(_row(part.name, part.end, "end", steps[-1], ends))
        before = before if sqnr is None else sqnr
    return rows, steps


def _compare_inside(part: Part, sides: _Sides) -> tuple[list[Comparison], int | None]:
    """Compare the tensors inside a part, and return the index of the one that adds the noise."""
    spots = [spot for spot in part.spots if not _explain_skipped(spot, part, sides)]
    tensors = sides.compare([part.start, *(spot.tensor for spot in spots)], f"Compare the layers of {part.name}")
    steps, rows = [], []
    for spot in part.spots:
        skipped = _explain_skipped(spot, part, sides)
        sqnr = None if skipped else tensors.sqnr_db(spot.tensor)
        step = Step(sqnr, _noise_before(spot, part, tensors), alike=spot.kind in ("linear", "values", "attention"))
        steps.append(step)
        rows.append(_row(spot.layer, spot.tensor, spot.kind, step, tensors, skipped))
    number = divergence.find_divergence(steps)
    return rows, number if number is not None else divergence.find_noisiest(steps)


def _explain_skipped(spot: Spot, part: Part, sides: _Sides) -> str:
    """Return the reason why a spot is not compared; an empty string if it is."""
    return _MIGRATED.get(spot.kind, "") if sides.migrated and spot.tensor != part.end else ""


def _noise_before(spot: Spot, part: Part, tensors: _Tensors) -> float:
    """Return the worst ratio among a spot's inputs; for inputs that cannot be compared, among their own inputs."""
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
        return Comparison(name=name, tensor=tensor, kind=kind, note=skipped or tensors.explain_missing(tensor))
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
        first = sides.find_first_nonfinite(part)
        return f"{block.name} gives NaN or infinity" + (f"; the first such tensor is {first}" if first else "")
    sentence = f"{block.name} ends at {block.sqnr_db:.1f} dB and adds noise of {block.adds_db:.1f} dB"
    return sentence if layer is None else f"{sentence}; in it {layer.name} adds {layer.adds_db:.1f} dB"


def _explain_agreement(noisiest: Comparison) -> str:
    return f"they do not diverge; {noisiest.name} adds the most noise, {noisiest.adds_db:.1f} dB"
