"""The messages and the phases of a running TensorRT build, and its cancellation."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event
from types import ModuleType
from typing import Any

PHASE = "phase: "
"""The prefix of a line that names a phase of the build."""

_LINE_CHARS = 2_000  # a compiler error can contain a whole graph
_ERRORS_SHOWN = 3
_REFUSED = re.compile(r"Requested amount of GPU memory \((\d+) bytes\) could not be allocated")


class BuildLog:
    """The layer plan and the errors of a build log, which has 11,000 other lines for a ViT-Tiny.

    Attributes:
        layer_plan: the layers of the last engine, one per line.
        errors: the last errors.
        refused_bytes: the size of the largest allocation that failed. TensorRT writes it in a warning, while its error
            blames a node.
        lines: build phases, and log lines above VERBOSE, for another thread to read.
        cancelled: set it to stop the build.

    Args:
        on_message: called with every message and its severity, in TensorRT's thread. A phase has the severity PHASE.
    """

    def __init__(self, on_message: Callable[[str, str], None] | None = None) -> None:
        self._on_message = on_message
        self.layer_plan = ""
        self.errors: deque[str] = deque(maxlen=_ERRORS_SHOWN)
        self.refused_bytes = 0
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.cancelled = Event()

    def add(self, severity: str, message: str) -> None:
        """Add one message of TensorRT. `severity` is the name of its `ILogger.Severity`."""
        if self._on_message is not None:
            self._on_message(severity, message)
        if severity == "VERBOSE":
            if "LayerType: " in message:  # the whole plan is one message
                lines = message.split("\n")  # not splitlines: it also splits at record separators between node names
                self.layer_plan = "\n".join(line for line in lines if line.startswith("Name: "))
            return
        line = message.strip()[:_LINE_CHARS]
        if severity != "INFO":
            line = f"{severity}: {line}"
        if "ERROR" in severity:
            self.errors.append(line)
        if refused := _REFUSED.search(line):
            self.refused_bytes = max(self.refused_bytes, int(refused[1]))
        self.lines.put(line)

    def begin_phase(self, name: str) -> None:
        """Add the beginning of a phase."""
        if self._on_message is not None:
            self._on_message("PHASE", name)
        self.lines.put(f"{PHASE}{name}")

    def last_errors(self) -> str:
        """Return TensorRT's last errors in one line. The first of them is usually the cause."""
        return " | ".join(self.errors) or "TensorRT gave no reason"


def make_logger(trt: ModuleType, log: BuildLog) -> Any:
    """Return a TensorRT logger that adds every message to `log`."""
    names = {int(severity): name for name, severity in trt.ILogger.Severity.__members__.items()}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind requires a call of the constructor by this name

        def log(self, severity: Any, msg: str) -> None:
            log.add(names[int(severity)], msg)  # `severity.name` would search the members on every call

    return Logger()


def make_monitor(trt: ModuleType, log: BuildLog) -> Any:
    """Return a progress monitor that adds phases to `log`, and stops the build if that is cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            log.begin_phase(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return not log.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
