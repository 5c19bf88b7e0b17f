"""Numbers as people read them: three significant digits, the unit in the header or behind the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdeploy import tasks
from vitdeploy.evidence import AttentionAudit, Bench, DeviceTime, Interval, KernelAudit, Metric, Power, Run

NOTHING = "–"
BETWEEN = "between operators"
"""A profile's time that no operator counts."""

_PLAIN = {
    "pytorch-fp32": "FP32 PyTorch", "torch-compile": "torch.compile", "onnxruntime-fp32": "FP32 ONNX Runtime",
    "openvino-fp32": "FP32 OpenVINO",
}  # fmt: skip


def three_digits(value: float) -> str:
    """`0.123`, `1.23`, `12.3`, `123`, `12,345`: three significant digits, no exponent."""
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(2 - magnitude, 0), 5)}f}"


def speedup(interval: Interval | None) -> str:
    """`1.92 [1.88, 1.95]`: the ratio and its 95 % interval."""
    if interval is None:
        return NOTHING
    low, high = interval.ci95
    return f"{interval.ratio:.2f} [{low:.2f}, {high:.2f}]"


def side(name: str) -> str:
    """What a run is of, as people say it: `FP32 PyTorch`; an artifact goes by its own name."""
    return _PLAIN.get(name.removesuffix(" (plain)"), name)


def run_name(run: Run, runs: Sequence[Run]) -> str:
    """`openvino-int8`, and `openvino-int8 @ 8` in a sweep over batch sizes."""
    return f"{run.name} @ {run.batch}" if len({other.batch for other in runs}) > 1 else run.name


def asked(bench: Bench) -> str:
    """How images were asked for: `batch 1`, `batch 1, offline`, `batches 1, 4, 8`."""
    sizes = list(dict.fromkeys(run.batch for run in bench.runs))
    told = f"batch {sizes[0]}" if len(sizes) == 1 else f"batches {', '.join(map(str, sizes))}"
    return told if bench.scenario == "single-stream" else f"{told}, {bench.scenario}"


def is_reference(run: Run, bench: Bench) -> bool:
    """Whether others of its batch size are held against this run."""
    beside = [other for other in bench.runs if other.batch == run.batch]
    return run is beside[0] and any(other.speedup is not None for other in beside)


def drop(metric: Metric) -> str:
    """`0.31 [0.02, 0.60]`: the drop and its 95 % interval, in the metric's unit."""
    low, high = metric.ci95
    return f"{_signless_zero(metric.drop)} [{_signless_zero(low)}, {_signless_zero(high)}]"


def agreement_name(task: str) -> str:
    """Return the name of the agreement of two models: only a classifier has one prediction that is the same or not."""
    kind = tasks.kind_of(task)
    return "agreement" if kind is None else kind.agreement_name


def fused(attention: AttentionAudit) -> str:
    """`12 of 12`, and what it rests on where that is not the compiled thing."""
    if not attention.sites:
        return "no attention site"
    told = f"{attention.fused} of {attention.sites}"
    return told if attention.evidence == "compiled" else f"{told} ({attention.evidence})"


def metric(name: str) -> str:
    """Return a metric's name as people write it."""
    return tasks.metric_names().get(name, name)


def kernels(found: KernelAudit) -> str:
    """`138: 12 attention, 48 int8 and 2 fp16 products, 14 only copy, 1 only cast`."""
    products = " and ".join(f"{count} {precision}" for precision, count in found.gemms.items())
    parts = [f"{found.attention} attention", f"{products or 0} products", f"{found.reformats} only copy"]
    return f"{found.kernels}: {', '.join(parts)}, {found.casts} only cast"


def device_time(found: DeviceTime) -> str:
    """`tensorrt-fp16: 4.99 ms on the device of 5.29 ms waited for (session)`."""
    device, waited = three_digits(found.device_p50_ms), three_digits(found.end_to_end_p50_ms)
    return f"{found.name}: {device} ms on the device of {waited} ms waited for ({found.source})"


def power(found: Power) -> str:
    """`energy: VDD_IN 49.9 mJ a run at 10.0 W (idle 4.50 W); ..`, or why it is not known."""
    if not found.rails:
        return f"energy not measured: {found.why}"
    rails = (
        f"{rail.name} {three_digits(rail.millijoules)} mJ a run at {three_digits(rail.watts)} W"
        + (f" (idle {three_digits(rail.idle_watts)} W)" if rail.idle_watts is not None else "")
        for rail in found.rails
    )
    return "energy: " + "; ".join(rails) + (f"; {found.throttled}" if found.throttled else "")


def share(part: float, whole: float) -> str:
    """`7.1 %` of the whole."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def efficiency(percent: float | None) -> str:
    """`61 %` of this host's measured peak."""
    return NOTHING if percent is None else f"{percent:.0f} %"


def observed(value: float | str | None) -> str:
    """An observed figure or a limit of a check."""
    return NOTHING if value is None else value if isinstance(value, str) else three_digits(value)


def size(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{three_digits(value)} {unit}"


def _signless_zero(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")
