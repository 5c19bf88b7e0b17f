"""What a candidate loses is seen: by labels where they are the model's, else by every changed answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vitdeploy import recipe as recipes
from vitdeploy import targets
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.graph.model import array, load
from vitdeploy.pipeline.accuracy_budget import Budget
from vitdeploy.pipeline.candidate import Candidate, Workshop
from vitdeploy.pipeline.prepare import Prepared, prepare
from vitdeploy.progress import Silent
from vitdeploy.recipe import Recipe
from vitdeploy.session import Array

DIGITS = Path(__file__).parents[2] / "vitdeploy" / "assets" / "digits.npz"
CHANGES = {
    "nothing": lambda w: w,
    "the order of the classes": lambda w: np.roll(w, 1, axis=-1),
    "numbers that are none": lambda w: np.full_like(w, np.nan),
}


def recipe(calibration: str = "demo:digits") -> Recipe:
    return recipes.compose("demo:digits", target="onnxruntime", precision="int8-dynamic", calibration=calibration)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    spec = recipe()
    return prepare(spec, targets.find(spec.target), tmp_path_factory.mktemp("work"), Silent(), calibrated=False)


@pytest.fixture
def shop(prepared: Prepared, tmp_path: Path) -> Callable[[str], Workshop]:
    def make(calibration: str) -> Workshop:
        spec = recipe(calibration)
        return Workshop(prepared, spec, targets.find(spec.target), tmp_path, Silent())

    return make


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


def changed(shop: Workshop, change: Callable[[Array], Array]) -> Candidate:
    candidate = shop.make_plain("fp32")
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
    change: str, least: float, most: float, data: tuple[str, str], shop: Callable[[str], Workshop]
) -> None:
    spec, by = data
    made = shop(spec)
    budget = Budget(made, made.make_plain("fp32"), 0.5, Silent())
    trial = budget.judge(changed(made, CHANGES[change]))
    assert (trial.judged_by, trial.images) == (by, 64)
    assert trial.lost is not None
    assert least <= trial.lost <= most
    assert budget.holds(trial) == (change == "nothing")


def test_what_cannot_run_here_is_judged_by_its_graph(shop: Callable[[str], Workshop]) -> None:
    made = shop("demo:digits")
    budget = Budget(made, made.make_plain("fp32"), 0.5, Silent(), emulated=True)
    assert budget.judge(changed(made, CHANGES["nothing"])).lost == 0
    assert budget.judge(changed(made, CHANGES["the order of the classes"])).lost == pytest.approx(100, abs=10)


def test_large_answers_are_judged_on_fewer_images(
    shop: Callable[[str], Workshop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many for both sides, although answers that are not finite take no room."""
    monkeypatch.setattr("vitdeploy.pipeline.accuracy_budget._MOST_ANSWER_BYTES", 10 * 8)
    made = shop("demo:digits")
    budget = Budget(made, made.make_plain("fp32"), 0.5, Silent())
    assert budget.judge(changed(made, CHANGES["numbers that are none"])).images == 11
