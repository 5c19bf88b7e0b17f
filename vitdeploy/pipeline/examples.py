"""Example images with the reference's outputs. Every later graph, and what was compiled, is compared with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.data.example_inputs import ExampleInputs
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import LOOKS, Look, natural_image
from vitdeploy.errors import DataError, ExportError
from vitdeploy.frozen import replace
from vitdeploy.graph.parity import Example, compare, explain_difference
from vitdeploy.graph.row_matching import Edge
from vitdeploy.recipe import Batch, InputForm, Preprocess, SizeRange, format_size
from vitdeploy.runtime.artifact_session import EXAMPLES_OF
from vitdeploy.runtime.reference import open_reference
from vitdeploy.session import Array, is_finite
from vitdeploy.sources import LoadedModel

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph

_LARGE_BATCH = 8
"""From this size on, a static batch is compared on three looks instead of four, to save time."""
_MOST_IMAGES = 16
"""The size of the largest batch to compare, if the stated maximum is larger, unless the typical size is."""
_FEWEST_BATCHES = 2
_MOST_BYTES = 256 << 20
"""The size of the stored outputs, unless two batches need more. A segmentation model gives megabytes for each image."""


@dataclass(frozen=True)
class Examples:
    """Batches of images with the reference's outputs.

    Attributes:
        input_name: the name of the model's input.
        preprocess: how pixels become the model's input.
        pixels: the images of each batch, uint8 NCHW.
        outputs: the reference's outputs for each batch.
        names: each batch in words.
        selected: the outputs whose rows the model selects by score, with the axis of the rows.
        edges: the edge of this selection, for each image of each batch; empty without one.
        dropped: the outputs of the model that are not among `outputs`.
        inputs: all inputs of each batch, of a part that takes no image. There are no pixels then.
        further: the inputs of each batch beside the image; empty if there are none.
        given: the examples that these come from.
        undecided: how far near-ties between merged tokens may move the outputs of each batch; empty without merging.
    """

    input_name: str
    preprocess: Preprocess
    pixels: tuple[Array, ...]
    outputs: tuple[dict[str, Array], ...]
    names: tuple[str, ...]
    selected: Mapping[str, int] | None = None
    edges: tuple[tuple[Edge, ...], ...] = ()
    dropped: tuple[str, ...] = ()
    inputs: tuple[dict[str, Array], ...] = ()
    further: tuple[dict[str, Array], ...] = ()
    given: ExampleInputs = field(default_factory=ExampleInputs)
    undecided: tuple[dict[str, Array], ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all inputs."""
        feeds = self.inputs or self.further
        return (*(pixels.shape for pixels in self.pixels), *(value.shape for feed in feeds for value in feed.values()))

    def pairs(self, form: InputForm = "normalized") -> list[Example]:
        """Return inputs in the form that a graph takes, with the expected outputs."""
        if self.inputs:
            return [
                _split(*parts, self.input_name) for parts in zip(self.inputs, self.outputs, self.names, strict=True)
            ]
        inputs = [to_input(pixels, self.preprocess, form) for pixels in self.pixels]
        edges = self.edges or [()] * len(inputs)
        further: Sequence[dict[str, Array]] = self.further or [{}] * len(inputs)
        undecided: Sequence[dict[str, Array]] = self.undecided or [{}] * len(inputs)
        parts = zip(inputs, self.outputs, self.names, edges, further, undecided, strict=True)
        return [
            Example(image, outputs, name, self.selected, edge, beside, free)
            for image, outputs, name, edge, beside, free in parts
        ]

    def with_selection(self, graph: Graph) -> Examples:
        """Return the examples with what `graph` selects: it is the model's, in float32."""
        from vitdeploy.graph.selection import find_selected
        from vitdeploy.graph.selection_edges import find_edges

        selected = find_selected(graph)
        edges = tuple(find_edges(graph, self.pairs(), self.input_name)) if selected else ()
        return dataclasses.replace(self, selected=selected, edges=edges)


ChooseOutputs = Callable[[Mapping[str, Array]], Sequence[str]]
"""Returns the names of the outputs to keep, from all outputs of the model for a batch."""


