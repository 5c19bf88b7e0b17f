"""The time and the place of the parts of a trial."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from vitdeploy import machine_lock
from vitdeploy.evidence import WorkPeriod

_DIGITS = 12


class Clock:
    """The time that one part of a trial takes, on a node, on a host or on this machine."""

    def __init__(self, node: str = "", boot: str = "") -> None:
        """Use the name of a node or host, and the digest of what names its machine, by default those of this one."""
        self._node = node or platform.node()
        self._boot = boot or hashlib.sha256(machine_lock.boot_id().encode()).hexdigest()
        self._began: float | None = None
        self._ended: float | None = None

    @contextmanager
    def measure(self, inside: AbstractContextManager[object]) -> Iterator[None]:
        """Enter `inside`, which may wait, and take the time from then to the end of the block, or to `stop`."""
        with inside:
            self._began, self._ended = time.time(), None
            try:
                yield
            finally:
                self.stop()

    def stop(self) -> None:
        """End the part, if it has not ended yet."""
        if self._ended is None:
            self._ended = time.time()

    @property
    def period(self) -> WorkPeriod | None:
        """The part, once it has ended; None if it never began."""
        if self._began is None or self._ended is None:
            return None
        began, ended = round(self._began, 3), round(self._ended, 3)
        return WorkPeriod(began=began, ended=ended, node=self._node, boot=self._boot[:_DIGITS])
