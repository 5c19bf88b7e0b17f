"""Try vitdeploy with damaged and hostile input, and judge what it makes of it.

    python -m tests.robustness.fuzz [--kind NAME …] [-n N] [--seed S] [--case KIND:SEED:NUMBER] [--json FILE]

Each case has its own random numbers, a time limit and a memory limit, and ends as `fine`, `refused` (one line of
error), or in one of the bad ways: crash, hang, memory, wrong content, pass on impossible evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.robustness.cases import BAD, Judged, Kind
from tests.robustness.pool import judge_cases

KINDS = {
    "evidence": ("evidence", "Evidence", 5000),
    "onnx": ("onnx", "OnnxFiles", 500),
    "weights": ("weights", "Weights", 450),
    "recipes": ("recipes", "Recipes", 390),
    "data": ("data", "Data", 250),
    "answers": ("answers", "HostAnswers", 9000),
    "injection": ("injection", "Injection", 1100),
}
"""Kind -> its module, its class, and the number of cases that `benchmarks/robustness.md` wants."""


@dataclass(frozen=True)
class Tally:
    """The cases of one kind: how many ended in each way, and the ids and reasons of the bad ones."""

    kind: str
    seed: int
    outcomes: dict[str, int]
    bad: dict[str, str]

    @property
    def tried(self) -> int:
        """The number of cases."""
        return sum(self.outcomes.values())


def load_kind(name: str) -> Kind:
    """Return a kind by its name."""
    module, class_name, _ = KINDS[name]
    kind: Kind = getattr(import_module(f"tests.robustness.kinds.{module}"), class_name)()
    return kind


def fuzz(name: str, seed: int, numbers: Sequence[int], *, show: bool = True) -> Tally:
    """Judge these cases of one kind."""
    outcomes: Counter[str] = Counter()
    bad: dict[str, str] = {}
    for number, judged in judge_cases(load_kind(name), seed, numbers):
        outcomes[judged.outcome] += 1
        if judged.outcome in BAD:
            bad[f"{name}:{seed}:{number}"] = f"{judged.outcome}: {judged.what}"
        if show and (judged.outcome in BAD or len(numbers) == 1):
            _show(f"{name}:{seed}:{number}", judged)
    return Tally(name, seed, dict(outcomes), bad)


def _show(case: str, judged: Judged) -> None:
    print(f"{case} {judged.outcome}: {ascii(judged.what)[1:-1]}", flush=True)


def main() -> None:
    """Judge the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="*", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("-n", type=int, help="cases of each kind (default: as many as benchmarks/robustness.md wants)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="repeat one case, such as evidence:0:17")
    parser.add_argument("--json", type=Path, help="write the tallies to this file")
    options = parser.parse_args()
    if options.case is not None:
        kind, seed, number = options.case.split(":")
        tallies = [fuzz(kind, int(seed), [int(number)])]
    else:
        tallies = [fuzz(kind, options.seed, range(options.n or KINDS[kind][2])) for kind in options.kind]
    for tally in tallies:
        print(f"{tally.kind}: {tally.tried} tried, {len(tally.bad)} bad; {tally.outcomes}")
    if options.json is not None:
        options.json.write_text(json.dumps([vars(tally) for tally in tallies], indent=1), encoding="utf-8")
    sys.exit(1 if any(tally.bad for tally in tallies) else 0)


if __name__ == "__main__":
    main()
