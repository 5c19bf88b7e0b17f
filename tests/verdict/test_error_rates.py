"""How often the gate is wrong, by simulation: thousands of measurements with the noise that was seen on real machines.

What real runs give is in benchmarks/gate_error_rates.md.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.evidence import bench, run
from tests.verdict.test_judge import verdict
from vitdeploy import tasks
from vitdeploy.evidence import Bench
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.latency import MAX_ROUNDS
from vitdeploy.recipe import GateSpec, TaskSpec

pytestmark = pytest.mark.long

OPENING, BLOCK = 0.01, 0.01  # quiet cores: spread of the ratio from opening to opening, and from block to block of one
WRONG, FAR = 0.025, 0.20  # how often an opening goes wrong, and by how much
BLOCKS = 2  # of one opening


def measured(rng: np.random.Generator, slower: float, count: int = MAX_ROUNDS) -> Bench:
    """A baseline and an artifact that takes `slower` as much longer, timed in turns in `count` openings."""
    offsets = OPENING * rng.standard_normal(count) + np.where(rng.random(count) < WRONG, FAR, 0.0)
    blocks = np.exp(np.repeat(offsets, BLOCKS) + BLOCK * rng.standard_normal(count * BLOCKS)) * (1 + slower)
    reference, other = [[1.0]] * len(blocks), [[float(b)] for b in blocks]
    interval = speedup_interval(reference, other, [BLOCKS] * count)
    return bench(runs=(run("old", 1.0), run("new", 1.0, interval)))


def rates(slower: float, draws: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    found = [verdict(GateSpec(), interleaved=measured(rng, slower)).verdict for _ in range(draws)]
    return {status: found.count(status) / draws for status in ("pass", "fail", "invalid")}


def test_an_artifact_against_itself_is_hardly_ever_failed() -> None:
    found = rates(0.0, 2000)
    assert found["fail"] <= 0.002
    assert found["pass"] >= 0.9


def test_five_percent_slower_is_failed() -> None:
    found = rates(0.05, 2000)
    assert found["pass"] == 0
    assert found["fail"] >= 0.95


def test_a_slow_down_of_the_limit_itself_is_rarely_decided() -> None:
    found = rates(0.02, 1000)
    assert found["pass"] <= 0.05
    assert found["fail"] <= 0.05


SAMPLES, DISCORDANCE, MARGIN = 10_000, 0.02, 0.5
DRAWS = 1000


def outcomes(right: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a classifier that was right or wrong, sample by sample."""
    labels = np.arange(len(right)) % 10
    return {"top1": right, "answer": np.where(right == 1, labels, (labels + 1) % 10), "label": labels}


@pytest.mark.parametrize(
    ("drop", "passes", "fails"),
    [
        (0.0, (0.95, 1.0), (0, 0.001)),
        (0.3, (0.36, 0.46), (0, 0.01)),
        (0.5, (0, 0.07), (0, 0.07)),
        (1.0, (0, 0), (0.95, 1)),
    ],
)
def test_accuracy_is_judged_as_the_power_calculation_says(
    drop: float, passes: tuple[float, float], fails: tuple[float, float]
) -> None:
    """Margin 0.5 points, 2 % discordance, 10,000 images: normal theory says 0.41 for a true drop of 0.3."""
    rng = np.random.default_rng(1)
    task = tasks.find(TaskSpec(kind="classification"))
    lost = (DISCORDANCE + drop / 100) / 2
    found = []
    for _ in range(DRAWS):
        kind = rng.random(SAMPLES)
        reference, deployed = np.ones(SAMPLES), np.ones(SAMPLES)
        deployed[kind < lost] = 0
        reference[(kind >= lost) & (kind < DISCORDANCE)] = 0
        evaluated = compare_accuracy(
            "classification", task, outcomes(reference), outcomes(deployed), reference == deployed
        )
        evaluated = evaluated.model_copy(update={"manifest": "m" * 64})
        found.append(verdict(GateSpec(max_drop_pp=MARGIN), evaluation=evaluated).verdict)
    assert passes[0] <= found.count("pass") / DRAWS <= passes[1]
    assert fails[0] <= found.count("fail") / DRAWS <= fails[1]
