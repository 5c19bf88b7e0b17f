"""The interface through which `vitdeploy doctor --record` builds a model and asks a compiler about itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled


class CompilerRecorder(Protocol):
    """A compiler on this machine, for models of one precision."""

    @property
    def device(self) -> str:
        """The device that it compiles for."""

    def describe(self) -> dict[str, object]:
        """Return the version and the properties of the compiler and its device. Nothing is compiled."""

    def compile(self, bundle: Bundle, workdir: Path, on_message: Callable[[str, str], None]) -> Compiled:
        """Compile and audit without any cache, and pass on the severity and the text of every message.

        Raises:
            VitdeployError: the compiler refused the graph or the machine.
        """

    def inspect(self, compiled: Compiled) -> str:
        """Return the opened engine's own description of its layers; empty if there is none."""

    def count_layers(self, log_lines: list[str], description: str) -> tuple[int, int]:
        """Return the layers that vitdeploy reads in the lines of a log, and in a description by the engine."""

    def open(self, compiled: Compiled) -> Session:
        """Open what was compiled on this machine.

        Raises:
            TargetUnavailable: it does not open here.
        """
