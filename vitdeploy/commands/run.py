"""`vitdeploy run`: all steps from one recipe. Export, inspect, eval, bench, gate, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import recipe as recipes
from vitdeploy import sources, targets, tasks
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import Elsewhere, default_folder
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.log.describe import describe_artifact, describe_failed_run
from vitdeploy.commands.log.entry import now
from vitdeploy.commands.log.logs import NO_LOGS, Logs
from vitdeploy.commands.report.report import is_available, report
from vitdeploy.data.opening import guess_form, open_dataset
from vitdeploy.errors import DataError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported, ExportResult
from vitdeploy.progress import Progress
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.recipe.shipped import find_recipe


class Outcome(BaseModel):
    """The results of all steps. A result that could not be measured is None, and the gate gives the reason."""

    model_config = ConfigDict(frozen=True)
    export: Exported
    audit: Audit
    eval: Eval | None
    bench: Bench | None
    gate: Gate
    report: str | None = None
    """The path of the page; None without the extra `report`."""


def run(
    name: str,
    out: Path | None,
    progress: Progress,
    *,
    weights: str | None = None,
    calibration: str | None = None,
    data: str | None = None,
    force: bool = False,
    cache: GraphCache | None = None,
    logs: Logs = NO_LOGS,
) -> Outcome:
    """Run all steps of a recipe.

    Args:
        name: a recipe file, or the name of a shipped recipe.
        out: the folder to write; None is ./MODEL-TARGET-PRECISION.
        progress: gets the steps and warnings.
        weights: overrides the recipe's weights.
        calibration: overrides the recipe's calibration images.
        data: overrides the recipe's evaluation data.
        force: replace an artifact at `out`.
        cache: the cache of exported graphs; None exports again.
        logs: where the result, or the reason of a failure, is logged.

    Raises:
        VitdeployError: a step failed. The results of earlier steps stay in the folder.
    """
    started = now()
    base = find_recipe(name, sources.anchor)
    recipe = recipes.compose(base=base, weights=weights, calibration=calibration, evaluation=data)
    out = out or default_folder(recipe)
    try:
        steps = run_steps(recipe, out, progress, force=force, cache=cache)
        artifact = steps.exported.artifact
        if artifact.manifest.recipe.gate.require_signed is not None:
            progress.warn(
                f"gate.require_signed is not checked here, it cannot be signed yet: vitdeploy sign {out} --key KEY"
            )
        verdict = gate(artifact, {}, progress, before_signing=True)
        page = None
        if is_available():
            page = report(artifact, None, progress, cache=cache).report
        else:
            progress.warn(f"no report.html: pip install 'vitdeploy[report]', then vitdeploy report {out}")
    except VitdeployError as error:
        logs.write(describe_failed_run(recipe, out, error, started), ())
        raise
    entry = describe_artifact("run", artifact, steps.evaluation, steps.audit, steps.timing, verdict, started)
    logs.write(entry, logs.list_files(artifact))
    return Outcome(
        export=steps.exported.summary,
        audit=steps.audit,
        eval=steps.evaluation,
        bench=steps.timing,
        gate=verdict,
        report=page,
    )


@dataclass(frozen=True)
class Steps:
    """The results of the steps of a recipe that come before the verdict. A bundle has no eval and no bench."""

    exported: ExportResult
    evaluation: Eval | None
    audit: Audit
    timing: Bench | None


def run_steps(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    cache: GraphCache | None = None,
    plan: Plan | None = None,
    find_reference: Callable[[Artifact], Path | None] = lambda _: None,
    alone: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_step: Callable[[str], None] = lambda _: None,
    timed: bool = True,
    elsewhere: Elsewhere | None = None,
    postpone: Callable[[Artifact], bool] = lambda _: False,
) -> Steps:
    """Export, evaluate, inspect and time what a recipe describes.

    Args:
        recipe: the recipe.
        out: the folder to write.
        progress: gets the steps and warnings.
        force: replace an artifact at `out`.
        cache: the cache of exported graphs; None exports again.
        plan: the settings of the bench; None: the recipe's, with a profile.
        find_reference: returns a file with the reference's answers; None: the reference answers here.
        alone: entered around the bench, so that nothing else runs then.
        on_step: called with the name of each step when it begins.
        timed: False leaves the bench out.
        elsewhere: the machine that compiles and runs it, if it is not this one. The result is a bundle.
        postpone: returns True to leave the evaluation out.

    Raises:
        VitdeployError: a step failed. The results of earlier steps stay in the folder.
    """
    on_step("export")
    _check_evaluation_data(recipe, progress)
    exported = export(recipe, out, progress, force=force, cache=cache, elsewhere=elsewhere)
    artifact = exported.artifact
    compiled = artifact.manifest.stage == "artifact"
    evaluation, timing = None, None
    if compiled and artifact.manifest.recipe.data.evaluation is not None and not postpone(artifact):
        on_step("eval")
        evaluation = evaluate(artifact, None, progress, reference=find_reference(artifact))
    on_step("inspect")
    audit = inspect(artifact)
    if compiled and timed:
        on_step("bench")
        with alone():
            timing = bench([artifact], progress, plan or Plan(profile=True))
    return Steps(exported, evaluation, audit, timing)


def _check_evaluation_data(recipe: Recipe, progress: Progress) -> None:
    """Open the evaluation data once, because the export takes minutes. Class names are checked later.

    A bundle is evaluated on the device, and its data may be only there, so it is not checked. If the recipe names no
    task, only the loaded model will tell which labels it needs; here any form of labels is accepted.
    """
    spec = recipe.data.evaluation
    if spec is None or targets.find(recipe.target).unavailable() is not None:
        return
    with progress.step("Check the evaluation data"):
        task = tasks.find(recipe.task) if recipe.task.kind is not None else None
        form, need_labels = (guess_form(spec), True) if task is None else (task.data, task.needs_labels)
        open_any = partial(open_dataset, spec, labels=None, need_labels=need_labels, split="evaluation", form=form)
        if recipe.preprocess is not None:
            open_any(recipe.preprocess)
            return
        try:
            open_any(Preprocess(size=(1, 1)))  # no image is read here
        except DataError:
            with suppress(DataError):  # the model may be one of clips
                open_any(Preprocess(size=(1, 1), frames=1))
                return
            raise
