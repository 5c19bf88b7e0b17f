"""Numbers as text for people: three significant digits, with the unit in the header or behind the figure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vitdeploy import targets, tasks
from vitdeploy.evidence import (
    AttentionAudit,
    Bench,
    DeviceTime,
    Interval,
    KernelAudit,
    Metric,
    Power,
    QuantizedShare,
    Run,
)

NOTHING = "–"
BETWEEN = "between operators"
"""The name of the time in a profile that belongs to no operator."""

_PYTORCH = {"pytorch-fp32": "FP32 PyTorch", "torch-compile": "torch.compile"}


def three_digits(value: float) -> str:
    """Format a number with three significant digits and no exponent: `0.123`, `1.23`, `12.3`, `123`, `12,345`."""
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(2 - magnitude, 0), 5)}f}"


def speedup(interval: Interval | None) -> str:
    """Format a ratio with its 95 % interval: `1.92 [1.88, 1.95]`."""
    if interval is None:
        return NOTHING
    low, high = interval.ci95
    return f"{interval.ratio:.2f} [{low:.2f}, {high:.2f}]"


def side(name: str) -> str:
    """Return the name of a run for people: `FP32 PyTorch` for a reference; an artifact keeps its own name."""
    opponent = name.removesuffix(" (plain)")
    target = opponent.removesuffix("-fp32")
    if target != opponent and target in targets.names():
        return f"FP32 {targets.kind_of(target).title or target}"
    return _PYTORCH.get(opponent, name)


def run_name(run: Run, runs: Sequence[Run]) -> str:
    """Return the name of a run, with its batch size in a sweep: `openvino-int8`, `openvino-int8 @ 8`."""
    return f"{run.name} @ {run.batch}" if len({other.batch for other in runs}) > 1 else run.name


def batches(bench: Bench) -> str:
    """Return batch sizes and scenario: `batch 1`, `batch 1, offline`, `batches 1, 4, 8`."""
    sizes = list(dict.fromkeys(run.batch for run in bench.runs))
    text = f"batch {sizes[0]}" if len(sizes) == 1 else f"batches {', '.join(map(str, sizes))}"
    return text if bench.scenario == "single-stream" else f"{text}, {bench.scenario}"


def is_reference(run: Run, bench: Bench) -> bool:
    """Return True if this run is the reference of the other runs of its batch size."""
    of_batch = [other for other in bench.runs if other.batch == run.batch]
    return run is of_batch[0] and any(other.speedup is not None for other in of_batch)


def drop(metric: Metric) -> str:
    """Format a drop with its 95 % interval, in the metric's unit: `0.31 [0.02, 0.60]`."""
    low, high = metric.ci95
    return f"{without_minus_zero(metric.drop)} [{without_minus_zero(low)}, {without_minus_zero(high)}]"


def agreement_name(task: str) -> str:
    """Return the name of the agreement: only a classifier has one prediction that is the same or not."""
    kind = tasks.kind_of(task)
    return "agreement" if kind is None else kind.agreement_name


def quantized(share: QuantizedShare) -> str:
    """Format `97.1 % of the multiply-accumulates, 98.0 % of the weights`, with the evidence unless it is compiled."""
    source = {"compiled": "", "graph": ", as the graph says"}.get(share.evidence, f" ({share.evidence})")
    return f"{share.macs_pct:.1f} % of the multiply-accumulates, {share.weights_pct:.1f} % of the weights{source}"


def attention_share(share: QuantizedShare) -> str:
    """Format the part of attention, which multiplies no weights, in all multiply-accumulates."""
    if share.attention_macs is None:
        return "not known"
    percent = 100.0 * share.attention_macs / (share.attention_macs + share.macs)
    return f"{percent:.1f} % of all multiply-accumulates are attention's, without weights: not counted here"


def fused(attention: AttentionAudit) -> str:
    """Return the fused sites, with the evidence unless it is the compiled model: `12 of 12 (graph)`."""
    if not attention.sites:
        return "no attention site"
    text = f"{attention.fused} of {attention.sites}"
    return text if attention.evidence == "compiled" else f"{text} ({attention.evidence})"


def metric(name: str) -> str:
    """Return the usual name of a metric: `top-1` for `top1`."""
    return tasks.metric_names().get(name, name)


def kernels(audit: KernelAudit) -> str:
    """Summarize an engine's kernels: `138: 12 attention, 48 int8 and 2 fp16 products, 14 only copy, 1 only cast`."""
    products = " and ".join(f"{count} {precision}" for precision, count in audit.gemms.items())
    parts = [f"{audit.attention} attention", f"{products or 0} products", f"{audit.reformats} only copy"]
    return f"{audit.kernels}: {', '.join(parts)}, {audit.casts} only cast"


def device_time(time: DeviceTime) -> str:
    """Format median times: `tensorrt-fp16: 4.99 ms on the device, 5.29 ms end to end (session)`."""
    on_device, end_to_end = three_digits(time.device_p50_ms), three_digits(time.end_to_end_p50_ms)
    return f"{time.name}: {on_device} ms on the device, {end_to_end} ms end to end ({time.source})"


def power(power: Power) -> str:
    """Format the energy by rail: `energy: VDD_IN 49.9 mJ a run [49.1, 50.3] at 10.0 W (idle 4.50 W)`."""
    if not power.rails:
        return f"energy not measured: {power.why}"
    rails = (
        f"{rail.name} {three_digits(rail.millijoules)} mJ a run{_interval(rail.millijoules_ci95)} "
        f"at {three_digits(rail.watts)} W"
        + (f" (idle {three_digits(rail.idle_watts)} W)" if rail.idle_watts is not None else "")
        for rail in power.rails
    )
    return "energy: " + "; ".join(rails) + (f"; {power.throttled}" if power.throttled else "")


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{three_digits(ends[0])}, {three_digits(ends[1])}]"


def share(part: float, whole: float) -> str:
    """Format a share of the whole: `7.1 %`."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def efficiency(percent: float | None) -> str:
    """Format the share of this host's measured peak: `61 %`."""
    return NOTHING if percent is None else f"{percent:.0f} %"


def observed(value: float | str | None) -> str:
    """Format an observed figure or a limit of a check."""
    return NOTHING if value is None else value if isinstance(value, str) else three_digits(value)


def size(count: int) -> str:
    """Format bytes in B, KiB, MiB or GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{three_digits(value)} {unit}"


def without_minus_zero(value: float) -> str:
    """Format a number with two decimals, without the sign of a zero."""
    return f"{value:.2f}".replace("-0.00", "0.00")


def is_digest(text: str) -> bool:
    """Return True if a text is a sha256, so that it can be printed as it is."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None
