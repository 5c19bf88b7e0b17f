"""Energy of one inference, by power rail."""

from __future__ import annotations

from vitdeploy.evidence.fact import Fact


class RailEnergy(Fact):
    """A power rail: mean power under load and idle, and the energy of one inference (idle power included).

    Attributes:
        millijoules: the median over the windows.
        windows: the energy of one inference in mJ, in each measuring window, in the order taken; empty in evidence of
            an older vitdeploy, which measured one window.
        millijoules_ci95: the 95 % interval of the median; None with fewer windows than an interval takes.
    """

    name: str
    watts: float
    idle_watts: float | None
    millijoules: float
    windows: tuple[float, ...] = ()
    millijoules_ci95: tuple[float, float] | None = None


class Power(Fact):
    """Energy of the first artifact, measured while it runs alone.

    Attributes:
        source: "hwmon" (power monitors), "tegrastats" or "rapl" (a CPU's own counters).
        total: the rail that feeds all others. If it is None, the rails must not be added up or taken for the whole.
        seconds: the length of all measuring windows together.
        throttled: what slowed the board down meanwhile; empty if it counted nothing.
        why: the reason, if there are no rails.
    """

    source: str = ""
    rails: tuple[RailEnergy, ...] = ()
    total: str | None = None
    seconds: float = 0.0
    inferences: int = 0
    throttled: str = ""
    why: str = ""
