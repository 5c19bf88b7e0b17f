"""Several inferences at the same time in ONNX Runtime, each on a share of the threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from vitdeploy.session import Array, Closing, Counters, Feeds, Session, closed_error


class SessionPool(Closing):
    """Streams that each answer one query at a time.

    A stream of one thread computes on the thread that calls it, so all of them share one session and its weights. A
    stream of several threads needs a session of its own: the workers of a session are shared by all of its callers.
    """

    device_ms: float | None = None

    def __init__(self, open_session: Callable[[int], Session], *, streams: int, threads: int) -> None:
        """Open the sessions.

        Args:
            open_session: opens a session with so many threads.
            streams: the number of queries at the same time.
            threads: of all streams together; each gets an equal share, at least one.
        """
        share = max(1, threads // streams)
        with ExitStack() as stack:
            self._sessions = [stack.enter_context(open_session(share)) for _ in range(1 if share == 1 else streams)]
            stack.pop_all()
        self._idle: SimpleQueue[Session] = SimpleQueue()
        for stream in range(streams):
            self._idle.put(self._sessions[stream % len(self._sessions)])
        self._callers = ThreadPoolExecutor(streams, thread_name_prefix="stream")
        self._closed = False
        self.name = self._sessions[0].name
        self.threads: int | None = threads
        self.effective: Mapping[str, str] = {
            **self._sessions[0].effective, "threads": str(threads), "streams": str(streams),
            "threads_per_stream": str(share),
        }  # fmt: skip

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run one query on an idle stream. Wait for one if all are busy.

        Raises:
            UsageError: the pool is closed.
        """
        session = self._idle.get()
        try:
            return session.run(feeds)
        finally:
            self._idle.put(session)

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Run all queries, as many at a time as there are streams.

        Raises:
            UsageError: the pool is closed.
        """
        if self._closed:
            raise closed_error(self.name)
        for _ in self._callers.map(self.run, feeds):
            pass

    def profile(self, feeds: Feeds) -> Counters | None:
        """Profile one query on one stream."""
        return self._sessions[0].profile(feeds)

    def close(self) -> None:
        """Close all sessions. Queries that are under way still return their answers."""
        self._closed = True
        self._callers.shutdown(wait=False)
        for session in self._sessions:
            session.close()
