"""The measured peak of this host, and how near a model comes to it.

The floor of a model is the least time that its arithmetic takes, at the measured peak of each precision. If the weights
fit into no cache, reading them once at the measured bandwidth is a floor too. Efficiency is floor / median latency.
(Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model".)
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitdeploy.evidence import Peak, Roofline
from vitdeploy.measure.work import Work

_COPY_BYTES = 64 << 20  # for each thread: larger than any cache
_COPIES = 5
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def measure_copy_gbs(threads: int) -> float:
    """Measure the bandwidth of copies larger than any cache, in 10^9 bytes a second.

    Args:
        threads: number of copies at a time.

    Returns:
        The bandwidth of reads and writes together.
    """
    pairs = [(np.ones(_COPY_BYTES, np.uint8), np.empty(_COPY_BYTES, np.uint8)) for _ in range(threads)]
    best = np.inf
    with ThreadPoolExecutor(threads) as pool:  # NumPy releases the GIL while it copies
        for _ in range(_COPIES):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best = min(best, time.perf_counter() - start)
    return 2.0 * _COPY_BYTES * threads / best / 1e9


def read_largest_cache() -> int | None:
    """Return the bytes of the first core's largest cache; None if it is not reported."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit():
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes, default=None)


def describe(work: Work, threads: int, peaks: dict[str, Peak], copy_gbs: float | None) -> Roofline:
    """Make the evidence of a model's work and this host's peaks."""
    return Roofline(
        threads=threads,
        peaks=peaks,
        copy_gbs=copy_gbs,
        cache_bytes=read_largest_cache(),
        operations=work.operations,
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
        unknown=work.unknown,
    )


def floor_ms(work: Work, images: int, roofline: Roofline) -> float | None:
    """Return the least time for `images` images in ms; None if a peak or some work is unknown."""
    if work.unknown or not work.operations or not set(work.operations) <= set(roofline.peaks):
        return None
    compute = sum(images * count / roofline.peaks[kind].gops / 1e6 for kind, count in work.operations.items())
    streamed = roofline.cache_bytes is not None and work.weight_bytes > roofline.cache_bytes
    if not streamed or not roofline.copy_gbs:
        return compute
    return max(compute, work.weight_bytes / roofline.copy_gbs / 1e6)
