"""Timing caches: what TensorRT measured of single kernels, kept so that the next build need not measure them again.

It also makes builds alike: a kernel that was timed once is chosen again. Such timings are true for one TensorRT build
on one GPU with its number of multiprocessors on one board in one power mode, so each of them has a file of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitdeploy.artifact import atomic_file
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.gpu import Gpu


def cache_file(api: Api, gpu: Gpu | None) -> Path | None:
    """Where the timings of this TensorRT on this GPU are; None where there is no use in keeping any."""
    if gpu is None or not api.keeps_timings:
        return None
    parts = (
        api.backend, gpu.name, gpu.sm, f"{gpu.multiprocessors}mp", *([gpu.board] if gpu.board else []),
        gpu.power_mode or "one-mode",
    )  # fmt: skip
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    return _cache_folder() / f"{name}.timings"


def store(path: Path, timings: bytes) -> str | None:
    """Keep them, whole or not at all; a cache that cannot be kept costs time, not the engine: says why."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(timings)
    except OSError as error:
        return f"kernel timings were not kept: {path}: {error.strerror}"
    return None


def _cache_folder() -> Path:
    """By the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "vitdeploy" / "tensorrt"
