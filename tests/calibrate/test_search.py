"""The search finds the best way, prefers the simple one, and lists what it tried."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.detectors import Detector
from tests.graphs import dynamo, images, raised, redrawn, run
from vitdeploy.calibrate.choice import NORMS, Choice
from vitdeploy.calibrate.search import ALPHAS, Judge, find_best_choice
from vitdeploy.graph.model import Graph, array
from vitdeploy.quantize import Calibration


def scored(best: Choice, step: float) -> Callable[[Choice], float]:
    def score(choice: Choice) -> float:
        away = abs((choice.alpha or 0.0) - (best.alpha or 0.0))
        same = (choice.ranges == best.ranges) + (choice.correct_bias == best.correct_bias)
        return 40.0 - step * away + step * same

    return score


@pytest.mark.parametrize("best", [Choice(), Choice(0.625, "mse"), Choice(0.25, "minmax", correct_bias=True)])
def test_it_finds_the_best(best: Choice) -> None:
    found, trials = find_best_choice(scored(best, 5.0))
    assert found == best
    assert [t.choice.alpha for t in trials[: len(ALPHAS)]] == list(ALPHAS)
    assert len({t.choice for t in trials}) == len(trials)


def test_noise_keeps_the_simple_way() -> None:
    assert find_best_choice(scored(Choice(0.75, "mse"), 0.04))[0] == Choice()


def test_a_given_strength_is_taken() -> None:
    found, trials = find_best_choice(scored(Choice(), 5.0), alphas=(0.5,), tune_ranges=False)
    assert (found, len(trials)) == (Choice(0.5), 1)


def test_folded_norms_are_taken_where_they_are_asked_for() -> None:
    found, trials = find_best_choice(lambda _: 30.0, alphas=(NORMS,))
    assert found == Choice(NORMS)
    assert {t.choice.alpha for t in trials} == {NORMS}
    assert (trials[0].record.norms, trials[0].record.alpha) == (True, 0.5)
    assert str(trials[0].record) == "norms folded, minmax ranges: 30.0 dB"


def test_the_judge_measures_noise(exported: Callable[[str], bytes]) -> None:
    graph, _, _ = raised(exported("dynamo"))
    batches = [images(1, seed) for seed in range(4)]
    judge = Judge(graph, Calibration(lambda: iter(batches), 4, 4, "test", "digest"))
    assert judge.sqnr_db(graph) > 100

    def noisy(share: float) -> Graph:
        changed = Graph(graph.model.clone())
        node = next(n for n in changed.nodes if n.name == "head/MatMul")
        weight = array(node.inputs[1])
        noise = np.random.default_rng(0).standard_normal(weight.shape) * weight.std() * share
        node.replace_input_with(1, changed.initializer((weight + noise).astype(np.float32), "noisy"))
        return changed

    quiet, loud = (judge.sqnr_db(noisy(share)) for share in (0.01, 0.1))
    assert quiet - loud == pytest.approx(20, abs=1)  # ten times the noise is 20 dB
    assert judge.sqnr_db(noisy(np.inf)) == -np.inf


SCENES = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32) for seed in range(4)]


@pytest.fixture(scope="module")
def detector() -> tuple[Graph, Judge]:
    graph, _, _ = raised(dynamo(redrawn(Detector(selects=True)).eval(), SCENES[0]))
    return graph, Judge(graph, Calibration(lambda: iter(SCENES), 4, 4, "test", "digest"))


def with_noise(graph: Graph, linear: str, share: float) -> Graph:
    changed = Graph(graph.model.clone())
    node = next(n for n in changed.nodes if n.name == f"{linear}/MatMul")
    weight = array(node.inputs[1])
    noise = np.random.default_rng(0).standard_normal(weight.shape) * weight.std() * share
    node.replace_input_with(1, changed.initializer((weight + noise).astype(np.float32), "noisy"))
    return changed


def test_the_judge_compares_the_rows_that_the_float_graph_selects(detector: tuple[Graph, Judge]) -> None:
    """Noise before the selection exchanges rows. Ten times less of it is 20 dB more, as if none were selected."""
    graph, judge = detector
    assert judge.sqnr_db(graph) > 100
    quiet, loud = (with_noise(graph, "features.1.fc2", share) for share in (0.05, 0.5))
    boxes = [np.concatenate([run(g, image)["output_1"] for image in SCENES]) for g in (graph, quiet)]
    assert np.abs(boxes[0] - boxes[1]).max() > 0.1, "the rows do not change places, so this shows nothing"
    assert judge.sqnr_db(quiet) - judge.sqnr_db(loud) == pytest.approx(20, abs=4)
    assert judge.sqnr_db(with_noise(graph, "features.1.fc2", np.inf)) == -np.inf


def test_the_scores_of_a_selection_are_judged_too(detector: tuple[Graph, Judge]) -> None:
    """They only decide which rows are selected, and reach no output once these are given."""
    graph, judge = detector
    assert judge.sqnr_db(with_noise(graph, "score", 1.0)) < 20
