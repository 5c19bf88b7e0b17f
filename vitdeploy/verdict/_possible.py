"""Values that no measurement gives: NaN, negative times, shares above 100 %, intervals without their point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

from pydantic import BaseModel

_SIGNED = {
    "drop", "ci95", "lower95", "upper95", "reference", "deployed", "lost", "cosine", "sqnr_db", "output_sqnr_db",
    "output_sqnr_db_without_attention", "adds_db", "between_ms", "mean", "celsius",
}  # fmt: skip
"""Keys whose numbers may be below 0. A metric may be one, such as a cosine; differences and decibels are."""
_FROM_0_TO_1 = {"agreement", "p_value"}
_ABOVE_0 = {
    "p50_ms", "p90_ms", "p99_ms", "throughput_ips", "batch", "samples", "blocks", "parameters", "ratio", "threads",
    "limit",
}  # fmt: skip
_SHARES = {"others": 1.5, "steal": 1.5}
"""Shares of the CPU. The kernel counts in ticks, so a short block can have a little more than all of it."""
_PERCENT = "_pct"
_ROUNDING = 1e-6
_MAX_EXAMPLES = 3
_MOST_BITS = 64
"""Of a whole number, such as bytes. One with 400 digits is no float, and cannot be compared with one."""


def find_impossible(name: str, fact: BaseModel, *, exclude: set[str] | None = None) -> str | None:
    """Return the impossible values of a piece of evidence, in words; None if there are none.

    Args:
        name: its name, for the message.
        fact: the evidence.
        exclude: its fields that are not checked.
    """
    problems = list(_walk("", "", fact.model_dump(exclude=exclude)))
    if not problems:
        return None
    more = f", and {len(problems) - _MAX_EXAMPLES} more" if len(problems) > _MAX_EXAMPLES else ""
    return f"{name}: {'; '.join(problems[:_MAX_EXAMPLES])}{more}"


def contains(interval: Sequence[float], point: float) -> bool:
    """Return True if an interval is in order and contains a point, up to rounding."""
    low, high = interval
    slack = _ROUNDING * max(abs(low), abs(high), abs(point), _ROUNDING)
    return low - slack <= point <= high + slack


def _walk(path: str, key: str, value: object) -> Iterator[str]:
    """Yield a sentence for each impossible value below `path`; `key` is the last name in it."""
    if isinstance(value, Mapping):
        yield from _check_mapping(path, value)
        for name, part in value.items():
            yield from _walk(f"{path}.{name}" if path else str(name), str(name), part)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from _walk(f"{path}.{place}", key, part)
    elif isinstance(value, int) and not _is_number(value) and not isinstance(value, bool):
        yield f"{path} has more than {_MOST_BITS} bits"
    elif _is_number(value):
        reason = _explain_number(key, value)
        if reason:
            yield f"{path} is {value:g}, {reason}"


def _is_number(value: object) -> TypeGuard[int | float]:
    """Return True for a float, and for a whole number that one can be compared with."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= _MOST_BITS
    return isinstance(value, float)


def _explain_number(key: str, value: float) -> str | None:
    if not math.isfinite(value):
        return "which is not finite"
    if value < 0 and key not in _SIGNED:
        return "below 0"
    if value <= 0 and key in _ABOVE_0:
        return "not above 0"
    if key.endswith(_PERCENT) and value > 100 + _ROUNDING:
        return "above 100 %"
    if value > _SHARES.get(key, math.inf):
        return "more than all of the CPU"
    if (key in _FROM_0_TO_1 and value > 1) or (key == "cosine" and abs(value) > 1 + _ROUNDING):
        return "above 1"
    return None


def _check_mapping(path: str, value: Mapping[str, object]) -> Iterator[str]:
    """Check the values that belong together: a ratio with its interval, percentiles, parts of a whole."""
    numbers = {k: v for k, v in value.items() if _is_number(v)}
    ends = value.get("ci95")
    if isinstance(ends, (list, tuple)) and "ratio" in numbers and not contains(ends, numbers["ratio"]):
        yield f"{path}: the interval {ends[0]:g} to {ends[1]:g} does not contain {numbers['ratio']:g}"
    elif isinstance(ends, (list, tuple)) and path.rpartition(".")[2] == "speedup" and ends[0] <= 0:
        yield f"{path}: the interval {ends[0]:g} to {ends[1]:g} is not above 0"
    for prefix in ("", "device_", "end_to_end_"):
        percentiles = [numbers.get(f"{prefix}p{percent}_ms", 0.0) for percent in (50, 90, 99)]
        if percentiles != sorted(percentiles):
            yield f"{path}: {prefix}p50, p90 and p99 are {', '.join(f'{p:g}' for p in percentiles)} ms"
    for part, whole in (("fused", "sites"), ("engine_bytes", "peak_bytes"), ("flips", "n"), ("nonfinite", "n")):
        if part in numbers and whole in numbers and numbers[part] > numbers[whole]:
            yield f"{path}: {part} is {numbers[part]:g} of {whole} {numbers[whole]:g}".removeprefix(": ")
