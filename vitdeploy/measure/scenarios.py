"""How images arrive: LoadGen's scenarios, as far as one machine in a few seconds can play them.

Definitions of MLPerf Inference (mlcommons/inference, loadgen): single-stream asks for one image as soon as the last is
answered, and reports p90; multi-stream asks for eight images in one query as soon as the last query is answered, and
reports p99 of the query; offline hands over all images at once and reports images a second. LoadGen runs at least
600 s, and offline at least 24,576 images: what is measured here is comparable between the sides, but no MLPerf result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitdeploy.evidence import Scenario
from vitdeploy.session import Array, Closing, Counters, Feeds, Session

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline")
IMAGES: Mapping[Scenario, int] = {"multi-stream": 8, "offline": 32}
"""In one query; single-stream asks for one batch, whatever its size."""

REPORTED: Mapping[Scenario, str] = {"single-stream": "p90", "multi-stream": "p99", "offline": "images/s"}


def runs_in_query(scenario: Scenario, batch: int) -> int:
    """How many batches make a query."""
    return -(-IMAGES.get(scenario, batch) // batch)


class Query(Closing):
    """A session whose one run answers a whole query.

    `closes`: whether leaving the `with` block closes the session too; a reference that takes long to load is kept.
    """

    def __init__(self, session: Session, runs: int, *, closes: bool = True) -> None:
        self._session, self._runs, self._closes = session, runs, closes
        self._first: dict[str, Array] | None = None
        self.name = session.name
        self.threads: int | None = session.threads
        self.effective = session.effective

    @property
    def device_ms(self) -> float | None:
        """The time of the last run by the device's own clock."""
        return self._session.device_ms

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs of one batch: all batches of a query are alike."""
        if self._runs == 1:
            return self._session.run(feeds)
        if self._first is None:
            self._first = self._session.run(feeds)
        self._session.run_all([feeds] * self._runs)
        return self._first

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Answer all queries."""
        self._session.run_all([one for one in feeds for _ in range(self._runs)])

    def profile(self, feeds: Feeds) -> Counters | None:
        """Of one batch."""
        return self._session.profile(feeds)

    def close(self) -> None:
        """Close the session, unless it is kept."""
        if self._closes:
            self._session.close()
