"""Record the values inside a model at export, for the device that will look for the place of an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import VitdeployError
from vitdeploy.graph.parity import Example
from vitdeploy.measure.divergence import noise_share
from vitdeploy.pipeline.block_values import (
    MOST_BYTES,
    MOST_VALUES,
    BlockValues,
    StoredPart,
    StoredSpot,
    measure_noise,
    save_block_values,
    take_sample,
)
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.exported_graph import widened
from vitdeploy.recipe import InputForm
from vitdeploy.session import Array

_HALF_ROUNDING = 2.0**-11
"""Of a number, at most, in float16."""

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.structure import Structure


def record_blocks(
    path: Path,
    graph: Graph,
    structure: Structure,
    candidates: Mapping[str, Path],
    examples: Examples,
    form: InputForm,
    work: Path,
    *,
    quantized: Collection[str] = (),
    bfloat16: Collection[str] = (),
) -> str:
    """Run the float32 graph and the target-ready graphs on one example, and store samples of what is inside.

    Args:
        path: the file to write.
        graph: the raised float32 graph.
        structure: its sites.
        candidates: the file of each target-ready graph, by precision.
        examples: the first one is run.
        form: the form in which the graphs take images.
        work: a folder for copies of the graphs.
        quantized: the precisions of graphs with integers.
        bfloat16: the precisions of graphs that are computed in float32 with their rounded weights: ONNX Runtime has no
            convolution in bfloat16.

    Returns:
        A note for the user: the size of the file, or why there is none.
    """
    if examples.inputs:
        return ""  # a part of a model that takes no image
    parts, indices = _find_parts(graph, structure)
    outputs = _find_outputs(graph)
    spots = [*(spot for part in parts for spot in part.spots), *outputs]
    limit = min(MOST_VALUES, MOST_BYTES // (4 * max(1, len(spots)) * (1 + len(candidates))))
    example = examples.pairs(form)[0]
    recorder = _Recorder(spots, indices, example, examples.input_name, limit, work)
    try:
        float32, selected = recorder.run(graph)
        chosen = {} if selected is None else {"": selected}
        emulated: dict[str, dict[str, Array]] = {}
        moved: dict[str, dict[str, float]] = {}
        for precision, file in candidates.items():
            with widened(file) if precision in bfloat16 else nullcontext(file) as runnable:
                emulated[precision], selected = recorder.run(runnable)
                if precision in quantized:
                    moved[precision] = recorder.measure_moves(runnable, emulated[precision], selected)
            chosen |= {} if selected is None else {precision: selected}
    except VitdeployError as error:
        return f"an error of the device cannot be located later: the values inside the model are not known ({error})"
    values = BlockValues(tuple(parts), float32, emulated, indices, chosen, moved, limit, outputs)
    size = save_block_values(path, values)
    return f"stored {size / 1e6:.1f} MB of values inside the model, by which the device finds the place of an error"


def _find_parts(graph: Graph, structure: Structure) -> tuple[list[StoredPart], str]:
    """Return the parts of the raised graph, and the tensor of the indices that it selects rows by, if it selects."""
    from vitdeploy.graph.blocks import find_parts
    from vitdeploy.graph.forced_selection import list_selections
    from vitdeploy.graph.selection import find_selected

    model_parts = find_parts(graph, structure)
    tensors = [spot.tensor for part in model_parts for spot in part.spots]
    selections = list_selections(graph)
    nodes = [node for node in graph.nodes if node.name in selections]
    indices = (nodes[0].outputs[1].name or "") if len(nodes) == 1 else ""
    rows = find_selected(graph, tensors) if indices else {}
    shared = {name for name, count in Counter(part.name for part in model_parts).items() if count > 1}
    parts = [
        StoredPart(
            name=part.name if part.name not in shared else f"{part.name} (part {number})",
            block=part.block,
            start=part.start,
            spots=tuple(
                StoredSpot(tensor=s.tensor, layer=s.layer, kind=s.kind, reads=s.reads, rows=rows.get(s.tensor))
                for s in part.spots
            ),
        )
        for number, part in enumerate(model_parts)
    ]
    return parts, indices


def _find_outputs(graph: Graph) -> tuple[StoredSpot, ...]:
    """Return the outputs that can be compared number by number: their rows are not selected by score."""
    from vitdeploy.graph.selection import find_selected

    selected = find_selected(graph)
    names = [value.name or "" for value in graph.model.graph.outputs]
    return tuple(StoredSpot(tensor=name, layer=name, kind="output") for name in names if name not in selected)


class _Recorder:
    """Run graphs on one example in ONNX Runtime, with the places inside as outputs."""

    def __init__(
        self, spots: list[StoredSpot], indices: str, example: Example, input_name: str, limit: int, work: Path
    ) -> None:
        self._spots = spots
        self._indices = indices
        self._example = example
        self._input = input_name
        self._limit = limit
        self._path = work / "inside.onnx"

    def measure_moves(self, source: Path, still: Mapping[str, Array], selected: Array | None) -> dict[str, float]:
        """Return how far the values of a graph move if the image has noise like float16's rounding.

        Raises:
            VitdeployError: ONNX Runtime does not run the graph.
        """
        image = self._example.image
        if not np.issubdtype(image.dtype, np.floating):
            return {}
        noise = np.random.default_rng(0).standard_normal(image.shape) * _HALF_ROUNDING
        moved, other = self.run(source, (image * (1 + noise)).astype(image.dtype))
        noises = {
            s.tensor: measure_noise(s, still.get(s.tensor), moved.get(s.tensor), (selected, other)) for s in self._spots
        }
        return {name: noise_share(noise.sqnr_db) for name, noise in noises.items() if noise is not None}

    def run(self, source: Graph | Path, image: Array | None = None) -> tuple[dict[str, Array], Array | None]:
        """Return the samples of the places that the graph has, and what it has selected.

        Args:
            source: the graph.
            image: in place of the example's.

        Raises:
            VitdeployError: ONNX Runtime does not run the graph.
        """
        from vitdeploy.graph.extra_outputs import with_outputs
        from vitdeploy.graph.onnx_session import OnnxSession

        names = [spot.tensor for spot in self._spots] + ([self._indices] if self._indices else [])
        with_outputs(source, names, self._path)
        try:
            with OnnxSession(self._path, lean=True) as session:
                feed = self._example.feed(self._input)
                values = session.run(feed if image is None else {**feed, self._input: image})
        finally:
            for file in self._path.parent.glob(f"{self._path.name}*"):
                file.unlink()
        images = len(self._example.image)
        samples = {
            spot.tensor: take_sample(spot, values[spot.tensor], images, self._limit)
            for spot in self._spots
            if spot.tensor in values and np.issubdtype(values[spot.tensor].dtype, np.floating)
        }
        return samples, values.get(self._indices)
