"""The latency and the energy of an artifact under a load that lasts until its temperature is steady."""

from __future__ import annotations

from collections.abc import Callable

from vitdeploy.evidence import Power, Sustained, SustainedBlock
from vitdeploy.frozen import replace
from vitdeploy.measure import power
from vitdeploy.measure.sustained import WINDOW, run_until_steady
from vitdeploy.progress import Progress
from vitdeploy.session import Feeds, Session

_POWER_S = 5.0


def measure_sustained(
    open_session: Callable[[], Session], feeds: Feeds, minutes: float, progress: Progress
) -> Sustained:
    """Run an artifact alone until it is steady, then measure its energy while the machine is still hot.

    Args:
        open_session: opens the artifact.
        feeds: its inputs.
        minutes: the longest time.
        progress: gets the steps, and a line when the run was not steady in time.
    """
    batch = len(next(iter(feeds.values())))
    meter, reason = power.find_meter()
    with open_session() as session:
        with progress.step(f"Run until the temperature is steady, at most {minutes:g} minutes", 100) as advance:
            done = 0

            def report(block: SustainedBlock) -> None:
                nonlocal done
                percent = min(int(100 * block.minutes / minutes), 100)
                advance(percent - done)
                done = percent

            result = run_until_steady(session, feeds, minutes, batch=batch, report=report)
            advance(100 - done)
        energy = Power(why=reason)
        if meter is not None:
            with progress.step("Measure power"):
                energy = power.measure(lambda: session.run(feeds), _POWER_S, meter, idle=False)
    if not result.steady:
        progress.warn(
            f"after {minutes:g} minutes, the last {WINDOW} blocks still change: give --sustained more minutes"
        )
    return replace(result, power=energy)
