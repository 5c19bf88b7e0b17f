"""The process that runs one job on the device: wait for the lock, run vitdeploy, restore clocks, record the end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vitdeploy import apart
from vitdeploy.errors import VitdeployError
from vitdeploy.remote.device import clocks, jobs, lock
from vitdeploy.remote.messages import Job, LockHolder

_FAILED, _INTERRUPTED = 1, 130


def work(folder: Path, warn: Callable[[str], None]) -> None:
    """Run the job in `folder`. Its exit code is recorded in every case but SIGKILL."""
    job = Job.model_validate_json((folder / "job.json").read_bytes())
    code, notes = _INTERRUPTED, list[str]()
    try:
        with (
            lock.hold(job, lambda holder: warn(f"waiting for the device: {_describe_holder(holder)}")) as device,
            clocks.apply(job.care) as notes,
        ):
            code = _run(job, folder, device)
    except KeyboardInterrupt:
        pass  # the client cancelled the job; `code` says so
    except Exception as error:  # noqa: BLE001  the client must hear of every failure, and not as an interruption
        code = _FAILED
        _write_error(folder, error)
    finally:
        jobs.write_end(folder, code, notes)


def _run(job: Job, folder: Path, device: int) -> int:
    """Run vitdeploy as a child. It holds the device's lock too, because it may outlive a killed worker."""
    command = apart.command("vitdeploy", *job.words, "--json")  # never importing from the job's files
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


def _write_error(folder: Path, error: Exception) -> None:
    """Write the error as vitdeploy's --json does. If the disk refuses that, the exit code alone says it."""
    message = f"the job could not be started: {type(error).__name__}: {error}"
    fix = "Check the device's free disk space and memory."
    if isinstance(error, VitdeployError):
        message, fix = error.message, error.fix
    with suppress(OSError):
        (folder / "stdout").write_text(json.dumps({"error": {"message": message, "fix": fix}}), encoding="utf-8")


def _describe_holder(holder: LockHolder | None) -> str:
    if holder is None or not holder.words:
        return "another user's job is running"
    return f"`{holder.words[0]}` of {holder.client} has been running for {max(0, time.time() - holder.since):.0f} s"