def make_examples(
    model: LoadedModel,
    preprocess: Preprocess,
    batch: Batch,
    sizes: SizeRange | None = None,
    choose: ChooseOutputs = tuple,
) -> Examples:
    """Run the FP32 reference on images of several looks; in several batch and image sizes if these vary.

    Args:
        model: the model.
        preprocess: how pixels become its input.
        batch: the batch sizes that it will get.
        sizes: the range of image sizes; None for one.
        choose: chooses the outputs to keep; by default all.

    Raises:
        ExportError: the model itself gives NaN or infinity, or other numbers when it runs again.
    """
    if model.make_inputs is not None:
        return _run_on_inputs(model, preprocess, model.make_inputs(), choose)
    names: list[str] = []
    dropped: tuple[str, ...] = ()

    def run(images: Array, others: Mapping[str, Array], look: str) -> dict[str, Array]:
        nonlocal dropped
        results = reference.run({model.input_name: images, **others})
        if not names:
            names.extend(choose(results))
            dropped = tuple(name for name in results if name not in names)
        return _check_finite({name: results[name] for name in names}, look)

    pixels: list[Array] = []
    outputs: list[dict[str, Array]] = []
    looks: list[str] = []
    further: list[dict[str, Array]] = []
    fewest = _FEWEST_BATCHES if sizes is None else len(sizes.corners)
    with open_reference(model, threads=None, timed=False) as reference:
        for seed, (count, look, size) in enumerate(_plan(batch, sizes)):
            images = sum(map(len, pixels))
            if len(pixels) >= fewest and _bytes(outputs) * (1 + count / images) > _MOST_BYTES:
                continue
            name = look.name if size is None else f"{look.name} of {format_size(size)}"
            resized = preprocess if size is None else replace(preprocess, size=size)
            pixels.append(natural_image(seed, resized, count, look))
            further.append(model.further.take(count, images))
            outputs.append(run(to_input(pixels[-1], preprocess, "normalized"), further[-1], name))
            looks.append(name)
        again = run(to_input(pixels[0], preprocess, "normalized"), further[0], looks[0])
    reason = explain_difference(compare(outputs[0], again, batch=len(pixels[0])))
    if reason is not None:
        raise ExportError(
            f"the model gives other numbers when it runs again on the same images: {reason}",
            fix="Switch off dropout, and remove random numbers and counters from its forward().",
        )
    return Examples(
        model.input_name, preprocess, tuple(pixels), tuple(outputs), tuple(looks), dropped=dropped,
        further=tuple(further), given=model.further,
    )  # fmt: skip


def _run_on_inputs(
    model: LoadedModel, preprocess: Preprocess, cases: list[tuple[str, dict[str, Array]]], choose: ChooseOutputs
) -> Examples:
    """Run the FP32 reference on inputs that are no images."""
    looks, inputs = zip(*cases, strict=True)
    with open_reference(model, threads=None, timed=False) as reference:
        results = [reference.run(feed) for feed in inputs]
    names = tuple(choose(results[0]))
    outputs = tuple(
        _check_finite({name: values[name] for name in names}, look) for look, values in zip(looks, results, strict=True)
    )
    dropped = tuple(name for name in results[0] if name not in names)
    return Examples(model.input_name, preprocess, (), outputs, looks, dropped=dropped, inputs=inputs)


def _split(feed: Mapping[str, Array], outputs: dict[str, Array], name: str, input_name: str) -> Example:
    further = {key: value for key, value in feed.items() if key != input_name}
    return Example(feed[input_name], outputs, name, further=further)


def traced_size(batch: Batch) -> int:
    """Return the batch size to trace. Exporters specialise a dynamic batch of 1, so a larger one is traced."""
    return batch.opt if batch.static else max(batch.opt, min(2, batch.max))


_Case = tuple[int, Look, "tuple[int, int] | None"]
"""A batch to compare: the number of images, their look, and their size; None where there is only one size."""


def _plan(batch: Batch, sizes: SizeRange | None) -> list[_Case]:
    """Return the batches to compare; the first one is traced.

    Sizes that vary are compared at the one to optimise for, at both ends and at the most oblong ones; and the largest
    images in the largest batch, if both vary.
    """
    looks = _plan_looks(batch)
    if sizes is None:
        return [(count, look, None) for count, look in looks]
    corners = sizes.corners
    longest = max(len(looks), len(corners))
    cases: list[_Case] = [(*looks[n % len(looks)], corners[n % len(corners)]) for n in range(longest)]
    return cases if batch.static else [*cases, (max(count for count, _ in looks), LOOKS[0], sizes.max)]


