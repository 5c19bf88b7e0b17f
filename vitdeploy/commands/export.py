"""`vitdeploy export`: make an artifact from a recipe. Load, export, raise, quantize, lower, compile, audit."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment, precision, sources, targets
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Manifest, TargetRecord
from vitdeploy.artifact.layout import EXAMPLE, GRAPH
from vitdeploy.environment import Host
from vitdeploy.errors import QuantizeError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.calibration import judging_batches
from vitdeploy.pipeline.candidate import CandidateBuilder
from vitdeploy.pipeline.choose import Chosen, Request, choose_fastest, choose_given
from vitdeploy.pipeline.dumps import GraphDumps
from vitdeploy.pipeline.examples import save_example
from vitdeploy.pipeline.finish import ExportResult, finish, summarize_export
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.prepare import Options, Prepared, check_graph, prepare
from vitdeploy.precision import Precision
from vitdeploy.progress import Progress
from vitdeploy.recipe import AUTO, Recipe
from vitdeploy.targets import Target


@dataclass(frozen=True)
class Elsewhere:
    """Another machine, which will compile and run the bundle."""

    name: str
    host: Host


@dataclass(frozen=True)
class _Order:
    """A recipe with all defaults filled in, its target, and its precision; None stands for auto."""

    recipe: Recipe
    target: Target
    precision: Precision | None


def export(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    elsewhere: Elsewhere | None = None,
    cache: GraphCache | None = None,
    dumps: Path | None = None,
) -> ExportResult:
    """Make the artifact that `recipe` describes; or a bundle, if the target is compiled on another device.

    With another machine in `elsewhere` the result is always a bundle. The target need not be installed here, the
    precision must be one that the other machine's CPU has, and speeds of this machine do not decide anything.

    Args:
        recipe: the model, the target and everything else.
        out: the folder to write.
        progress: gets the steps and warnings.
        force: replace an artifact at `out`.
        verify: check the numbers after every pass.
        elsewhere: the machine that compiles and runs it, if it is not this one.
        cache: the cache of exported graphs; None exports again.
        dumps: a folder for the graph after each phase; None writes no graphs.

    Raises:
        VitdeployError: a step failed. Nothing is left behind.
    """
    started = time.monotonic()
    order = _complete(recipe, elsewhere)
    artifacts.refuse_existing(out, force=force)
    with artifacts.atomic_folder(out, force=force) as folder:
        work = folder / "work"
        work.mkdir()
        reduced = order.precision is None or not order.precision.is_float32
        options = Options(calibrated=reduced, half=reduced, verify=verify, cache=cache, dumps=GraphDumps(dumps))
        prepared = prepare(order.recipe, order.target.dialect(), work, progress, options)
        builder = CandidateBuilder(
            prepared, order.target, order.recipe.target.batch, order.recipe.target.input, work, progress, options.dumps
        )
        chosen = _choose(builder, order, elsewhere, progress)
        compiled = builder.move(chosen.candidate, folder)
        manifest = _manifest(order, prepared, chosen)
        examples = prepared.examples
        del prepared, builder
        gc.collect()
        form, exact = order.recipe.target.input, chosen.candidate.precision.is_float32
        with progress.step("Compare the target-ready graph with the reference"):
            parity = check_graph(folder / GRAPH, examples, form, exact=exact)
        save_example(folder / EXAMPLE, examples, form)
        shutil.rmtree(work)
        manifest = replace(manifest, graph_parity=parity)
        artifact, notes = finish(
            folder, manifest, order.target, progress, out, here=elsewhere is None, compiled=compiled
        )
    notes = [*_notes(chosen, verify=verify), *notes]
    summary = summarize_export(out, artifact.manifest, time.monotonic() - started, notes)
    return ExportResult(dataclasses.replace(artifact, path=out), summary)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file; relative paths in it are taken from its folder.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
    """
    return recipes.read(path, sources.anchor)


def default_folder(recipe: Recipe) -> Path:
    """Return `./MODEL-TARGET-PRECISION`, in characters that every file system takes."""
    name = sources.short_name(recipe.model.spec)
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    kind = recipe.precision.kind or targets.find(recipe.target).default_precision
    return Path(f"{safe or 'model'}-{recipe.target.kind}-{kind}")


