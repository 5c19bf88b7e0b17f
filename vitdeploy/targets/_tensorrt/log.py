"""What is heard of a TensorRT build while it runs, and how it is told to stop."""

from __future__ import annotations

import re
from collections import deque
from queue import SimpleQueue
from threading import Event
from types import ModuleType
from typing import Any

PHASE = "phase: "
"""Before the name of a phase of a build, among the lines of its log."""

_TAIL_LINES = 100
_TAIL_LINE_CHARS = 2_000  # a compiler error can carry a whole graph
_ERRORS_SHOWN = 3
_REFUSED = re.compile(r"Requested amount of GPU memory \((\d+) bytes\) could not be allocated")
_LOCAL_PATH = "Input filename:"  # the tail may end in an artifact, which is not the place for paths of this machine


class BuildLog:
    """What is kept of a build log: at VERBOSE it has 11,000 lines for a ViT-Tiny, and only the plan in it matters."""

    def __init__(self) -> None:
        self.layer_plan = ""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.errors: deque[str] = deque(maxlen=_ERRORS_SHOWN)
        self.refused_bytes = 0
        """Of the largest allocation that failed; TensorRT says so in a warning, and blames a node in its error."""
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.cancelled = Event()

    def add(self, severity: str, message: str) -> None:
        """Take one message of TensorRT, `severity` being the name of its `ILogger.Severity`."""
        if severity == "VERBOSE":
            if "LayerType: " in message:  # the whole plan is one message
                lines = message.split("\n")  # not splitlines: a record separator may stand between two node names
                self.layer_plan = "\n".join(line for line in lines if line.startswith("Name: "))
            return
        line = message.strip()[:_TAIL_LINE_CHARS]
        if line.startswith(_LOCAL_PATH):
            return
        if severity != "INFO":
            line = f"{severity}: {line}"
        if "ERROR" in severity:
            self.errors.append(line)
        if refused := _REFUSED.search(line):
            self.refused_bytes = max(self.refused_bytes, int(refused[1]))
        self.tail.append(line)
        self.lines.put(line)

    def last_errors(self) -> str:
        """TensorRT's last errors as one phrase; the first of them is usually the cause."""
        return " | ".join(self.errors) or "TensorRT gave no reason"


def logger_for(trt: ModuleType, log: BuildLog) -> Any:
    """A TensorRT logger that tells `log` everything."""
    names = {int(severity): name for name, severity in trt.ILogger.Severity.__members__.items()}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind wants its own constructor called by name

        def log(self, severity: Any, msg: str) -> None:
            log.add(names[int(severity)], msg)  # `severity.name` searches the members on every call

    return Logger()


def monitor_for(trt: ModuleType, log: BuildLog) -> Any:
    """A progress monitor that names the phases to `log` and stops the build once `log` is cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            log.lines.put(f"{PHASE}{phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return not log.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
