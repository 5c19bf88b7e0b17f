"""The process that does one job on the device: waits for its turn, runs vitdeploy, sets clocks back, notes the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vitdeploy.errors import VitdeployError
from vitdeploy.remote.device import clocks, jobs, lock
from vitdeploy.remote.messages import Holder, Job

_FAILED, _INTERRUPTED = 1, 130


def work(folder: Path, cache: Path, warn: Callable[[str], None]) -> None:
    """Do the job in `folder`. Its exit code is written down in any case but SIGKILL."""
    job = Job.model_validate_json((folder / "job.json").read_bytes())
    code, notes = _INTERRUPTED, list[str]()
    try:
        with (
            lock.held(job, lambda holder: warn(f"waiting for the device: {_who(holder)}")) as device,
            clocks.cared_for(job.care, cache / "before") as notes,
        ):
            code = _run(job, folder, device)
    except KeyboardInterrupt:
        pass  # the caller's wish, and `code` says so
    except Exception as error:  # noqa: BLE001  whatever it is, its client has to hear of it: it is no interruption
        code = _FAILED
        _tell(folder, error)
    finally:
        jobs.end(folder, code, notes)


def _run(job: Job, folder: Path, device: int) -> int:
    """Vitdeploy as a child, which holds the device as well: it may outlive a killed worker."""
    command = [sys.executable, "-m", "vitdeploy", *job.words, "--json"]
    with (
        (folder / "stdout").open("wb") as out,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, cwd=folder / "work", pass_fds=[device]
        ) as child,
    ):
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


def _tell(folder: Path, error: Exception) -> None:
    """As vitdeploy's own --json tells an error; where even that cannot be written, the exit code has to do."""
    known = error if isinstance(error, VitdeployError) else None
    message = known.message if known else f"the job could not be run: {type(error).__name__}: {error}"
    told = {"error": {"message": message, "fix": known.fix if known else "Look at its disk and memory."}}
    with suppress(OSError):
        (folder / "stdout").write_text(json.dumps(told), encoding="utf-8")


def _who(holder: Holder | None) -> str:
    if holder is None or not holder.words:
        return "somebody else's job"
    return f"`{holder.words[0]}` of {holder.client}, running for {max(0, time.time() - holder.since):.0f} s"
