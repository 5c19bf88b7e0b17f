"""LoadGen's scenarios of how images arrive, shortened to a few seconds on one machine.

As MLPerf Inference defines them (mlcommons/inference, loadgen):

- single-stream sends one image as soon as the previous one is answered, and reports p90.
- multi-stream sends a query of eight images as soon as the previous query is answered, and reports p99 of the queries.
- offline sends all images at once, and reports images a second.

LoadGen runs for at least 600 s, and offline with at least 24,576 images. The measurements here are much shorter: the
sides can be compared with each other, but the figures are no MLPerf results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitdeploy.evidence import Scenario
from vitdeploy.session import Array, Closing, Counters, Feeds, Session

IMAGES: Mapping[Scenario, int] = {"multi-stream": 8, "offline": 32}
"""Images of one query. A query of single-stream is one batch, whatever its size."""


def runs_in_query(scenario: Scenario, batch: int) -> int:
    """Return the number of batches of one query."""
    return -(-IMAGES.get(scenario, batch) // batch)


class Query(Closing):
    """A session of which one run answers a whole query.

    `closes` is False for a reference that takes long to load: then leaving the `with` block keeps its session open.
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
        """Run a whole query and return the outputs of one batch; all batches of a query are equal."""
        if self._runs == 1:
            return self._session.run(feeds)
        if self._first is None:
            self._first = self._session.run(feeds)
        self._session.run_all([feeds] * self._runs)
        return self._first

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Answer all queries."""
        self._session.run_all([batch for batch in feeds for _ in range(self._runs)])

    def profile(self, feeds: Feeds) -> Counters | None:
        """Profile one batch."""
        return self._session.profile(feeds)

    def close(self) -> None:
        """Close the session, unless it is to stay open."""
        if self._closes:
            self._session.close()
