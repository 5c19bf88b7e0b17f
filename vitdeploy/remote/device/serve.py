"""The far side as one object: its store, its jobs, its state."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vitdeploy import __version__
from vitdeploy.commands.doctor import doctor
from vitdeploy.remote.device import clocks, lock, worker
from vitdeploy.remote.device.condition import condition
from vitdeploy.remote.device.jobs import Jobs
from vitdeploy.remote.device.store import Store, cache_folder
from vitdeploy.remote.messages import INTERFACE, Probe


class Server:
    """What `vitdeploy device` works on; `cache` is where everything lies."""

    def __init__(self, cache: str | None) -> None:
        self._cache = cache_folder(cache)
        self.store = Store(self._cache)
        self.jobs = Jobs(self._cache)

    def probe(self) -> Probe:
        """This device. If a job was killed before it set the clocks back, that is done now."""
        with lock.held_if_free() as free:
            notes = clocks.restore(self._cache / "before") if free else []
        return Probe(
            interface=INTERFACE,
            version=__version__,
            python=sys.executable,
            cache=str(self._cache),
            doctor=doctor(),
            condition=condition(self._cache),
            busy=lock.holder(),
            queued=self.jobs.running(),
            notes=tuple(notes),
        )

    def work(self, name: str, warn: Callable[[str], None]) -> None:
        """Do a job in this process; `warn` is told what its client should know meanwhile."""
        self.store.prune()
        worker.work(self.jobs.folder(name), self._cache, warn)

    def clean(self) -> int:
        """Remove all that no running job needs; the bytes that became free."""
        self.jobs.clean()
        return self.store.prune(days=0)
