"""Time an engine with trtexec, TensorRT's own program, versions 10 and 11."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.targets import ExternalTimes
from vitdeploy.targets._tensorrt.api import trtexec_flags
from vitdeploy.targets._tensorrt.gpu import find_gpu
from vitdeploy.targets._tensorrt.record import EngineRecord, load_record

_JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
_MAX_START_S = 120  # reading an engine from an SD card


def find_trtexec() -> str | None:
    """Return the path of trtexec, on PATH or where JetPack puts it, or None."""
    return shutil.which("trtexec") or (str(_JETPACK) if _JETPACK.is_file() else None)


def time_with_trtexec(
    folder: Path, plan: str, shapes: Mapping[str, tuple[int, ...]], seconds: float
) -> ExternalTimes | None:
    """Time the engine, including copies of inputs and outputs; None if there is no trtexec.

    Raises:
        TargetUnavailable: the engine was built for another TensorRT than this trtexec, or for another GPU.
        MeasureError: trtexec failed. The message has its last error.
    """
    executable = find_trtexec()
    if executable is None:
        return None
    version = read_version(executable)
    record = load_record(folder)
    if reason := _refuse(record, version, executable):
        fix = f"Build it on this machine: vitdeploy compile {folder} -o NEW-DIR"
        raise TargetUnavailable(f"{folder / plan} does not run here: {reason}", fix=fix)
    with scratch_folder("trtexec") as scratch:
        times = scratch / "times.json"
        command = [
            executable, f"--loadEngine={folder / plan}", f"--duration={math.ceil(seconds)}", f"--exportTimes={times}",
            *trtexec_flags(version), *_shape_flags(record, shapes),
            *(["--versionCompatible"] if record.version_compatible else []),
        ]  # fmt: skip
        _run(command, seconds)
        return parse_times(times.read_text(encoding="utf-8"))


def read_version(executable: str) -> str:
    """Return the version of a trtexec. Its banner writes `[TensorRT v100300]` for 10.3.0.

    Raises:
        MeasureError: the banner has no version.
    """
    banner = _run([executable, "--help"], 0.0)
    match = re.search(r"\[TensorRT v(\d+)\]", banner)
    if match is None:
        raise MeasureError(f"{executable} does not print its version", fix="Use TensorRT's own trtexec.")
    number = int(match[1])
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def parse_times(text: str) -> ExternalTimes:
    """Parse the output of `--exportTimes`: `computeMs` is the time on the device, `latencyMs` includes the copies.

    Raises:
        MeasureError: it is not from trtexec, or it has no query.
    """
    try:
        queries: list[Mapping[str, Any]] = json.loads(text)
        compute = tuple(float(query["computeMs"]) for query in queries)
        latency = tuple(float(query["latencyMs"]) for query in queries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MeasureError(f"trtexec's times cannot be read: {error!r}", fix="Use TensorRT 10 or 11.") from None
    if not compute:
        raise MeasureError("trtexec timed no query", fix="Measure longer (--seconds).")
    return ExternalTimes("trtexec", compute, latency)


def _refuse(record: EngineRecord, version: str, executable: str) -> str | None:
    """Return None if trtexec can run the engine here, else the reason.

    Its banner has no build number, so two numbers of the version are compared. If other versions can open the engine,
    only the first is compared.
    """
    built = record.backend.partition(" ")[2]
    compared = 1 if record.version_compatible else 2
    if version.split(".")[:compared] != built.split(".")[:compared]:
        return f"it was built by TensorRT {built}, and {executable} is of TensorRT {version}"
    return record.refuse_gpu(find_gpu()) if record.gpu is not None or record.compute_capabilities else None


def _shape_flags(record: EngineRecord, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the shapes for trtexec, which needs them for dynamic engines and refuses them for others."""
    if not record.dynamic:
        return []
    return ["--shapes=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())]


def _run(command: Sequence[str], seconds: float) -> str:
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + _MAX_START_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasureError(f"trtexec does not run: {error}", fix="Check TensorRT's installation.") from None
    output = process.stdout + process.stderr
    if process.returncode:
        errors = re.findall(r"\[E\] (.+)", output)
        reason = errors[-1].strip() if errors else f"exit code {process.returncode}"
        raise MeasureError(f"trtexec failed: {reason}", fix=f"Run it yourself: {' '.join(command)}")
    return output
