"""All of it, from one recipe: export, inspect, eval, bench, gate, report."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import recipe as recipes
from vitdeploy import targets, tasks
from vitdeploy.commands import gate as gating
from vitdeploy.commands.bench import bench as benching
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import default_folder, export
from vitdeploy.commands.inspect import inspect as prove
from vitdeploy.commands.report import report as reporting
from vitdeploy.data.opening import guess_form, open_dataset
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.pipeline.finish import Exported
from vitdeploy.progress import Progress
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.recipe.shipped import find_recipe


class Outcome(BaseModel):
    """Everything that `run` found; what could not be measured is None and said in the gate."""

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
) -> Outcome:
    """Run the recipe in the file `name`, or the shipped recipe of that name; what else is given wins over it.

    Raises:
        VitdeployError: a step failed; what the steps before it wrote stays.
    """
    recipe = recipes.compose(base=find_recipe(name), weights=weights, calibration=calibration, evaluation=data)
    out = out or default_folder(recipe)
    _check_evaluation_data(recipe, progress)
    exported = export(recipe, out, progress, force=force)
    compiled = exported.stage == "artifact"
    evaluation = evaluate(out, None, progress) if compiled and _has_data(recipe) else None
    audit = prove.inspect(out)
    bench = benching.bench([out], progress, benching.Plan(profile=True)) if compiled else None
    gate = gating.gate(out, {}, progress)
    if not reporting.available():
        progress.warn("no report.html: pip install 'vitdeploy[report]', then vitdeploy report " + str(out))
    page = reporting.report([out], None, progress).report if reporting.available() else None
    return Outcome(export=exported, audit=audit, eval=evaluation, bench=bench, gate=gate, report=page)


def _has_data(recipe: Recipe) -> bool:
    return recipe.data.evaluation is not None or recipe.model.spec.startswith("demo:")


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
