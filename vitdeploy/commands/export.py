"""From a recipe to a folder: load, export, raise, quantize, lower, compile, audit."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment, targets
from vitdeploy.artifact import Manifest, TargetRecord
from vitdeploy.artifact.layout import EXAMPLE, GRAPH
from vitdeploy.calibrate.quantizer import QUANTIZED
from vitdeploy.environment import Host
from vitdeploy.errors import QuantizeError, UsageError
from vitdeploy.pipeline.candidate import Workshop
from vitdeploy.pipeline.choose import choose
from vitdeploy.pipeline.examples import save_example
from vitdeploy.pipeline.finish import Exported, finish, summary
from vitdeploy.pipeline.prepare import check_graph, prepare
from vitdeploy.progress import Progress
from vitdeploy.recipe import STATIC, Recipe
from vitdeploy.targets import Target


@dataclass(frozen=True)
class Elsewhere:
    """Another machine, which will compile the bundle and run it."""

    name: str
    host: Host


def export(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Exported:
    """Make the artifact (or, where the target is compiled on another device, the bundle) that `recipe` describes.

    With another machine in `elsewhere` it is a bundle in any case: the target need not be here, that machine's CPU has
    to have the precision, and what this one would be faster at decides nothing.

    Raises:
        VitdeployError: with nothing left behind.
    """
    started = time.monotonic()
    target, asked = _settle(recipe, elsewhere)
    recipe = _complete(recipe, asked)
    artifacts.refuse_existing(out, force=force)
    with artifacts.atomic_folder(out, force=force) as folder:
        work = folder / "work"
        work.mkdir()
        reduced = asked != "fp32"
        prepared = prepare(recipe, target, work, progress, calibrated=reduced, half=reduced, verify=verify)
        recipe = recipe.model_copy(update={"task": prepared.task})
        chosen = choose(
            Workshop(prepared, recipe, target, work, progress), progress, elsewhere.name if elsewhere else ""
        )
        found = chosen.candidate
        found.move(folder)
        examples = prepared.examples
        manifest = Manifest(
            stage="bundle",
            model=prepared.model,
            recipe=recipe,
            recipe_digest=recipe.digest,
            export=prepared.export,
            passes=(*prepared.passes, *found.passes),
            quantized=found.record,
            placement=found.placement,
            trials=chosen.trials,
            target=TargetRecord(kind=target.name, device=target.device, precision=found.kind),
            preprocess=prepared.preprocess,
            labels=prepared.labels,
            inputs=found.inputs,
            outputs=found.outputs,
            versions=environment.library_versions(),
        )
        del prepared
        gc.collect()
        with progress.step("Compare the target-ready graph with the reference"):
            parity = check_graph(folder / GRAPH, examples, found.kind, recipe.target.input)
        save_example(folder / EXAMPLE, examples, recipe.target.input)
        shutil.rmtree(work)
        manifest = manifest.model_copy(update={"graph_parity": parity})
        manifest, notes = finish(folder, manifest, target, progress, out, here=elsewhere is None)
    doubts = [value for key, value in found.record.items() if key.startswith("doubt: ")]
    notes = [*doubts, *chosen.notes, *notes]
    if verify and found.kind != "fp32":
        told = "--verify compared the passes before quantization; those behind it change what FP32 computes"
        notes = [*notes, told]
    if not found.structure.attention:
        notes = ["no attention site: nothing in it is recognised as a Vision Transformer", *notes]
    return summary(out, manifest, time.monotonic() - started, notes)


def _settle(recipe: Recipe, elsewhere: Elsewhere | None) -> tuple[Target, str]:
    """Find the target and the precision, and refuse early what would fail late."""
    target = targets.find(recipe.target)
    precision = recipe.precision.kind or target.default_precision
    if precision != "auto":
        target.check_precision(precision, elsewhere.host if elsewhere else None)
    if recipe.precision.max_drop_pp is not None:
        _check_budget(recipe, precision)
    if elsewhere is None and not target.built_on_device:
        target.require()
    if precision in STATIC and recipe.data.calibration is None and not recipe.model.spec.startswith("demo:"):
        raise QuantizeError(
            f"{precision} needs calibration images: ranges are never invented",
            fix="Give --calibration DATA (a folder of images is enough)."
            + (" Or use --precision int8-dynamic, which needs none." if "int8-dynamic" in target.precisions else ""),
        )
    return target, precision


def _check_budget(recipe: Recipe, precision: str) -> None:
    if precision == "fp32":
        raise UsageError("float32 loses nothing, so there is no --max-drop to keep", fix="Ask for a lower --precision.")
    if precision != "auto" and precision not in QUANTIZED:
        raise UsageError(
            f"{precision} leaves no linear in float, so it cannot keep a --max-drop",
            fix=f"Ask for {', '.join(QUANTIZED)} or auto, or judge it with `vitdeploy eval` and `gate --max-drop`.",
        )
    if recipe.data.calibration is None and not recipe.model.spec.startswith("demo:"):
        raise QuantizeError(
            "there are no images to judge --max-drop on",
            fix="Give --calibration DATA (with labels it is judged by them).",
        )


def _complete(recipe: Recipe, precision: str) -> Recipe:
    """Write out what was left to defaults, so that the manifest tells everything."""
    data = recipe.data
    if recipe.model.spec.startswith("demo:"):
        spec = recipe.model.spec
        data = data.model_copy(update={"calibration": data.calibration or spec, "evaluation": data.evaluation or spec})
    return recipe.model_copy(
        update={"data": data, "precision": recipe.precision.model_copy(update={"kind": precision})}
    )


def default_folder(recipe: Recipe) -> Path:
    """`./MODEL-TARGET-PRECISION`, in characters that every file system takes."""
    spec = recipe.model.spec
    name = Path(spec).stem if spec.endswith((".onnx", ".pt2")) else Path(spec.rpartition(":")[2]).name
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    precision = recipe.precision.kind or targets.find(recipe.target).default_precision
    return Path(f"{safe or 'model'}-{recipe.target.kind}-{precision}")
