"""trtexec, TensorRT's own stopwatch: the same engine, timed by another program, in one vocabulary for 10 and 11."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.targets import Outside
from vitdeploy.targets._tensorrt.api import trtexec_with_transfers
from vitdeploy.targets._tensorrt.gpu import gpu
from vitdeploy.targets._tensorrt.record import EngineRecord, load_record

_JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
_STARTS_WITHIN_S = 120  # reading an engine from an SD card


def find_trtexec() -> str | None:
    """On PATH, or where JetPack puts it."""
    return shutil.which("trtexec") or (str(_JETPACK) if _JETPACK.is_file() else None)


def time_with_trtexec(folder: Path, plan: str, shapes: Mapping[str, tuple[int, ...]], seconds: float) -> Outside | None:
    """Times of the engine, inputs and outputs copied as an application does; None where there is no trtexec.

    Raises:
        TargetUnavailable: the engine is of another TensorRT than this trtexec, or of another GPU.
        MeasureError: trtexec failed; with its own last error.
    """
    executable = find_trtexec()
    if executable is None:
        return None
    version = trtexec_version(executable)
    record = load_record(folder)
    if why := _foreign(record, version, executable):
        fix = f"Build it on this machine: vitdeploy compile {folder} -o NEW-DIR"
        raise TargetUnavailable(f"{folder / plan} does not run here: {why}", fix=fix)
    with tempfile.TemporaryDirectory() as scratch:
        times = Path(scratch) / "times.json"
        command = [
            executable, f"--loadEngine={folder / plan}", f"--duration={math.ceil(seconds)}", f"--exportTimes={times}",
            *trtexec_with_transfers(version), *_shapes(record, shapes),
            *(["--versionCompatible"] if record.version_compatible else []),
        ]  # fmt: skip
        _run(command, seconds)
        return parse_times(times.read_text(encoding="utf-8"))


def trtexec_version(executable: str) -> str:
    """`10.3.0` from its banner, which writes `[TensorRT v100300]`.

    Raises:
        MeasureError: it does not say.
    """
    told = _run([executable, "--help"], 0.0)
    found = re.search(r"\[TensorRT v(\d+)\]", told)
    if found is None:
        raise MeasureError(f"{executable} does not tell its version", fix="Use TensorRT's own trtexec.")
    number = int(found[1])
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def parse_times(text: str) -> Outside:
    """What `--exportTimes` wrote: `computeMs` on the device, `latencyMs` with the copies.

    Raises:
        MeasureError: it is not what trtexec writes, or there is no query in it.
    """
    try:
        queries: list[Mapping[str, Any]] = json.loads(text)
        compute = tuple(float(query["computeMs"]) for query in queries)
        latency = tuple(float(query["latencyMs"]) for query in queries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MeasureError(f"trtexec's times cannot be read: {error!r}", fix="Use TensorRT 10 or 11.") from None
    if not compute:
        raise MeasureError("trtexec timed no query", fix="Measure longer (--seconds).")
    return Outside("trtexec", compute, latency)


def _foreign(record: EngineRecord, version: str, executable: str) -> str | None:
    """Its banner has no build number, so two numbers are compared; one of an engine that other versions may open."""
    built = record.backend.partition(" ")[2]
    told = 1 if record.version_compatible else 2
    if version.split(".")[:told] != built.split(".")[:told]:
        return f"it was built by TensorRT {built}, and {executable} is of {version}"
    return record.foreign_gpu(gpu()) if record.gpu is not None or record.compute_capabilities else None


def _shapes(record: EngineRecord, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Trtexec wants shapes for dynamic engines and takes none for others."""
    if not record.dynamic:
        return []
    return ["--shapes=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())]


def _run(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + _STARTS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasureError(f"trtexec does not run: {error}", fix="Check TensorRT's installation.") from None
    if done.returncode:
        said = re.findall(r"\[E\] (.+)", done.stdout + done.stderr)
        reason = said[-1].strip() if said else f"exit code {done.returncode}"
        raise MeasureError(f"trtexec failed: {reason}", fix=f"Run it by hand: {' '.join(command)}")
    return done.stdout + done.stderr
