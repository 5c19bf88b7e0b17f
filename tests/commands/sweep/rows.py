"""Rows of a sweep that need no measurement."""

from __future__ import annotations

from typing import Any

from vitdeploy.evidence import SweepRow, TrialRecord

MIB = 1 << 20


def record(name: str, **facts: Any) -> TrialRecord:
    """A measured trial: 50 % faster than FP32 at 10 ms, which loses nothing of 90 %."""
    usual: dict[str, Any] = {
        "setting": f"setting of {name}", "model": "demo:digits", "target": "openvino", "device": "CPU",
        "precision": "int8", "status": "done", "machine": "m1", "model_digest": "w1", "data_digest": "d1",
        "metric": "top-1", "unit": "pp", "reference": 90.0, "deployed": 90.0, "drop": 0.0, "drop_ci95": (-0.2, 0.2),
        "agreement": 0.99, "timing": "batch 1", "p50_ms": 5.0, "p50_ci95": (4.9, 5.1), "p90_ms": 5.5, "p99_ms": 6.0,
        "throughput_ips": 200.0, "speedup": 2.0, "speedup_ci95": (1.9, 2.1), "reference_p50_ms": 10.0,
        "size_bytes": 10 * MIB, "memory_bytes": 100 * MIB, "fused": 3, "sites": 4, "bench_seconds": 10.0,
        "axes": {"precision": name}, "seconds": 20.0,
    }  # fmt: skip
    return TrialRecord(name=name, **{**usual, **facts})


def row(name: str, **facts: Any) -> SweepRow:
    """The same with a latency and a group, as if it stood beside others."""
    latency = facts.pop("latency_ms", 5.0)
    beside = {"latency_ms": latency, "latency_ci95": (0.95 * latency, 1.05 * latency), "basis": "speed-up", "group": 1}
    beside |= {key: facts.pop(key) for key in ("latency_ci95", "group", "front") if key in facts}
    return SweepRow(**{**dict(record(name, **facts)), **beside})
