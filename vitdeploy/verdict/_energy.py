"""The check of the energy of one inference against its limit."""

from __future__ import annotations

from vitdeploy.evidence import Check, Power, RailEnergy
from vitdeploy.frozen import replace
from vitdeploy.measure.power import summarize
from vitdeploy.verdict._case import Case, decide, first_doubt, invalid

_NAME = "energy (mJ)"


def check_energy(case: Case, limit: float | None, rail: str | None) -> Check | None:
    """Check the energy of one inference, by its interval over the measuring windows.

    Args:
        case: the artifact and the evidence about it.
        limit: in millijoules; None: there is no check.
        rail: the power rail to judge; None: the one that feeds all others.
    """
    if limit is None:
        return None
    if reason := case.explain_unusable("bench"):
        return invalid(_NAME, limit, reason)
    sustained = case.bench.sustained if case.bench else None
    if sustained is not None and sustained.doubts:
        return invalid(_NAME, limit, f"doubtful: {sustained.doubts[0]}")
    if case.bench is None or case.run is None or (sustained is None and not case.bench.valid):
        return invalid(_NAME, limit, first_doubt(case.bench))
    power = case.bench.power if sustained is None else sustained.power
    measured = _find_rail(power, rail)
    if isinstance(measured, str) or power is None:
        return invalid(_NAME, limit, measured if isinstance(measured, str) else "")
    if measured.millijoules_ci95 is None:
        reason = f"{len(measured.windows) or 1} reading of {measured.name} has no interval: run vitdeploy bench again"
        return invalid(_NAME, limit, reason)
    if power.throttled and sustained is None:  # under a sustained load that is a finding
        return invalid(_NAME, limit, f"doubtful: {power.throttled}")
    return _judge(limit, measured, power, case.run.batch, "" if sustained is None else ", sustained")


def recompute_power(power: Power) -> Power:
    """Return the energy by rail, computed from the windows. Rails without windows stay as they are."""
    return replace(power, rails=tuple(_recompute_rail(rail) for rail in power.rails))


def _recompute_rail(rail: RailEnergy) -> RailEnergy:
    if not rail.windows:
        return replace(rail, millijoules_ci95=None)
    middle, interval = summarize(rail.windows)
    return replace(rail, millijoules=middle, millijoules_ci95=interval)


def _find_rail(power: Power | None, name: str | None) -> RailEnergy | str:
    """Return the rail to judge, or the reason why there is none."""
    if power is None or not power.rails:
        return f"it was not measured: {power.why if power and power.why else 'run vitdeploy bench again'}"
    names = ", ".join(rail.name for rail in power.rails)
    chosen = name or power.total
    if chosen is None:
        return f"no rail here feeds all others, so none is the total: name one with --energy-rail, of {names}"
    return next((rail for rail in power.rails if rail.name == chosen), f"there is no rail {chosen}: there are {names}")


def _judge(limit: float, rail: RailEnergy, power: Power, batch: int, notes: str) -> Check:
    low, high = rail.millijoules_ci95 or (rail.millijoules, rail.millijoules)
    status = decide(low, high, limit)
    share = ", which feeds all others," if rail.name == power.total else ", a part of the board,"
    sentence = f"{rail.name}{share} takes {rail.millijoules:.3g} mJ a run"
    sentence += f" of batch {batch}" if batch != 1 else ""
    sentence += f", 95 % interval {low:.3g} to {high:.3g} over {len(rail.windows)} windows, idle power included{notes}"
    sentence += ": the limit is inside the interval, so measure longer (bench --seconds)" if status == "invalid" else ""
    return Check(name=_NAME, observed=rail.millijoules, limit=limit, status=status, why=sentence)
