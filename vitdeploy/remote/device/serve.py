"""Everything that `vitdeploy device` can do, as one object: the store, the jobs, the device's state."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vitdeploy.commands.doctor import doctor
from vitdeploy.remote.device import clocks, lock, worker
from vitdeploy.remote.device.condition import read_condition
from vitdeploy.remote.device.jobs import Jobs
from vitdeploy.remote.device.store import Store, cache_folder
from vitdeploy.remote.messages import INTERFACE, Probe
from vitdeploy.version import __version__


class Server:
    """The device's side of `--host`. Files and jobs are in the folder `cache`."""

    def __init__(self, cache: str | None) -> None:
        self._cache = cache_folder(cache)
        self.store = Store(self._cache)
        self.jobs = Jobs(self._cache)

    def probe(self) -> Probe:
        """Describe this device. If a killed job left changed clocks behind, restore them first."""
        with lock.try_hold() as free:
            notes = clocks.restore() if free else []
        return Probe(
            interface=INTERFACE,
            version=__version__,
            python=sys.executable,
            cache=str(self._cache),
            doctor=doctor(),
            condition=read_condition(self._cache),
            busy=lock.read_holder(),
            queued=self.jobs.count_alive(),
            notes=tuple(notes),
        )

    def work(self, name: str, warn: Callable[[str], None]) -> None:
        """Run a job in this process. `warn` shows a line to its client."""
        self.store.prune()
        worker.work(self.jobs.folder(name), warn)

    def clean(self) -> int:
        """Remove everything that no running job needs. Return the bytes that became free."""
        self.jobs.clean()
        return self.store.prune(days=0)
