"""The process that does one job on the device: waits for its turn, runs vitdeploy, sets clocks back, notes the end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vitdeploy.remote import clocks, jobs, lock
from vitdeploy.remote.messages import Holder, Job

_INTERRUPTED = 130


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


def _who(holder: Holder | None) -> str:
    if holder is None or not holder.words:
        return "somebody else's job"
    return f"`{holder.words[0]}` of {holder.client}, running for {max(0, time.time() - holder.since):.0f} s"