def _complete(recipe: Recipe, elsewhere: Elsewhere | None) -> _Order:
    """Fill in all defaults, so that the manifest records them, and refuse early what would fail late."""
    target, data = targets.find(recipe.target), recipe.data
    kind = recipe.precision.kind or target.default_precision
    models_data = sources.default_data(recipe.model.spec)
    data = replace(data, calibration=data.calibration or models_data, evaluation=data.evaluation or models_data)
    recipe = replace(recipe, data=data, precision=replace(recipe.precision, kind=kind))
    requested = None if kind == AUTO else precision.find(recipe.precision)
    if requested is not None:
        precision.check(kind, target, elsewhere.host if elsewhere else None)
    if recipe.precision.max_drop_pp is not None:
        _check_budget(requested, target, has_images=data.calibration is not None)
    if elsewhere is None and not target.built_on_device:
        target.require()
    if requested is not None and requested.needs_images and data.calibration is None:
        dynamic = " Or use --precision int8-dynamic, which needs no images."
        raise QuantizeError(
            f"--precision {kind} needs calibration images",
            fix="Give --calibration DATA, such as a folder of images."
            + (dynamic if "int8-dynamic" in precision.offered(target) else ""),
        )
    return _Order(recipe, target, requested)


def _check_budget(requested: Precision | None, target: Target, *, has_images: bool) -> None:
    """Refuse a --max-drop that cannot be kept or judged."""
    if requested is not None and requested.is_float32:
        raise UsageError("--max-drop has no meaning for float32, which loses nothing", fix="Give a lower --precision.")
    if requested is not None and not requested.per_linear:
        able = [n for n in precision.offered(target) if issubclass(precision.kind_of(n), precision.LinearPrecision)]
        raise UsageError(
            f"--max-drop does not work with {requested.name}, which cannot leave single linears in float",
            fix=f"Give --precision {', '.join(able)} or auto; or judge it with `vitdeploy eval` and `gate --max-drop`.",
        )
    if not has_images:
        raise QuantizeError(
            "there are no images to judge --max-drop on",
            fix="Give --calibration DATA. If the images have labels, they decide.",
        )


def _choose(builder: CandidateBuilder, order: _Order, elsewhere: Elsewhere | None, progress: Progress) -> Chosen:
    """Make the precision that the recipe names, or the fastest one."""
    recipe, prepared = order.recipe, builder.prepared
    cannot = order.target.cannot_run() if elsewhere is None else None
    untimed = f"it will run on {elsewhere.name}" if elsewhere else cannot.why if cannot is not None else ""
    judging = None
    if recipe.data.calibration is not None and (order.precision is None or recipe.precision.max_drop_pp is not None):
        judging = judging_batches(
            recipe.data.calibration, prepared.preprocess, prepared.labels, recipe.target.input, recipe.target.batch.min
        )
    request = Request(recipe.precision, untimed, judging)
    if order.precision is None:
        return choose_fastest(builder, request, progress)
    return choose_given(builder, request, order.precision, progress)


def _manifest(order: _Order, prepared: Prepared, chosen: Chosen) -> Manifest:
    """Return the manifest of the bundle."""
    recipe, candidate = replace(order.recipe, task=prepared.task), chosen.candidate
    return Manifest(
        stage="bundle",
        model=prepared.model,
        recipe=recipe,
        recipe_digest=recipe.digest,
        export=prepared.export,
        passes=(*prepared.passes, *candidate.passes),
        quantized=candidate.quantized.record,
        placement=candidate.quantized.placement,
        trials=chosen.trials,
        target=TargetRecord(kind=order.target.name, device=order.target.device, precision=candidate.name),
        preprocess=prepared.preprocess,
        labels=prepared.labels,
        inputs=candidate.inputs,
        outputs=candidate.outputs,
        versions=environment.library_versions(),
    )


def _notes(chosen: Chosen, *, verify: bool) -> list[str]:
    """Return what the user should know about the choice."""
    candidate = chosen.candidate
    notes = [*candidate.doubts, *chosen.notes]
    if verify and not candidate.precision.is_float32:
        notes.append("--verify checked the passes before quantization; later passes change the numbers on purpose")
    if not candidate.structure.attention:
        notes.insert(0, "the model has no attention site, so it is not recognised as a Vision Transformer")
    return notes
