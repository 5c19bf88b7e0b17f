"""Latency, clocks and power under a load that lasts until the temperature is steady."""

from __future__ import annotations

from vitdeploy.evidence.energy import Power
from vitdeploy.evidence.fact import Fact


class BlockState(Fact):
    """The state of the machine during one block of samples; see `measure.conditions.Block`."""

    others: float
    steal: float
    switches: float
    mhz: float | None
    throttled: int = 0


class SustainedBlock(Fact):
    """One block of a sustained run.

    Attributes:
        minutes: since the start of the run, at the end of the block.
        p50_ms: median latency in the block.
        celsius: the hottest thermal zone at its end; None without a sensor.
        gpu_mhz: the GPU's clock at its end; None if the system does not report it. The CPU's is in `state`.
        state: the state of the machine during the block.
    """

    minutes: float
    p50_ms: float
    celsius: float | None
    gpu_mhz: float | None
    state: BlockState


class Sustained(Fact):
    """The figures of the last minutes of a load that lasted until temperature and latency were steady.

    Being slowed down for heat or power is a finding here, not a doubt.

    Attributes:
        limit_minutes: the longest time that was allowed.
        steady: False if the time was up before.
        judged_by: what had to be steady, and if that is the latency alone, why.
        findings: what the load did to the machine: a longer latency, lower clocks, throttling.
        doubts: reasons to distrust the figures.
        course: every block, from the first one, when the machine was cold.
        blocks: every sample of the last blocks in ms, from which the figures follow.
        power: the energy right after that, while the machine was still hot.
    """

    limit_minutes: float
    steady: bool
    judged_by: str
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_ips: float
    p50_ci95: tuple[float, float]
    p90_ci95: tuple[float, float]
    p99_ci95: tuple[float, float]
    batch: int
    findings: tuple[str, ...]
    doubts: tuple[str, ...]
    course: tuple[SustainedBlock, ...]
    blocks: tuple[tuple[float, ...], ...]
    power: Power | None = None
    finite: bool = True
    """False if an output held NaN or infinity."""
