"""From a recipe to the raised and folded float32 graph, compared with the model: what every precision starts from."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitdeploy import sources, tasks
from vitdeploy.artifact import ExportRecord, ModelRecord, Parity, PassRecord
from vitdeploy.errors import ExportError
from vitdeploy.graph.structure import Structure
from vitdeploy.pipeline.calibration import calibration as make_calibration
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.examples import examples as make_examples
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch, InputForm, Preprocess, Recipe, TaskSpec
from vitdeploy.runtime.reference import open_reference
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
    from vitdeploy.quantize import Calibration


@dataclass(frozen=True)
class Prepared:
    """The model as one graph in float32, raised and folded, and what is known about it.

    Attributes:
        graph: quantizing and lowering change it in place: clone it to do more than one.
        structure: sites, linears and norms of the graph.
        passes: what raised and folded it.
        examples: images with the reference's outputs.
        calibration: images for ranges; None when none were asked for.
        model, export, preprocess, labels: for the manifest.
        task: what the recipe or else the model says it is for.
        verifier: for a graph, what compares it with the reference after each pass; None without --verify.
    """

    graph: Graph
    structure: Structure
    passes: list[PassRecord]
    examples: Examples
    calibration: Calibration | None
    model: ModelRecord
    export: ExportRecord
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    task: TaskSpec
    verifier: Callable[[Graph], Callable[[str], None]] | None


def prepare(
    recipe: Recipe,
    target: Target,
    work: Path,
    progress: Progress,
    *,
    calibrated: bool,
    half: bool = False,
    verify: bool = False,
) -> Prepared:
    """Load and export the recipe's model, raise and fold its graph for `target`.

    Args:
        recipe: complete.
        target: whose dialect decides some of the folding.
        work: an empty folder, in which the graph's weights may stay.
        progress: told of each step.
        calibrated: whether calibration images are opened, and the result is compared with the model, because what
            comes next changes the numbers: what a pass broke until here would look like the price of a precision.
        half: whether float16 may come of it: pixels are then scaled in another way.
        verify: whether the numbers are checked after every pass.

    Raises:
        SourceError: the model or its weights cannot be had.
        ExportError: no exporter takes the model, or a graph differs from it.
    """
    with progress.step(f"Load {recipe.model.spec}"):
        model = sources.load(recipe.model, size=recipe.image_size)
    preprocess, task = recipe.preprocess or model.preprocess, tasks.settled(recipe.task, model.task)
    # Opened before the minutes of work that come first: a wrong path is told at once.
    calibration = make_calibration(recipe, preprocess) if calibrated else None
    with progress.step("Run the FP32 reference"), open_reference(model, threads=None) as reference:
        examples = make_examples(reference, model.input_name, preprocess, recipe.target.batch)
    with progress.step("Export to ONNX and compare with the reference"):
        path, record = _to_onnx(model, examples, recipe.target.batch, work)
    described = ModelRecord(
        spec=recipe.model.spec, weights=model.weights, digest=model.digest, parameters=model.parameters
    )
    labels = model.labels
    del model  # the graph carries the weights from here on; PyTorch's copy would double the peak
    gc.collect()
    graph, passes, verifier = _fold(path, recipe, target, examples, work, progress, half=half, verify=verify)
    structure = _recognize(graph, passes)
    if calibrated:
        with progress.step("Compare the float32 graph with the reference"):
            graph.save(work / "float32.onnx")
            check_graph(work / "float32.onnx", examples, "fp32", recipe.target.input)
    return Prepared(
        graph, structure, passes, examples, calibration, described, record, preprocess, labels, task, verifier
    )


def check_graph(path: Path, examples: Examples, precision: str, form: InputForm) -> Parity:
    """The graph in `path` against the reference: float32 must agree, lower precisions must be finite."""
    from vitdeploy import onnx_export as exporting

    parity = exporting.check(path, examples.pairs(form), examples.input_name)
    reason = exporting.disagreement(parity)
    if precision == "fp32" and reason is not None:
        raise ExportError(f"the optimised graph is wrong: {reason}", fix="Run with --verify to find the pass.")
    if not parity.finite:
        raise ExportError(f"the {precision} graph gives NaN or infinity", fix="Use --precision fp32.")
    return parity


def _to_onnx(model: sources.LoadedModel, examples: Examples, batch: Batch, work: Path) -> tuple[Path, ExportRecord]:
    from vitdeploy import onnx_export as exporting
    from vitdeploy.graph.model import load
    from vitdeploy.graph.screening import check_declared

    if model.onnx is not None:
        graph = load(model.onnx)
        for _, outputs in examples.pairs():
            check_declared(graph.model, outputs, model.onnx)
        parity = exporting.check(model.onnx, examples.pairs(), examples.input_name)
        return model.onnx, ExportRecord(exporter="none", opset=graph.opset, parity=parity)
    assert model.module is not None
    path = work / "exported.onnx"
    record = exporting.export(model.module, examples.pairs(), input_name=examples.input_name, batch=batch, path=path)
    return path, record


def _fold(
    path: Path,
    recipe: Recipe,
    target: Target,
    examples: Examples,
    work: Path,
    progress: Progress,
    *,
    half: bool,
    verify: bool,
) -> tuple[Graph, list[PassRecord], Callable[[Graph], Callable[[str], None]] | None]:
    """Raise and fold the graph in `path`; what was done, and what verifies the passes to come."""
    from vitdeploy import passes
    from vitdeploy.graph.model import load
    from vitdeploy.passes import order

    graph = load(path)
    batch, form, dialect = recipe.target.batch, recipe.target.input, target.dialect()
    verifiers = [partial(_verifier, examples=examples, form=f, work=work) for f in ("normalized", form)]
    raising, folding = [made(graph) if verify else None for made in verifiers]
    with progress.step("Raise attention and fold constants"):
        records = passes.run(order.raising(batch.opt if batch.static else None), graph, raising)
    with progress.step("Fold scales and norms into the weights"):
        pixels = _pixels(form, examples.preprocess, half=half and dialect.half_around)
        records += passes.run(order.folding(pixels, packed_qkv=dialect.packed_qkv), graph, folding)
    return graph, records, verifiers[1] if verify else None


def _recognize(graph: Graph, passes: Iterable[PassRecord]) -> Structure:
    from vitdeploy.graph.recognize import recognize

    return recognize(graph, {r.site: r.reason for p in passes for r in p.refused if p.name == "raise-attention"})


def _pixels(form: InputForm, preprocess: Preprocess, *, half: bool) -> FoldPreprocessing | None:
    """What makes the graph take pixels, if it shall."""
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing

    if form == "normalized":
        return None
    dtype: Literal["float32", "uint8"] = "uint8" if form == "uint8" else "float32"
    return FoldPreprocessing(mean=preprocess.mean, std=preprocess.std, dtype=dtype, half=half)


def _verifier(graph: Graph, examples: Examples, form: InputForm, work: Path) -> Callable[[str], None]:
    """Check the numbers after a pass; the first one that breaks them is named."""
    from vitdeploy import onnx_export as exporting

    def verify(name: str) -> None:
        path = work / "verify.onnx"
        graph.save(path)
        reason = exporting.disagreement(exporting.check(path, examples.pairs(form), examples.input_name))
        if reason is not None:
            raise ExportError(f"pass {name} breaks the model: {reason}", fix="Report it with the model's name.")

    return verify
