"""Queries: the number of their batches, and the session that answers them."""

from collections.abc import Sequence
from typing import ClassVar, get_args

import numpy as np
import pytest

from vitdeploy.cli import options
from vitdeploy.evidence import Scenario
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.session import Array, Counters, Feeds

FEED = {"x": np.ones((1, 2))}


class Counting:
    """A session that counts its calls."""

    name, threads = "counting", 2
    effective: ClassVar[dict[str, str]] = {"engine": "none"}

    def __init__(self) -> None:
        self.single, self.queued, self.closed = 0, 0, False

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self.single += 1
        return {"y": feeds["x"]}

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        self.queued += len(feeds)

    def profile(self, feeds: Feeds) -> Counters | None:
        return None

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.parametrize(
    ("scenario", "batch", "runs"),
    [("single-stream", 1, 1), ("single-stream", 8, 1), ("multi-stream", 1, 8), ("multi-stream", 3, 3),
     ("multi-stream", 8, 1), ("offline", 1, 32), ("offline", 64, 1)],
)  # fmt: skip
def test_a_query_has_at_least_the_images_of_its_scenario(scenario: str, batch: int, runs: int) -> None:
    assert scenario in get_args(Scenario)
    assert runs_in_query(scenario, batch) == runs  # type: ignore[arg-type]


def test_the_command_line_offers_every_scenario() -> None:
    """It keeps its own list, because importing the evidence would slow down `vitdeploy --help`."""
    assert get_args(Scenario) == options._SCENARIOS


def test_one_run_answers_all_of_a_query_at_once() -> None:
    session = Counting()
    query = Query(session, 8)
    for _ in range(3):
        assert query.run(FEED) == {"y": FEED["x"]}
    assert (session.single, session.queued) == (1, 24)  # the first batch gives the outputs, then queries are queued
    assert (query.name, query.threads, query.effective) == ("counting", 2, {"engine": "none"})
    query.run_all([FEED, FEED])
    assert session.queued == 40


def test_a_query_of_one_batch_is_a_run() -> None:
    session = Counting()
    Query(session, 1).run(FEED)
    assert (session.single, session.queued) == (1, 0)


@pytest.mark.parametrize("closes", [True, False])
def test_a_reference_that_takes_long_to_load_stays_open(closes: bool) -> None:
    session = Counting()
    with Query(session, 8, closes=closes) as query:
        query.run(FEED)
    assert session.closed == closes
