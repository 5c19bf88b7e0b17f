"""From a recipe to a folder: load, export, raise, quantize, lower, compile, audit."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.artifact import Manifest, PassRecord, TargetRecord, TensorSpec
from vitdeploy.errors import QuantizeError
from vitdeploy.pipeline.compiling import GRAPH, SITES, Exported, finish, summary
from vitdeploy.pipeline.inputs import save_example
from vitdeploy.pipeline.preparing import Prepared, check_graph, prepare
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph

EXAMPLE = "reference/example.npz"


def export(recipe: Recipe, out: Path, progress: Progress, *, force: bool = False, verify: bool = False) -> Exported:
    """Make the artifact (or, where the target is compiled on another device, the bundle) that `recipe` describes.

    Raises:
        VitdeployError: with nothing left behind.
    """
    started = time.monotonic()
    target, precision = _settle(recipe)
    recipe = _complete(recipe, precision)
    artifacts.refuse_existing(out, force=force)
    with artifacts.staged(out, force=force) as folder:
        work = folder / "work"
        work.mkdir()
        reduced = precision != "fp32"
        prepared = prepare(recipe, target, work, progress, calibrated=reduced, half=reduced, verify=verify)
        graph, passes, quantized = _lower(prepared, recipe, target, precision, progress)
        inputs, outputs = _signature(graph)
        graph.save(folder / GRAPH)
        structure = prepared.structure.located(node.name or "" for node in graph.nodes)
        structure.save(folder / SITES)
        examples = prepared.examples
        manifest = Manifest(
            stage="bundle",
            model=prepared.model,
            recipe=recipe,
            recipe_digest=recipe.digest,
            export=prepared.export,
            passes=tuple(passes),
            quantized=quantized,
            target=TargetRecord(kind=target.name, device=target.device, precision=precision),
            preprocess=prepared.preprocess,
            labels=prepared.labels,
            inputs=inputs,
            outputs=outputs,
            versions=environment.library_versions(),
        )
        del graph, prepared
        gc.collect()
        with progress.step("Compare the target-ready graph with the reference"):
            parity = check_graph(folder / GRAPH, examples, precision, recipe.target.input)
        save_example(folder / EXAMPLE, examples, recipe.target.input)
        shutil.rmtree(work)
        manifest = manifest.model_copy(update={"graph_parity": parity})
        manifest, notes = finish(folder, manifest, target, progress, out)
    if verify and precision != "fp32":
        told = "--verify compared the passes before quantization; those behind it change what FP32 computes"
        notes = [*notes, told]
    if not structure.attention:
        notes = ["no attention site: nothing in it is recognised as a Vision Transformer", *notes]
    return summary(out, manifest, time.monotonic() - started, notes)


def _settle(recipe: Recipe) -> tuple[Target, str]:
    """Find the target and the precision, and refuse early what would fail late."""
    target = targets.find(recipe.target)
    precision = recipe.precision.kind or target.default_precision
    target.check_precision(precision)
    if not target.built_on_device:
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


def _lower(
    prepared: Prepared, recipe: Recipe, target: Target, precision: str, progress: Progress
) -> tuple[Graph, list[PassRecord], dict[str, str]]:
    """Quantize the prepared graph and lower it, in place: the graph to compile, and what was done."""
    from vitdeploy import passes
    from vitdeploy.passes import order
    from vitdeploy.pipeline.quantizing import quantize

    dialect = target.dialect()
    quantized = quantize(prepared.graph, prepared.structure, recipe.precision, dialect, prepared.calibration, progress)
    with progress.step(f"Lower to what {target.name} compiles best"):
        check = prepared.check if precision == "fp32" else None
        records = passes.run(order.lowering(dialect), quantized.graph, check)
    return quantized.graph, [*prepared.passes, *records], dict(quantized.record)


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


def default_folder(recipe: Recipe) -> Path:
    """`./MODEL-TARGET-PRECISION`, in characters that every file system takes."""
    spec = recipe.model.spec
    name = Path(spec).stem if spec.endswith((".onnx", ".pt2")) else Path(spec.rpartition(":")[2]).name
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    precision = recipe.precision.kind or targets.find(recipe.target).default_precision
    return Path(f"{safe or 'model'}-{recipe.target.kind}-{precision}")
