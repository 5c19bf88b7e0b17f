"""`vitdeploy run`: all steps from one recipe. Export, inspect, eval, bench, gate, report."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import recipe as recipes
from vitdeploy import sources, targets, tasks
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import default_folder
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.report.report import is_available, report
from vitdeploy.data.opening import guess_form, open_dataset
from vitdeploy.errors import DataError
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
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

    Raises:
        VitdeployError: a step failed. The results of earlier steps stay in the folder.
    """
    base = find_recipe(name, sources.anchor)
    recipe = recipes.compose(base=base, weights=weights, calibration=calibration, evaluation=data)
    out = out or default_folder(recipe)
    _check_evaluation_data(recipe, progress)
    exported = export(recipe, out, progress, force=force, cache=cache)
    artifact = exported.artifact
    compiled = artifact.manifest.stage == "artifact"
    has_data = artifact.manifest.recipe.data.evaluation is not None
    evaluation = evaluate(artifact, None, progress) if compiled and has_data else None
    audit = inspect(artifact)
    timing = bench([artifact], progress, Plan(profile=True)) if compiled else None
    if artifact.manifest.recipe.gate.require_signed is not None:
        progress.warn(
            f"gate.require_signed is not checked here, it cannot be signed yet: vitdeploy sign {out} --key KEY"
        )
    verdict = gate(artifact, {}, progress, is_new=True)
    page = None
    if is_available():
        page = report([artifact], None, progress, cache=cache).report
    else:
        progress.warn(f"no report.html: pip install 'vitdeploy[report]', then vitdeploy report {out}")
    return Outcome(export=exported.summary, audit=audit, eval=evaluation, bench=timing, gate=verdict, report=page)


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
