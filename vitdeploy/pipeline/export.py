"""From a recipe to a folder: load, export, raise, quantize, lower, compile, audit."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy import artifact as artifacts
from vitdeploy import environment, sources, targets
from vitdeploy.artifact import ExportRecord, Manifest, ModelRecord, Parity, PassRecord, TargetRecord, TensorSpec
from vitdeploy.errors import ExportError, QuantizeError
from vitdeploy.graph.structure import Structure
from vitdeploy.pipeline.compiling import GRAPH, SITES, Exported, finish, summary
from vitdeploy.pipeline.inputs import Examples, save_example
from vitdeploy.pipeline.inputs import calibration as make_calibration
from vitdeploy.pipeline.inputs import examples as make_examples
from vitdeploy.pipeline.reference import open_reference
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch, InputForm, Preprocess, Recipe
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
    from vitdeploy.quantize import Calibration

EXAMPLE = "reference/example.npz"


def export(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    compile_here: bool = True,
) -> Exported:
    """Make the artifact (or, where the target is compiled on another device, the bundle) that `recipe` describes.

    Without `compile_here` it is a bundle in any case, and the target need not be on this machine.

    Raises:
        VitdeployError: with nothing left behind.
    """
    started = time.monotonic()
    target, precision = _settle(recipe, compile_here=compile_here)
    recipe = _complete(recipe, precision)
    artifacts.refuse_existing(out, force=force)
    with progress.step(f"Load {recipe.model.spec}"):
        model = sources.load(recipe.model, size=_size(recipe))
    preprocess = recipe.preprocess or model.preprocess
    # Opened before the minutes of work that come first: a wrong path is told at once.
    calibration = make_calibration(recipe, preprocess) if precision != "fp32" else None
    with artifacts.staged(out, force=force) as folder:
        work = folder / "work"
        work.mkdir()
        with progress.step("Run the FP32 reference"), open_reference(model, threads=None) as reference:
            examples = make_examples(reference, model.input_name, preprocess, recipe.target.batch)
        with progress.step("Export to ONNX and compare with the reference"):
            path, record = _to_onnx(model, examples, recipe.target.batch, work)
        model_record = ModelRecord(
            spec=recipe.model.spec, weights=model.weights, digest=model.digest, parameters=model.parameters
        )
        labels = model.labels
        del model  # the graph carries the weights from here on; PyTorch's copy would double the peak
        gc.collect()
        graph, structure, passes, quantized = _compile_graph(
            path, recipe, target, precision, calibration, examples, work, progress, verify=verify
        )
        inputs, outputs = _signature(graph)
        graph.save(folder / GRAPH)
        structure = structure.located(node.name or "" for node in graph.nodes)
        structure.save(folder / SITES)
        del graph
        gc.collect()
        with progress.step("Compare the target-ready graph with the reference"):
            graph_parity = _check_graph(folder / GRAPH, examples, precision, recipe.target.input)
        save_example(folder / EXAMPLE, examples, recipe.target.input)
        shutil.rmtree(work)
        manifest = Manifest(
            stage="bundle",
            model=model_record,
            recipe=recipe,
            recipe_digest=recipe.digest,
            export=record,
            passes=tuple(passes),
            quantized=quantized,
            graph_parity=graph_parity,
            target=TargetRecord(kind=target.name, device=target.device, precision=precision),
            preprocess=preprocess,
            labels=labels,
            inputs=inputs,
            outputs=outputs,
            versions=environment.library_versions(),
        )
        manifest, notes = finish(folder, manifest, target, progress, out, here=compile_here)
    if verify and precision != "fp32":
        told = "--verify compared the passes before quantization; those behind it change what FP32 computes"
        notes = [*notes, told]
    if not structure.attention:
        notes = ["no attention site: nothing in it is recognised as a Vision Transformer", *notes]
    return summary(out, manifest, time.monotonic() - started, notes)


def _settle(recipe: Recipe, *, compile_here: bool) -> tuple[Target, str]:
    """Find the target and the precision, and refuse early what would fail late."""
    target = targets.find(recipe.target)
    precision = recipe.precision.kind or target.default_precision
    target.check_precision(precision)
    if compile_here and not target.built_on_device:
        target.require()
    if precision in ("int8", "fp8") and recipe.data.calibration is None and not recipe.model.spec.startswith("demo:"):
        raise QuantizeError(
            f"{precision} needs calibration images: ranges are never invented",
            fix="Give --calibration DATA (a folder of images is enough)."
            + (" Or use --precision int8-dynamic, which needs none." if "int8-dynamic" in target.precisions else ""),
        )
    return target, precision


def _complete(recipe: Recipe, precision: str) -> Recipe:
    """Write out what was left to defaults, so that the manifest tells everything."""
    data = recipe.data
    if recipe.model.spec.startswith("demo:"):
        spec = recipe.model.spec
        data = data.model_copy(update={"calibration": data.calibration or spec, "evaluation": data.evaluation or spec})
    return recipe.model_copy(
        update={"data": data, "precision": recipe.precision.model_copy(update={"kind": precision})}
    )


def _size(recipe: Recipe) -> tuple[int, int] | None:
    return recipe.model.image_size or (recipe.preprocess.size if recipe.preprocess else None)


def _to_onnx(model: sources.LoadedModel, examples: Examples, batch: Batch, work: Path) -> tuple[Path, ExportRecord]:
    from vitdeploy import exporting
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


def _compile_graph(
    path: Path,
    recipe: Recipe,
    target: Target,
    precision: str,
    calibration: Calibration | None,
    examples: Examples,
    work: Path,
    progress: Progress,
    *,
    verify: bool,
) -> tuple[Graph, Structure, list[PassRecord], dict[str, str]]:
    """Raise, fold, quantize and lower; the middle of the flow, one graph throughout."""
    from vitdeploy import passes
    from vitdeploy.graph.model import load
    from vitdeploy.graph.recognize import recognize
    from vitdeploy.passes import order
    from vitdeploy.pipeline.quantizing import quantize

    graph = load(path)
    batch = recipe.target.batch.opt if recipe.target.batch.static else None
    check = _verifier(lambda: graph, examples, "normalized", work) if verify else None
    with progress.step("Raise attention and fold constants"):
        records = passes.run(order.raising(batch), graph, check)
    with progress.step("Fold scales and norms into the weights"):
        check = _verifier(lambda: graph, examples, recipe.target.input, work) if verify else None
        half = precision != "fp32" and target.dialect().half_around
        pixels = _pixels(recipe.target.input, examples.preprocess, half=half)
        records += passes.run(order.folding(pixels, packed_qkv=target.dialect().packed_qkv), graph, check)
    refused = {r.site: r.reason for record in records for r in record.refused if record.name == "raise-attention"}
    structure = recognize(graph, refused)
    if precision != "fp32":
        # What follows changes the numbers: what a pass broke until here would look like the price of the precision.
        with progress.step("Compare the float32 graph with the reference"):
            graph.save(work / "float32.onnx")
            _check_graph(work / "float32.onnx", examples, "fp32", recipe.target.input)
    quantized = quantize(graph, structure, recipe.precision, target.dialect(), calibration, progress)
    graph = quantized.graph
    with progress.step(f"Lower to what {target.name} compiles best"):
        records += passes.run(order.lowering(target.dialect()), graph, check if precision == "fp32" else None)
    return graph, structure, records, dict(quantized.record)


def _pixels(form: InputForm, preprocess: Preprocess, *, half: bool) -> FoldPreprocessing | None:
    """What makes the graph take pixels, if it shall."""
    from vitdeploy.passes.fold_preprocessing import FoldPreprocessing

    if form == "normalized":
        return None
    dtype: Literal["float32", "uint8"] = "uint8" if form == "uint8" else "float32"
    return FoldPreprocessing(mean=preprocess.mean, std=preprocess.std, dtype=dtype, half=half)


def _verifier(graph: Callable[[], Graph], examples: Examples, form: InputForm, work: Path) -> Callable[[str], None]:
    """Check the numbers after a pass; the first one that breaks them is named."""
    from vitdeploy import exporting

    def verify(name: str) -> None:
        path = work / "verify.onnx"
        graph().save(path)
        reason = exporting.disagreement(exporting.check(path, examples.pairs(form), examples.input_name))
        if reason is not None:
            raise ExportError(f"pass {name} breaks the model: {reason}", fix="Report it with the model's name.")

    return verify


def _signature(graph: Graph) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    def specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=value.dtype.name.lower() if value.dtype is not None else "unknown",
                shape=tuple(d if isinstance(d, int) else str(d) for d in (value.shape or ())),
            )
            for value in values
        )

    return specs(graph.model.graph.inputs), specs(graph.model.graph.outputs)


def _check_graph(path: Path, examples: Examples, precision: str, form: InputForm) -> Parity:
    """The graph that is compiled, against the reference: float32 must agree, lower precisions must be finite."""
    from vitdeploy import exporting

    parity = exporting.check(path, examples.pairs(form), examples.input_name)
    reason = exporting.disagreement(parity)
    if precision == "fp32" and reason is not None:
        raise ExportError(f"the optimised graph is wrong: {reason}", fix="Run with --verify to find the pass.")
    if not parity.finite:
        raise ExportError(f"the {precision} graph gives NaN or infinity", fix="Use --precision fp32.")
    return parity


def default_folder(recipe: Recipe) -> Path:
    """`./MODEL-TARGET-PRECISION`, in characters that every file system takes."""
    spec = recipe.model.spec
    name = Path(spec).stem if spec.endswith((".onnx", ".pt2")) else Path(spec.rpartition(":")[2]).name
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    precision = recipe.precision.kind or targets.find(recipe.target).default_precision
    return Path(f"{safe or 'model'}-{recipe.target.kind}-{precision}")
