"""All of it, from one recipe: export, inspect, eval, bench, gate, report."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import plugins, targets, tasks
from vitdeploy import recipe as recipes
from vitdeploy.data.dataset import form_of, open_dataset
from vitdeploy.errors import RecipeError
from vitdeploy.evidence import Audit, Bench, Eval, Gate
from vitdeploy.pipeline import benching, gating, prove, reporting
from vitdeploy.pipeline.compiling import Exported
from vitdeploy.pipeline.evaluating import evaluate
from vitdeploy.pipeline.export import default_folder, export
from vitdeploy.progress import Progress
from vitdeploy.recipe import Preprocess, Recipe


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


def find_recipe(name: str) -> Recipe:
    """The recipe in a file, or a shipped one."""
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):
        return recipes.read(Path(name))
    return recipes.read(shipped_recipe(name)[0])


def shipped_recipes() -> dict[str, str]:
    """Names of the shipped recipes, each with its first comment line."""
    found = {}
    for path in sorted(_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def shipped_recipe(name: str) -> tuple[Path, str]:
    """The file and the text of a shipped recipe.

    Raises:
        RecipeError: there is none of that name; the nearest is named.
    """
    path = _folder() / f"{name}.yaml"
    known = sorted(shipped_recipes())
    if name not in known:
        raise RecipeError(
            f"there is no recipe {name!r}{plugins.did_you_mean(name, known)}", fix=f"Shipped are {', '.join(known)}."
        )
    return path, path.read_text(encoding="utf-8")


def _folder() -> Path:
    """Beside the package in a checkout, inside it in a wheel."""
    package = Path(str(resources.files("vitdeploy")))
    checkout = package.parent / "recipes"
    return checkout if (package.parent / "pyproject.toml").exists() and checkout.is_dir() else package / "recipes"


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
        form = tasks.find(recipe.task).data if recipe.task.kind is not None else form_of(spec)
        open_dataset(spec, recipe.preprocess or unused, labels=None, need_labels=True, split="evaluation", form=form)
