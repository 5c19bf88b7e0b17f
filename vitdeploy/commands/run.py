"""`vitdeploy run`: all of it from one recipe. Export, inspect, eval, bench, gate, report."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import recipe as recipes
from vitdeploy import sources, targets, tasks
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import default_folder, export
from vitdeploy.commands.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.report.report import is_available, report
from vitdeploy.data.opening import guess_form, open_dataset
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.pipeline.finish import Exported
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.recipe.shipped import find_recipe


class Outcome(BaseModel):
    """All evidence that `run` made; what could not be measured is None, and the gate says why."""

    model_config = ConfigDict(frozen=True)
    export: Exported
    audit: Audit
    eval: Eval | None
    bench: Bench | None
    gate: Gate
    report: str | None = None
    """The page; None without the extra `report`."""


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
    """Run the recipe in the file `name`, or the shipped recipe of that name; what else is given wins over it.

    Raises:
        VitdeployError: a step failed; what the steps before it wrote stays.
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
    verdict = gate(artifact, {}, progress)
    page = None
    if is_available():
        page = report([artifact], None, progress, cache=cache).report
    else:
        progress.warn(f"no report.html: pip install 'vitdeploy[report]', then vitdeploy report {out}")
    return Outcome(export=exported.summary, audit=audit, eval=evaluation, bench=timing, gate=verdict, report=page)


def _check_evaluation_data(recipe: Recipe, progress: Progress) -> None:
    """Open the data once before the minutes of exporting; the model's class names are checked with it later.

    What is only bundled here is evaluated on the device, and its data may be only there. Where the recipe leaves the
    task to the model, only the model will tell which labels it needs: any form of them will do here.
    """
    spec = recipe.data.evaluation
    if spec is None or targets.find(recipe.target).unavailable() is not None:
        return
    unused = Preprocess(size=(1, 1))  # no image is read here
    with progress.step("Look at the evaluation data"):
        form = tasks.find(recipe.task).data if recipe.task.kind is not None else guess_form(spec)
        open_dataset(spec, recipe.preprocess or unused, labels=None, need_labels=True, split="evaluation", form=form)
