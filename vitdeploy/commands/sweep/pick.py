"""The language of `--pick`, by which one trial is chosen.

EXPRESSION = ("min" | "max") METRIC ["where" CONDITION {"and" CONDITION}]
CONDITION  = METRIC ("<=" | "<" | ">=" | ">" | "=" | "!=") VALUE
VALUE      = a number, with or without a unit of the metric; for model, target, device and precision a word
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vitdeploy.errors import UsageError
from vitdeploy.evidence import SweepRow
from vitdeploy.plugins import did_you_mean

_ONE, _THOUSANDTH = Fraction(1), Fraction(1, 1000)
_TIMES = {"ms": _ONE, "us": _THOUSANDTH, "µs": _THOUSANDTH, "s": Fraction(1000)}
_SIZES = {
    "B": _ONE, "KB": Fraction(10**3), "MB": Fraction(10**6), "GB": Fraction(10**9),
    "KiB": Fraction(1 << 10), "MiB": Fraction(1 << 20), "GiB": Fraction(1 << 30),
}  # fmt: skip
_POINTS = {"pp": _ONE, "points": _ONE, "%": _ONE}
_RATIO = {"x": _ONE, "×": _ONE}


@dataclass(frozen=True)
class Measure:
    """A figure of a trial.

    Attributes:
        read: returns it.
        units: the units that a value of it may have, each with its factor: 95 % is 0.95, which 95 × 0.01 is not.
        needs_unit: a value needs one.
        interval: returns its 95 % interval, by which remarks say how sure a choice is.
    """

    read: Callable[[SweepRow], float | None]
    units: Mapping[str, Fraction]
    needs_unit: bool = False
    interval: Callable[[SweepRow], tuple[float, float] | None] = lambda _: None


MEASURES: Mapping[str, Measure] = {
    "latency": Measure(lambda row: row.latency_ms, _TIMES, interval=lambda row: row.latency_ci95),
    "p50": Measure(lambda row: row.p50_ms, _TIMES),
    "p90": Measure(lambda row: row.p90_ms, _TIMES),
    "p99": Measure(lambda row: row.p99_ms, _TIMES),
    "throughput": Measure(lambda row: row.throughput_ips, {"ips": _ONE}),
    "speedup": Measure(lambda row: row.speedup, _RATIO, interval=lambda row: row.speedup_ci95),
    "accuracy": Measure(lambda row: row.deployed, _POINTS),
    "drop": Measure(lambda row: row.drop, _POINTS),
    "agreement": Measure(lambda row: row.agreement, {"%": Fraction(1, 100)}),
    "size": Measure(lambda row: row.size_bytes, _SIZES, needs_unit=True),
    "memory": Measure(lambda row: row.memory_bytes, _SIZES, needs_unit=True),
    "fused": Measure(
        lambda row: None if not row.sites or row.fused is None else 100 * row.fused / row.sites, {"%": _ONE}
    ),
}
"""The figures that an expression may name."""
WORDS: Mapping[str, Callable[[SweepRow], str]] = {
    "model": lambda row: row.model,
    "target": lambda row: row.target,
    "device": lambda row: row.device,
    "precision": lambda row: row.precision,
    "verdict": lambda row: row.verdict,
}
"""The columns whose values are words."""
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|==|=|<|>)|([^\s<>=!]+)|(!))")
_NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(.*)", re.DOTALL)
_EXAMPLE = 'Write it like "min latency where drop <= 0.5 and size <= 20MiB".'


@dataclass(frozen=True)
class PickCondition:
    """A comparison that a trial has to pass."""

    name: str
    sign: str
    value: float | str
    text: str

    def holds(self, row: SweepRow) -> bool:
        """Return True if the trial passes it. An unknown figure passes nothing."""
        if isinstance(self.value, str):
            same = WORDS[self.name](row).lower() == self.value.lower()
            return same if self.sign == "=" else not same
        figure = MEASURES[self.name].read(row)
        return figure is not None and math.isfinite(figure) and _COMPARE[self.sign](figure, self.value)


@dataclass(frozen=True)
class Expression:
    """A parsed expression: the figure to minimise or maximise, and the conditions."""

    text: str
    lowest: bool
    name: str
    conditions: tuple[PickCondition, ...]

    def value(self, row: SweepRow) -> float | None:
        """Return the figure that decides."""
        return MEASURES[self.name].read(row)


def parse_pick(text: str) -> Expression:
    """Parse an expression.

    Raises:
        UsageError: it is not one; what is wrong is named, with the nearest known word.
    """
    tokens = _split(text)
    aim = tokens.pop(0) if tokens else ""
    if aim not in ("min", "max"):
        hint = did_you_mean(aim, ["min", "max"])
        raise _error(text, f"it begins with {aim!r}, not with min or max{hint}" if aim else "it is empty")
    name = _take_metric(text, tokens, aim, list(MEASURES))
    conditions: list[PickCondition] = []
    if tokens:
        word = tokens.pop(0)
        if word != "where":
            raise _error(text, f"after {aim} {name} comes {word!r}, not where{did_you_mean(word, ['where'])}")
        while True:
            conditions.append(_take_condition(text, tokens))
            if not tokens:
                break
            word = tokens.pop(0)
            if word != "and":
                raise _error(text, f"after {conditions[-1].text} comes {word!r}, not and{did_you_mean(word, ['and'])}")
    return Expression(text, aim == "min", name, tuple(conditions))


def pick(expression: Expression, rows: Sequence[SweepRow]) -> tuple[SweepRow, list[str]]:
    """Return the best valid trial that passes all conditions, and remarks about how sure that is.

    Raises:
        UsageError: there is none; the reason says how many each condition leaves.
    """
    valid = [row for row in rows if row.valid]
    if not valid:
        done = sum(row.status == "done" for row in rows)
        why = f"the figures of all {done} that were measured are in doubt" if done else "none was measured"
        raise UsageError(f"--pick has nothing to choose from: {why}", fix="See the doubts in the results.")
    passing = [row for row in valid if all(condition.holds(row) for condition in expression.conditions)]
    able = [row for row in passing if (value := expression.value(row)) is not None and math.isfinite(value)]
    if not able:
        counts = [f"{c.text} leaves {sum(c.holds(row) for row in valid)}" for c in expression.conditions]
        why = "; ".join(counts) or f"none has a {expression.name}"
        raise UsageError(
            f"no valid trial passes {expression.text!r}: of {len(valid)}, {why}", fix="Loosen a condition."
        )
    order = sorted(able, key=lambda row: (expression.value(row) or 0.0) * (1 if expression.lowest else -1))
    return order[0], _find_remarks(expression, order[0], order[1:])


def _find_remarks(expression: Expression, best: SweepRow, others: Sequence[SweepRow]) -> list[str]:
    """Return why the choice may be by chance: intervals that overlap, or that reach beyond a limit."""
    remarks = []
    groups = {row.group for row in (best, *others)}
    if len(groups) > 1 and expression.name in ("latency", "p50", "p90", "p99", "throughput"):
        remarks.append("trials of several groups were compared, whose latencies were timed under other conditions")
    near = [row.name for row in others if _overlap(expression.name, best, row)]
    if near:
        title = "speed-up" if expression.name == "speedup" else expression.name
        direction = "low" if expression.lowest else "high"
        remarks.append(f"the {title} of {len(near)} more may be as {direction}: {', '.join(near[:3])}")
    for condition in expression.conditions:
        if condition.name == "drop" and condition.sign in ("<", "<=") and best.drop_ci95 is not None:
            high = best.drop_ci95[1]
            if isinstance(condition.value, float) and high > condition.value:
                remarks.append(f"its drop may be up to {high:.2f} (95 % interval), above {condition.value:g}")
    return remarks


def _overlap(name: str, first: SweepRow, second: SweepRow) -> bool:
    """Return True if the intervals of a figure of two trials overlap. Latencies of two groups are not compared."""
    one, other = MEASURES[name].interval(first), MEASURES[name].interval(second)
    if one is None or other is None or (name == "latency" and first.group != second.group):
        return False
    return other[0] <= one[1] and one[0] <= other[1]


def _split(text: str) -> list[str]:
    tokens, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None or match[3]:
            raise _error(text, f"{text[place:].strip()[:1]!r} is not a comparison")
        tokens.append("=" if match[1] == "==" else match[1] or match[2])
        place = match.end()
    return tokens


def _take_metric(text: str, tokens: list[str], previous: str, known: list[str]) -> str:
    name = tokens.pop(0) if tokens else ""
    if name not in known:
        if not name:
            raise _error(text, f"after {previous} a metric is missing", f"Known are {', '.join(known)}.")
        raise _error(text, f"there is no metric {name!r}{did_you_mean(name, known)}", f"Known are {', '.join(known)}.")
    return name


def _take_condition(text: str, tokens: list[str]) -> PickCondition:
    name = _take_metric(text, tokens, "where or and", [*MEASURES, *WORDS])
    sign = tokens.pop(0) if tokens else ""
    if sign not in _COMPARE:
        raise _error(
            text, f"after {name} comes {sign!r}, not one of {', '.join(_COMPARE)}" if sign else f"{name} has no limit"
        )
    value = tokens.pop(0) if tokens else ""
    if not value or value in _COMPARE:
        raise _error(text, f"after {name} {sign} a value is missing")
    if name in WORDS:
        if sign not in ("=", "!="):
            raise _error(text, f"{name} is a word, which {sign} does not compare", "Use = or !=.")
        return PickCondition(name, sign, value, f"{name} {sign} {value}")
    number = _NUMBER.fullmatch(value)
    if number is None:
        raise _error(text, f"{value!r} is no number")
    unit = number[2]
    if not unit and tokens and tokens[0] not in ("and", "where"):
        unit = tokens.pop(0)
    measure = MEASURES[name]
    by_letters = {known.lower(): factor for known, factor in measure.units.items()}
    if unit and unit.lower() not in by_letters:
        known = list(measure.units)
        raise _error(text, f"{name} has no unit {unit!r}{did_you_mean(unit, known)}", f"Use {', '.join(known)}.")
    if not unit and measure.needs_unit:
        raise _error(text, f"{name} {sign} {value} has no unit", f"Use {', '.join(measure.units)}.")
    factor = by_letters[unit.lower()] if unit else _ONE
    limit = float(number[1]) * factor.numerator / factor.denominator
    return PickCondition(name, sign, limit, f"{name} {sign} {value}{'' if number[2] else unit}")


def _error(text: str, problem: str, fix: str = "") -> UsageError:
    return UsageError(f"--pick {text!r}: {problem}", fix=fix or _EXAMPLE)
