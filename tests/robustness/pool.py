"""Judge cases in a process of their own, which may crash, hang, or take too much memory."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.robustness.cases import CRASH, HANG, MEMORY, REFUSED, WRONG, Judged, Kind, make_rng

_SPARE_BYTES = 6 << 30
"""Address space that a process may take beyond what it has: libraries reserve much that they never use."""
_PREPARE_SECONDS = 300.0
_DETAIL_CHARACTERS = 400


def judge_cases(kind: Kind, seed: int, numbers: Sequence[int]) -> Iterator[tuple[int, Judged]]:
    """Yield the outcome of each case. After a crash or a hang, a new process goes on with the next one."""
    pending = list(numbers)
    context = multiprocessing.get_context("fork")
    while pending:
        near, far = context.Pipe()
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{kind.name}-") as folder:
            process = context.Process(target=_work, args=(kind, seed, list(pending), Path(folder), far))
            process.start()
            far.close()
            try:
                if not near.poll(_PREPARE_SECONDS) or near.recv() is not None:
                    raise RuntimeError(f"{kind.name} was not prepared in {_PREPARE_SECONDS:.0f} s")
                yield from _collect(kind, pending, near)
            except EOFError:
                raise RuntimeError(f"{kind.name} could not be prepared") from None
            finally:
                process.kill()
                process.join()
                near.close()
        if pending and process.exitcode not in (0, -signal.SIGKILL, None):
            yield pending.pop(0), Judged(CRASH, f"the process died of {_name_end(process.exitcode)}")


def _collect(kind: Kind, pending: list[int], near: Connection) -> Iterator[tuple[int, Judged]]:
    """Take results until the process has ended or one case takes too long. Judged cases leave `pending`."""
    while pending:
        if not near.poll(kind.seconds):
            yield pending.pop(0), Judged(HANG, f"it had not ended after {kind.seconds:.0f} s")
            return
        try:
            message = near.recv()
        except (EOFError, OSError):
            return
        pending.pop(0)
        yield message


def _work(kind: Kind, seed: int, numbers: Sequence[int], folder: Path, results: Connection) -> None:
    """Judge cases in this process."""
    kind.prepare(folder)
    used = _read_status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE_BYTES, used + _SPARE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.collect()
    gc.freeze()
    results.send(None)
    for number in numbers:
        before = _reset_peak()
        judged = _judge(kind, seed, number, folder)
        grown = _read_status("VmHWM") - before
        if grown > kind.mebibytes << 20:
            judged = Judged(MEMORY, f"{judged.what}: it took {grown >> 20} MiB; {judged.outcome}")
        results.send((number, judged))


def _judge(kind: Kind, seed: int, number: int, folder: Path) -> Judged:
    from vitdeploy.errors import VitdeployError

    place = folder / f"case-{number}"
    place.mkdir()
    try:
        return kind.judge(number, make_rng(kind.name, seed, number), place)
    except VitdeployError as error:
        line = str(error)
        if not error.message.strip() or not error.fix.strip():
            return Judged(WRONG, f"an error without a reason or a fix: {line!r}")
        return Judged(REFUSED, line[:_DETAIL_CHARACTERS])
    except MemoryError:
        return Judged(MEMORY, _describe_failure())
    except Exception:  # noqa: BLE001  that is what is looked for
        return Judged(CRASH, _describe_failure())
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _describe_failure() -> str:
    """The exception and the innermost frames of vitdeploy."""
    lines = traceback.format_exc().strip().splitlines()
    kind, error, _ = sys.exc_info()
    reason = f"{kind.__name__ if kind else ''}: {' '.join(str(error).split())[:200]}"
    frames = [line.strip() for line in lines if line.strip().startswith("File") and "vitdeploy" in line][-2:]
    return f"{reason} at {'; '.join(frames)}"[: 2 * _DETAIL_CHARACTERS]


def _reset_peak() -> int:
    """Let the peak of resident memory begin anew. Return the bytes that are resident now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _read_status("VmRSS")


def _read_status(key: str) -> int:
    """Return a size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def _name_end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