def _plan_looks(batch: Batch) -> list[tuple[int, Look]]:
    """Return the number of images and the look of each batch, for one image size.

    A dynamic batch is compared in its smallest size, a typical one, and its largest (or a large one).
    """
    plain, bright, dark, contrast = LOOKS
    if batch.static:
        looks = LOOKS if batch.opt < _LARGE_BATCH else LOOKS[:3]
        return [(batch.opt, look) for look in looks]
    traced = traced_size(batch)
    largest = min(batch.max, max(_MOST_IMAGES, 2 * batch.opt))
    middle = batch.opt if batch.min < batch.opt < largest else (batch.min + largest) // 2
    smallest = [(batch.min, look) for look in (bright, dark, contrast)]
    others = [(size, look) for size, look in ((middle, bright), (largest, plain)) if size not in (batch.min, traced)]
    return [(traced, plain), *smallest, *others]


def _check_finite(outputs: dict[str, Array], name: str) -> dict[str, Array]:
    if not is_finite(outputs):
        raise ExportError(
            f"the model itself gives NaN or infinity for {name}", fix="Check its weights and preprocessing."
        )
    return outputs


def _bytes(outputs: list[dict[str, Array]]) -> int:
    return sum(value.nbytes for batch in outputs for value in batch.values())


def save_examples(path: Path, examples: Examples, form: InputForm) -> None:
    """Write the images with the reference's outputs, so that a device without PyTorch can check itself.

    The first batch is stored as the graph takes it, for programs that read it (`input`, `output.NAME`). The others are
    pixels, which take a quarter of the space.
    """
    path.parent.mkdir(exist_ok=True)
    first, *others = examples.pairs(form)
    arrays: dict[str, Any] = {"input": first.image, "name": np.array(examples.names[0])}
    arrays |= {f"input.{name}": value for name, value in first.further.items()}
    arrays |= {f"{EXAMPLES_OF}{name}": value for name, value in examples.given.arrays.items()}
    arrays |= {f"output.{name}": value for name, value in first.outputs.items()}
    arrays |= {f"selected.{name}": np.array(axis) for name, axis in (examples.selected or {}).items()}
    arrays |= {f"edges{number}": np.array(edges) for number, edges in enumerate(examples.edges) if edges}
    for number, undecided in enumerate(examples.undecided):
        arrays |= {f"undecided{number}.{name}": value for name, value in undecided.items()}
    for number, other in enumerate(others, start=1):
        case = f"case{number}"
        if examples.pixels:
            arrays[f"{case}.pixels"] = examples.pixels[number]
        else:
            arrays[f"{case}.input"] = other.image
        arrays |= {f"{case}.input.{name}": value for name, value in other.further.items()}
        arrays[f"{case}.name"] = np.array(examples.names[number])
        arrays |= {f"{case}.output.{name}": value for name, value in other.outputs.items()}
    np.savez(path, **arrays)


def load_examples(path: Path, preprocess: Preprocess, form: InputForm) -> list[Example]:
    """Read a file of `save_examples`: images as the graph takes them, with the reference's outputs.

    Raises:
        DataError: it is damaged.
    """
    fix = "Export the artifact again."
    arrays = read_npz(path, fix)
    if "input" not in arrays:
        raise DataError(f"{path} has no array `input`", fix=fix)
    try:
        return list(_read_examples(arrays, preprocess, form))
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is damaged: its arrays are not those of an example ({reason})", fix=fix) from None


def _read_examples(arrays: Mapping[str, Array], preprocess: Preprocess, form: InputForm) -> Iterator[Example]:
    selected = {name: int(axis) for name, axis in _with_prefix(arrays, "selected.").items()}
    yield Example(
        arrays["input"],
        _with_prefix(arrays, "output."),
        str(arrays.get("name", LOOKS[0].name)),
        selected,
        _read_edges(arrays, 0),
        _with_prefix(arrays, "input."),
        _with_prefix(arrays, "undecided0."),
    )
    number = 1
    while outputs := _with_prefix(arrays, f"case{number}.output."):
        name, further = str(arrays.get(f"case{number}.name", "")), _with_prefix(arrays, f"case{number}.input.")
        image, pixels = arrays.get(f"case{number}.input"), arrays.get(f"case{number}.pixels")
        if pixels is not None:
            image = to_input(pixels, preprocess, form)
        if image is None:
            return
        undecided = _with_prefix(arrays, f"undecided{number}.")
        yield Example(image, outputs, name, selected, _read_edges(arrays, number), further, undecided)
        number += 1


def _read_edges(arrays: Mapping[str, Array], number: int) -> tuple[Edge, ...]:
    return tuple(Edge(int(rows), int(others)) for rows, others in arrays.get(f"edges{number}", ()))


def _with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
