"""Timing caches: TensorRT's measurements of single kernels, stored so that the next build is faster.

They also make builds repeatable, because the same kernels are chosen again. The measurements hold for one build of
TensorRT and one GPU with its number of multiprocessors, on one board, in one power mode. Each of these combinations has
its own file.
"""

from __future__ import annotations

import re
from pathlib import Path

from platformdirs import user_cache_path

from vitdeploy.artifact import atomic_file
from vitdeploy.targets._tensorrt.api import Api
from vitdeploy.targets._tensorrt.gpu import Gpu


def locate_cache(api: Api, gpu: Gpu | None) -> Path | None:
    """Return the file for the timings of this TensorRT on this GPU; None if it has no use."""
    if gpu is None or not api.has_timing_cache:
        return None
    parts = (
        api.backend, gpu.name, gpu.sm, f"{gpu.multiprocessors}mp", *([gpu.board] if gpu.board else []),
        gpu.power_mode or "one-mode",
    )  # fmt: skip
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    return user_cache_path("vitdeploy") / "tensorrt" / f"{name}.timings"


def save_timings(path: Path, timings: bytes) -> str | None:
    """Save timings, all or nothing. A failure only costs time, so it is returned as a note."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(timings)
    except OSError as error:
        return f"kernel timings were not saved: {path}: {error.strerror}"
    return None
