"""From a model spec to the raised and folded float32 graph, which is compared with the model. Precisions start here."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitdeploy import sources, tasks
from vitdeploy.artifact import ExportRecord, FewerTokens, ModelRecord, PassRecord
from vitdeploy.data.label_file import read_labels
from vitdeploy.data.preprocess import plane_statistics
from vitdeploy.errors import ExportError, SourceError
from vitdeploy.evidence import PixelCheck
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Structure
from vitdeploy.pipeline.calibration import GraphInputs, JudgingBatches, open_images
from vitdeploy.pipeline.dumps import NO_DUMPS, GraphDumps
from vitdeploy.pipeline.examples import Examples, make_examples, traced_size
from vitdeploy.pipeline.exported_graph import check_graph, export_graph
from vitdeploy.pipeline.fewer_tokens import StandIns, remove_tokens
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.outputs import find_unseen, output_chooser
from vitdeploy.pipeline.pixels import check_pixels
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch, InputForm, Preprocess, Recipe, SizeRange, TaskSpec
from vitdeploy.runtime.trial import try_model

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
    from vitdeploy.quantize import Calibration

FLOAT32 = "float32.onnx"
"""The raised and folded graph in the working folder; only if it was prepared for a lower precision."""

_VERIFIED_BATCHES = 2
"""The number of example batches for --verify, which compares after every pass."""

Verifier = Callable[["Graph"], Callable[[str], None] | None]
"""Returns, for a graph, the function that compares it with the reference after each pass."""


@dataclass(frozen=True)
class Options:
    """Options for preparing a model.

    Attributes:
        calibrated: open calibration images, and compare the float32 graph with the model. A lower precision changes
            the numbers, so an error of a pass must show before it, or it would look like a loss of the precision.
        half: the graph may be lowered to float16, so pixels are scaled in another way.
        verify: check the numbers after every pass.
        cache: the cache of exported graphs; None exports again.
        dumps: writes the graph after each phase.
        positions: the positions of dropped tokens that were chosen before; None chooses them on the calibration images.
    """

    calibrated: bool = False
    half: bool = False
    verify: bool = False
    cache: GraphCache | None = None
    dumps: GraphDumps = NO_DUMPS
    positions: StandIns | None = None


@dataclass(frozen=True)
class Facts:
    """The facts about a prepared model that take little memory, so without its graph and its calibration images.

    Attributes:
        model: its spec, weights and size.
        export: the record of its export to ONNX.
        passes: records of the passes that raised and folded the graph.
        preprocess: the steps from an image to the model's input.
        labels: class names, if they are known.
        task: the task that the recipe names, or else the model.
        examples: images with the reference's outputs.
        sizes: the range of image sizes; None for one.
        pixels: the preprocessing compared with the model's own.
        assumed: the parts of the preprocessing that nothing says, in words.
        metadata: the facts that the metadata in the model's file gave, in words.
        tokens: the tokens that are merged or dropped; None if all stay. The examples then have the outputs of the graph
            with fewer tokens.
    """

    model: ModelRecord
    export: ExportRecord
    passes: tuple[PassRecord, ...]
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    task: TaskSpec
    examples: Examples
    sizes: SizeRange | None = None
    pixels: PixelCheck | None = None
    assumed: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    tokens: FewerTokens | None = None


@dataclass(frozen=True)
class Prepared:
    """The model as one graph in float32, raised and folded.

    Attributes:
        graph: the graph. Quantizing and lowering change it in place, so clone it for more than one precision.
        structure: the sites, linears and norms of the graph.
        calibration: images to take ranges from; None unless `Options.calibrated`.
        judging: images to judge a precision on; None without images.
        verifier: checks the numbers after each pass; None without --verify.
        facts: the other facts about the model.
        verify_against: returns such a verifier for examples with other outputs.
    """

    graph: Graph
    structure: Structure
    calibration: Calibration | None
    judging: JudgingBatches | None
    verifier: Verifier | None
    facts: Facts
    verify_against: Callable[[Examples], Verifier | None]


def prepare(
    recipe: Recipe,
    dialect: Dialect,
    work: Path,
    progress: Progress,
    options: Options,
    load_model: Callable[[], sources.LoadedModel] | None = None,
) -> Prepared:
    """Load and export the recipe's model, raise and fold its graph for a compiler of `dialect`.

    Args:
        recipe: a recipe with all defaults filled in.
        dialect: the form of graph that the compiler wants. It decides some of the folding.
        work: an empty folder, in which the graph's weights may stay.
        progress: gets the steps.
        options: options for preparing.
        load_model: loads the model; None loads the recipe's.

    Raises:
        SourceError: the model or its weights are not available.
        ExportError: no exporter can export the model, or a graph differs from it.
        DataError, QuantizeError: the calibration images cannot be used.
        CompileError: the target lacks an operator.
    """
    from vitdeploy.graph.lacking import refuse_lacking
    from vitdeploy.graph.model import load
    from vitdeploy.graph.recognize import recognize
    from vitdeploy.graph.regions import assign_regions
    from vitdeploy.graph.unproven import find_unproven

    batch, form, sizes = recipe.target.batch, recipe.target.input, recipe.model.size_range
    whole = replace(recipe.model, outputs=None)  # an unknown name is an error below, where all names are known
    with progress.step(f"Load {recipe.model.spec}"):
        if load_model is None:
            try_model(whole, recipe.image_size, traced_size(batch))
        model = load_model() if load_model else sources.load(whole, size=recipe.image_size)
    is_named = recipe.task.kind is not None or model.task is not None
    task, preprocess = tasks.resolve(recipe.task, model.task), recipe.preprocess or model.preprocess
    assumed = () if recipe.preprocess is not None else tuple(model.assumed.values())
    given = None if recipe.model.labels is None else read_labels(recipe.model.labels)
    with progress.step("Compare the preprocessing with the model's own"):
        pixels = check_pixels(recipe, model, preprocess)
    calibration = judging = None
    # Opened before the minutes of work that come first: a wrong path shows at once.
    if options.calibrated and model.make_inputs is None:
        named = tasks.find(task).named_classes
        names = (given or model.labels) if named else None
        calibration, judging = open_images(
            recipe.data, names, GraphInputs(model.input_name, preprocess, form, model.further), batch.min
        )
    with progress.step("Run the FP32 reference"):
        reader = tasks.find(task) if is_named else None
        choose = output_chooser(recipe.model.outputs, reader, traced_size(batch))
        examples = make_examples(model, preprocess, batch, sizes, choose)
    if examples.dropped:
        model = sources.keep_outputs(model, tuple(examples.outputs[0]))
    labels = _choose_labels(recipe, tasks.find(task), given, model.labels, examples)
    path, record = export_graph(model, examples, batch, work, progress, options.cache)
    unseen, unproven = find_unseen(examples, reader), find_unproven(record.parity)
    doubts = (*record.doubts, *unseen.doubts, *unproven.values())
    record = replace(record, doubts=doubts, blind_outputs=unseen.outputs)
    model_record = ModelRecord(
        spec=recipe.model.spec,
        weights=model.weights,
        digest=model.digest,
        parameters=model.parameters,
        code=model.code_digest,
        checkpoint=model.checkpoint,
        precision=model.precision,
        patch=model.patch,
        dropped_outputs=examples.dropped,
        license=model.license,
    )
    metadata = model.metadata
    del model  # the graph carries the weights from here on; PyTorch's copy would double the peak
    gc.collect()
    graph = load(path)
    examples = examples.with_selection(graph)
    folding = _Folding(dialect, batch, sizes, form, examples, work, options)
    passes = folding.apply(graph, progress)
    refuse_lacking(graph, dialect, recipe.target.kind)
    unraised = {r.site: r.reason for p in passes for r in p.refused if p.name == "raise-attention"}
    tokens = None
    if recipe.tokens.merges or recipe.tokens.drops:
        with progress.step("Merge tokens" if recipe.tokens.merges else "Drop tokens"):
            removing, examples, tokens = remove_tokens(
                graph, recipe.tokens, unraised, examples, form, work / FLOAT32, calibration, progress,
                options.positions,
            )  # fmt: skip
        passes, folding = [*passes, *removing], dataclasses.replace(folding, examples=examples)
    structure = assign_regions(graph, recognize(graph, unraised, None if sizes is None else preprocess.size))
    if options.calibrated:
        with progress.step("Compare the float32 graph with the reference"):
            graph.save(work / FLOAT32)
            check_graph(work / FLOAT32, examples, form, exact=True)
    facts = Facts(
        model_record, record, tuple(passes), preprocess, labels, task, examples, sizes, pixels, assumed, metadata,
        tokens,
    )  # fmt: skip
    return Prepared(graph, structure, calibration, judging, folding.verifier, facts, folding.verify_against)


def _choose_labels(
    recipe: Recipe,
    task: tasks.Task,
    given: tuple[str, ...] | None,
    own: tuple[str, ...] | None,
    examples: Examples,
) -> tuple[str, ...] | None:
    """Return the user's labels, else the model's own, if there is one for each class.

    Raises:
        SourceError: the user gives another number of labels than the model has classes.
    """
    classes = task.count_classes({name: value.shape for name, value in examples.outputs[0].items()})
    if given is not None and classes not in (None, len(given)):
        raise SourceError(
            f"{recipe.model.labels} has {len(given)} labels, and the model has {classes} classes",
            fix="Give one label for each class, in the order of the outputs.",
        )
    return given or (own if own is None or classes in (None, len(own)) else None)


@dataclass(frozen=True)
class _Folding:
    """Raise and fold an exported graph."""

    dialect: Dialect
    batch: Batch
    sizes: SizeRange | None
    form: InputForm
    examples: Examples
    work: Path
    options: Options

    @property
    def verifier(self) -> Verifier | None:
        """The verifier for later passes."""
        return partial(self._verifier, form=self.form) if self.options.verify else None

    def verify_against(self, examples: Examples) -> Verifier | None:
        """Return the verifier for later passes of a graph with other outputs."""
        return dataclasses.replace(self, examples=examples).verifier

    def apply(self, graph: Graph, progress: Progress) -> list[PassRecord]:
        """Raise and fold the graph in place. Return the records of the passes."""
        from vitdeploy import passes
        from vitdeploy.passes import order

        dumps = self.options.dumps
        raising, folding = (self._verifier(graph, form) for form in ("normalized", self.form))
        dumps.write("exported", graph)
        with progress.step("Raise attention and fold constants"):
            batch = self.batch.opt if self.batch.static else None
            size, sizes = self.examples.preprocess.size, self.sizes
            raise_all = (
                order.raising(batch, size) if sizes is None else order.raising(batch, sizes.fixed_sides, sizes.min)
            )
            records = passes.run(raise_all, graph, raising)
        dumps.write("raised", graph)
        with progress.step("Fold scales and norms into the weights"):
            pixels = _pixels(self.form, self.examples.preprocess, half=self.options.half and self.dialect.half_around)
            fold_all = order.folding(pixels, packed_qkv=self.dialect.packed_qkv, lacks=self.dialect.lacks)
            records += passes.run(fold_all, graph, folding)
        dumps.write("folded", graph)
        return records

    def _verifier(self, graph: Graph, form: InputForm) -> Callable[[str], None] | None:
        """Return a function that checks the numbers after a pass, and names the first pass that breaks them."""
        if not self.options.verify:
            return None
        from vitdeploy import onnx_export

        def verify(name: str) -> None:
            path = self.work / "verify.onnx"
            graph.save(path)
            pairs = self.examples.pairs(form)[:_VERIFIED_BATCHES]
            parity = onnx_export.check(path, pairs, self.examples.input_name)
            reason = onnx_export.disagreement(parity)
            if reason is not None:
                raise ExportError(f"pass {name} breaks the model: {reason}", fix="Report it with the model's name.")

        return verify


def _pixels(form: InputForm, preprocess: Preprocess, *, half: bool) -> FoldPreprocessing | None:
    """Return the pass that makes the graph take pixels; None for normalized input."""
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing

    if form == "normalized":
        return None
    dtype: Literal["float32", "uint8"] = "uint8" if form == "uint8" else "float32"
    mean, std = plane_statistics(preprocess)
    return FoldPreprocessing(mean=mean, std=std, dtype=dtype, half=half)
