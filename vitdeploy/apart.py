"""Run work in a process of its own: its crash, its endless loop and its hunger for memory end there, as one line.

    task ──stdin──▶ python MODULE ──stdout──▶ result

The child dies with its parent, and Ctrl-C kills it even inside of native code that would not notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from vitdeploy.errors import VitdeployError

_REFUSED = 3
"""The child's exit code if it raised an error on purpose: message and fix are the lines of its output."""
_PR_SET_PDEATHSIG = 1
_FIRST_OUT_OF_MEMORY = "1000"  # the kernel ends this process first
_SHOWN_CHARACTERS = 200
_START = (
    "import sys; sys.path[0] = sys.argv.pop(1); import runpy; module = sys.argv.pop(1); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


class Failed(Exception):
    """The child crashed, took too long or too much memory. `reason` completes "the engine …"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refused(Exception):
    """The child raised an error on purpose, which has a message and a fix."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


def command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of vitdeploy as `python -m` does, but without the current folder.

    `python -m` and `python -c` import from the current folder first: a `numpy.py` among received files would run.
    """
    root = Path(__file__).resolve().parent.parent
    return [sys.executable, "-c", _START, str(root), module, *map(str, arguments)]


def run(module: str, task: bytes, *, seconds: int, memory: int) -> bytes:
    """Run a module with `task` as its input, and return its output.

    Args:
        module: a module whose end is `answer(FUNCTION)`.
        task: the input.
        seconds: the longest time that it may take.
        memory: the most bytes of private memory that it may take.

    Raises:
        Failed: it crashed, or went beyond a limit.
        Refused: it raised an error on purpose.
    """
    words = command(module, memory, os.getpid())
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            output, messages = child.communicate(task, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {seconds} s") from None
        finally:
            _kill(child)
    if child.returncode == _REFUSED:
        message, _, fix = output.decode("utf-8", "replace").partition("\n")
        raise Refused(message, fix)
    if child.returncode:
        raise Failed(_describe_end(child.returncode, messages))
    return output


def answer(work: Callable[[bytes], bytes]) -> NoReturn:
    """Do the work of a child: read the task, apply limits, call `work`, write what it returns, and exit."""
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    _limit(memory, parent)
    task = sys.stdin.buffer.read()
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # engines print to stdout
    code = 0
    try:
        result = work(task)
    except VitdeployError as error:
        result, code = f"{' '.join(error.message.split())}\n{error.fix}".encode(), _REFUSED
    except MemoryError:
        sys.exit("MemoryError")
    with output:
        output.write(result)
    sys.stderr.flush()
    os._exit(code)  # some engines crash while they are unloaded, after all is done


def _limit(memory: int, parent: int) -> None:
    """Limit the memory of this process, tie its life to its parent's, and let the kernel end it first."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))  # RLIMIT_AS counts what GPU drivers only reserve
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_OUT_OF_MEMORY, encoding="ascii")
    if os.getppid() != parent:  # it died before this process was tied to it
        os._exit(1)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and everything that it started."""
    if child.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)


def _describe_end(code: int, messages: bytes) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            killed = " (it may have run out of memory)" if -code == signal.SIGKILL else ""
            return f"crashed with {name}{killed}"
    lines = [line.strip() for line in messages.decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if "MemoryError" in last or "bad_alloc" in last or "bad alloc" in last:
        return "needs more memory than it may take"
    return f"ended with {code}{f': {last[:_SHOWN_CHARACTERS]}' if last else ''}"
