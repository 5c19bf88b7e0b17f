"""What a candidate loses is seen: by labels where they are the model's, else by every changed answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from vitdeploy import recipe as recipes
from vitdeploy import targets
from vitdeploy.artifact import Trial
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.graph.model import array, load
from vitdeploy.pipeline import accuracy_budget
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget
from vitdeploy.pipeline.calibration import GraphInputs, open_images
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.mixed_precision import fit_budget
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.precision import find
from vitdeploy.progress import Silent
from vitdeploy.recipe import Batch, DataSpec, PrecisionSpec, TargetSpec
from vitdeploy.session import Array

DIGITS = Path(__file__).parents[2] / "vitdeploy" / "assets" / "digits.npz"
CHANGES = {
    "nothing": lambda w: w,
    "the order of the classes": lambda w: np.roll(w, 1, axis=-1),
    "numbers that are none": lambda w: np.full_like(w, np.nan),
}


FLOAT32 = find(PrecisionSpec(kind="fp32"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    recipe = recipes.compose("demo:digits", target="onnxruntime")
    dialect = targets.find(recipe.target).dialect()
    return prepare(recipe, dialect, tmp_path_factory.mktemp("work"), Silent(), Options())


@pytest.fixture
def builder(prepared: Prepared, tmp_path: Path) -> CandidateBuilder:
    target = targets.find(TargetSpec(kind="onnxruntime"))
    return CandidateBuilder(prepared, target, Batch(), "normalized", tmp_path, Silent())


def budget_of(builder: CandidateBuilder, data: str, *, emulated: bool = False) -> AccuracyBudget:
    prepared = builder.prepared
    facts = prepared.facts
    inputs = GraphInputs(facts.examples.input_name, facts.preprocess, "normalized")
    _, batches = open_images(DataSpec(calibration=data), facts.labels, inputs, 1)
    assert batches is not None
    return AccuracyBudget(builder, builder.make(FLOAT32), 0.5, batches, Silent(), emulated=emulated)


@pytest.fixture(params=["labelled", "unlabelled", "labelled by others"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Images with how they should be judged."""
    with np.load(DIGITS) as digits:
        chosen = digits["calibration"][:64]
        images, labels = digits["images"][chosen], digits["labels"][chosen]
    given: dict[str, dict[str, Array]] = {
        "labelled": {"labels": labels},
        "unlabelled": {},
        "labelled by others": {"labels": (labels + 3) % 10},  # the reference is right by chance, and cannot lose
    }
    path = tmp_path / "images.npz"
    np.savez(path, images=images, **given[request.param])
    return str(path), "labels" if request.param == "labelled" else "agreement"


def changed(builder: CandidateBuilder, change: Callable[[Array], Array]) -> Candidate:
    candidate = builder.make(FLOAT32)
    graph = load(candidate.folder / GRAPH)
    (head,) = (n for n in graph.nodes if n.name == "head/MatMul" or (n.name or "").startswith("head/Gemm"))
    for index in range(1, len(head.inputs)):
        numbers = change(array(head.inputs[index]).astype(np.float32))
        head.replace_input_with(index, graph.initializer(numbers, f"changed/{index}"))
    graph.save(candidate.folder / GRAPH)
    return candidate


@pytest.mark.parametrize(("change", "least", "most"), [
    ("nothing", 0, 0), ("the order of the classes", 90, 100), ("numbers that are none", 90, 100),
])  # fmt: skip
def test_what_is_lost_is_seen(
    change: str, least: float, most: float, data: tuple[str, str], builder: CandidateBuilder
) -> None:
    spec, by = data
    budget = budget_of(builder, spec)
    trial = budget.judge(changed(builder, CHANGES[change]))
    assert (trial.judged_by, trial.images) == (by, 64)
    assert trial.lost is not None
    assert least <= trial.lost <= most
    assert budget.holds(trial) == (change == "nothing")
    assert trial.why == ("" if change == "nothing" else "over the budget of 0.5")


@pytest.mark.parametrize(("lost", "holds"), [(0.5, True), (0.501, False), (None, False)])
def test_a_budget_may_be_used_up(lost: float | None, holds: bool, builder: CandidateBuilder) -> None:
    assert budget_of(builder, "demo:digits").holds(Trial(precision="int8", lost=lost)) is holds


def test_what_cannot_run_here_is_judged_by_its_graph(builder: CandidateBuilder) -> None:
    budget = budget_of(builder, "demo:digits", emulated=True)
    assert budget.judge(changed(builder, CHANGES["nothing"])).lost == 0
    assert budget.judge(changed(builder, CHANGES["the order of the classes"])).lost == pytest.approx(100, abs=10)


def test_what_only_the_engine_rounds_is_not_judged_by_its_graph(prepared: Prepared, tmp_path: Path) -> None:
    target = targets.find(TargetSpec(kind="openvino"))
    builder = CandidateBuilder(prepared, target, Batch(), "normalized", tmp_path, Silent())
    budget = budget_of(builder, "demo:digits", emulated=True)
    candidate, (trial,) = fit_budget(builder, find(PrecisionSpec(kind="int8-dynamic")), budget)
    assert (candidate, trial.lost) == (None, None)
    assert "is not known" in trial.why


def test_bfloat16_is_judged_in_float32(prepared: Prepared, tmp_path: Path) -> None:
    """ONNX Runtime on CPUs opens no graph in bfloat16."""
    target = targets.find(TargetSpec(kind="tensorrt", device="sm86"))
    builder = CandidateBuilder(prepared, target, Batch(), "normalized", tmp_path, Silent())
    budget = budget_of(builder, "demo:digits", emulated=True)
    trial = budget.judge(builder.make(find(PrecisionSpec(kind="bf16"))))
    assert trial.lost is not None
    assert trial.lost <= 5


def test_large_answers_are_judged_on_fewer_images(builder: CandidateBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many for both sides, although answers that are not finite take no room."""
    monkeypatch.setattr("vitdeploy.pipeline.accuracy_budget._MOST_ANSWER_BYTES", 10 * 8)
    budget = budget_of(builder, "demo:digits")
    assert budget.judge(changed(builder, CHANGES["numbers that are none"])).images == 11


@pytest.mark.parametrize(("seconds_for_an_image", "judged"), [(0.0, 600), (0.1, 456), (30.0, 256)])
def test_small_models_are_judged_on_more_images(
    builder: CandidateBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_for_an_image: float,
    judged: int,
) -> None:
    with np.load(DIGITS) as digits:
        np.savez(tmp_path / "many.npz", images=digits["images"][:600], labels=digits["labels"][:600])
    budget = budget_of(builder, str(tmp_path / "many.npz"))
    calls = count()
    monkeypatch.setattr(accuracy_budget.time, "monotonic", lambda: seconds_for_an_image * next(calls))
    assert budget.judge(builder.make(FLOAT32)).images == judged
