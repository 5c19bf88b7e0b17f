"""Show where the time goes in vitdeploy's pick and in the fastest other tool of `side_by_side.py`.

    python -m benchmarks.side_by_side_profile [--work DIR] [CASE…]

Needs the models that `python -m benchmarks.side_by_side make` and `pick` wrote. Both models run in turns with the
engine's counters. Writes benchmarks/side_by_side_profile.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.contenders import CONTENDERS, PICKS, Contender
from benchmarks.side_by_side_models import Case, all_cases
from benchmarks.tables import describe_machine, read_rows, write_page
from vitdeploy import environment
from vitdeploy.evidence import Bench
from vitdeploy.measure import latency
from vitdeploy.session import Counters, Session

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "layer", "NNCF: kernels", "NNCF: ms", "vitdeploy: kernels", "vitdeploy: ms", "saved, ms")
OTHER = "NNCF, nothing set"
_ROUNDS = 5
_SECONDS = 20.0
"""The time to measure both without counters."""
_MOST_COUNTED = 1.5
"""The counters cost time too. Where they add up to more than so many times the latency, the machine was busy."""
_SMALL = 0.01
"""Layers that take less than this share of the time on both sides are added up."""
Row = tuple[str, ...]


def measure(case: Case) -> list[Row]:
    """Profile both models in turns; return a row for each type of layer."""
    ways = [next(contender for contender in CONTENDERS if contender.title == title) for title in (OTHER, PICKS[1])]
    profiles: list[list[Counters]] = [[], []]
    with ExitStack() as stack:
        sessions = [stack.enter_context(_open(way, case)) for way in ways]
        for _ in range(_ROUNDS):
            for session, counters in zip(sessions, profiles, strict=True):
                measured = session.profile(case.feeds)
                assert measured is not None
                counters.append(measured)
        bench = latency.measure(sessions, [case.feeds] * len(sessions), batch=1, seconds=_SECONDS)
    layers = [*map(_sum_by_layer, profiles)]
    for run, sums in zip(bench.runs, layers, strict=True):
        total = sum(ms for _, ms in sums.values())
        if bench.doubts or total > _MOST_COUNTED * run.p50_ms:
            doubts = "; ".join([*bench.doubts, f"the counters add up to {total:.1f} of {run.p50_ms:.1f} ms"])
            raise SystemExit(f"{case.title} is not valid, so the page stays as it is: {doubts}")
    other, own = layers
    return [*_rows(case.title, other, own, bench)]


def _open(way: Contender, case: Case) -> Session:
    return way.open(case, environment.available_cores())


Layers = dict[str, tuple[int, float]]
"""Type of layer -> number of kernels, and their time in ms: the median over the rounds."""


def _sum_by_layer(rounds: list[Counters]) -> Layers:
    counts = Counter(_layer(operator.kind) for operator in rounds[0].operators)
    times = {layer: median(_time(counters, layer) for counters in rounds) for layer in counts}
    between = median(counters.total_ms - sum(operator.ms for operator in counters.operators) for counters in rounds)
    return {layer: (counts[layer], times[layer]) for layer in counts} | {"(between kernels)": (0, between)}


def _layer(kind: str) -> str:
    """Return the type of a layer. OpenVINO has another name for some products in INT8, with the same kernels."""
    return kind.partition(" ")[0].removesuffix("QuantizedLegacy")


def _time(counters: Counters, layer: str) -> float:
    return sum(operator.ms for operator in counters.operators if _layer(operator.kind) == layer)


def _rows(title: str, other: Layers, own: Layers, bench: Bench) -> Iterator[Row]:
    total = [sum(ms for _, ms in layers.values()) for layers in (other, own)]
    names = sorted(other.keys() | own.keys(), key=lambda name: -other.get(name, (0, 0.0))[1])
    small: list[str] = []
    for name in names:
        sides = other.get(name, (0, 0.0)), own.get(name, (0, 0.0))
        if all(ms < _SMALL * whole for (_, ms), whole in zip(sides, total, strict=True)):
            small.append(name)
        else:
            yield _row(title, name, *sides)
    rest = [
        (sum(layers.get(name, (0, 0.0))[0] for name in small), sum(layers.get(name, (0, 0.0))[1] for name in small))
        for layers in (other, own)
    ]
    if small:
        yield _row(title, "all others", *rest)
    whole = [(sum(count for count, _ in layers.values()), ms) for layers, ms in zip((other, own), total, strict=True)]
    yield _row(title, "**sum**", *whole)
    first, second = ((0, run.p50_ms) for run in bench.runs)
    yield _row(title, "without counters, p50", first, second)


def _row(title: str, layer: str, other: tuple[int, float], own: tuple[int, float]) -> Row:
    cells = [text for count, ms in (other, own) for text in (str(count or ""), f"{ms:.2f}")]
    return title, layer, *cells, f"{other[1] - own[1]:.2f}"


def main() -> None:
    """Profile the chosen models, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(tempfile.gettempdir()) / "vitdeploy-side-by-side"
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help=f"folder of models (default: {work})")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="folders, such as vit-base (default: all)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    order = [case.title for case in all_cases(arguments.work)]
    for case in all_cases(arguments.work):
        if arguments.cases and case.folder.name not in arguments.cases:
            continue
        new = measure(case)
        others = [row for row in read_rows(TABLE, COLUMNS) if row[0] != case.title]
        write_page(TABLE, _heading(), COLUMNS, sorted([*others, *new], key=lambda row: order.index(row[0])))
        print(*map(" | ".join, new), sep="\n", flush=True)


def _heading() -> list[str]:
    return [
        "# Where the time goes, beside the fastest other tool",
        "",
        "Made by `python -m benchmarks.side_by_side_profile` from the models of [side by side](side_by_side.md): the",
        "model that NNCF writes with nothing set, which is the fastest of the other tools on plain ViTs, and what",
        "`--precision auto --target openvino` picked. Both run in OpenVINO, in turns, with its counters switched on,",
        "which costs some time itself. For each type of layer: the number of kernels, and their time in an inference",
        f"at batch 1, as the median of {_ROUNDS} rounds. Types that take less than 1 % on both sides are added up.",
        "*without counters*: both timed in turns, as in side by side. A measurement in doubt is not written.",
        "",
        describe_machine("nncf", "openvino"),
    ]


if __name__ == "__main__":
    main()
