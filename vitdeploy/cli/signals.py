"""Signals that interrupt a command: Ctrl-C, the SIGTERM of a cancelled job, the SIGHUP of a closed terminal."""

from __future__ import annotations

import signal
import time
from types import FrameType

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_CLEANING_UP_SECONDS = 5.0
_LONGEST_IMPORT = 20.0
"""Seconds after which an import is interrupted all the same: a user's module may do anything."""
_RETRY_SECONDS = 0.05
_IMPORTLIB = "<frozen importlib._bootstrap>"

_interrupted: float | None = None
"""The time of the last signal that was obeyed."""
_waiting_since: float | None = None
"""The time of a signal that waits for the end of an import."""


def install() -> None:
    """Let the signals raise KeyboardInterrupt from now on, except those that this process ignores, as under nohup."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)


def was_interrupted() -> bool:
    """Return whether a signal arrived."""
    return _interrupted is not None


def end() -> None:
    """Make the exit code final: ignore further signals, and forget those that were handled.

    While Python shuts down, a signal's default action would replace the exit code. So would an interrupt that passed
    through an extension which runs Python code by PyRun_String: CPython takes it for good as unhandled, and ends with
    the signal. Running code in the same way clears the mark.
    """
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    if was_interrupted():
        import ctypes

        ctypes.pythonapi.PyRun_SimpleString(b"pass")


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature that signal wants
    """Interrupt the work, but not the cleanup after it: `timeout` and people often signal twice.

    An import is not interrupted either. Many extensions run Python code while they are initialized, and abort the
    process if it raises. A timer brings the signal again.
    """
    global _interrupted, _waiting_since  # signals belong to the whole process
    now = time.monotonic()
    if _interrupted is not None and now - _interrupted <= _CLEANING_UP_SECONDS:
        return
    if hasattr(signal, "setitimer") and _imports(frame):
        _waiting_since = _waiting_since or now
        if now - _waiting_since < _LONGEST_IMPORT:
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
    _waiting_since = None
    _interrupted = now
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Return whether the interrupted code runs inside an import."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTLIB:
            return True
        frame = frame.f_back
    return False
