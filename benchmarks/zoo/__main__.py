"""Export every model of the zoo to every target, and write what fused to benchmarks/zoo.md.

    python -m benchmarks.zoo [NAME…] [--targets T…] [--routes R…] [--precisions P…] [--keep | --fresh] [--page]

NAME may have wildcards: "timm *". Each finished row is appended to benchmarks/zoo/rows.jsonl, and a run that was
stopped continues with the missing rows. A row counts as missing if it was made with other code in vitdeploy/, on
another CPU, or with other versions of the libraries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from benchmarks.zoo import models
from benchmarks.zoo.page import PAGE, format_page
from benchmarks.zoo.rows import ROUTES, TARGETS, Case, Row, Store, digest_stamp, list_cases, make_stamp
from benchmarks.zoo.supervising import make_all

_LIMIT = 600.0  # seconds of one row; the slowest ones take two minutes
_PRECISIONS = tuple(dict.fromkeys((*TARGETS.values(), "int8")))


def main() -> None:
    """Make the rows that are missing among those that were asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="models, with wildcards (default: all)")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--routes", nargs="+", choices=list(ROUTES), default=list(ROUTES))
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, default=list(_PRECISIONS))
    parser.add_argument("--keep", action="store_true", help="keep rows that were made with other code or elsewhere")
    parser.add_argument("--fresh", action="store_true", help="make rows again that are there")
    parser.add_argument("--limit", type=float, default=_LIMIT, help=f"seconds for a row (default: {_LIMIT:.0f})")
    parser.add_argument("--page", action="store_true", help="only write the page from the rows that are there")
    options = parser.parse_args()
    store = Store()
    if not options.page:
        wanted = [
            case
            for case in list_cases(_choose(parser, options.names))
            if case.target in options.targets and case.route in options.routes and case.precision in options.precisions
        ]
        _make(store, wanted, options.limit, keep=options.keep, fresh=options.fresh)
    store.compact(list_cases(models.MODELS))
    PAGE.write_text(format_page(store.rows, store.stamps, models.MODELS), encoding="utf-8")


def _choose(parser: argparse.ArgumentParser, patterns: Sequence[str]) -> list[str]:
    """Return the names that fit, in the zoo's order."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in models.MODELS):
            parser.error(f"no model of the zoo is named {pattern!r}; they are: {', '.join(models.MODELS)}")
    return [name for name in models.MODELS if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _make(store: Store, wanted: Sequence[Case], limit: float, *, keep: bool, fresh: bool) -> None:
    """Make the missing rows, and append each to the file as it is finished."""
    stamp = make_stamp()
    name = digest_stamp(stamp)
    missing = [case for case in wanted if fresh or is_missing(store.rows.get(case), name, keep=keep)]
    print(f"{len(wanted)} rows, {len(missing)} of them to make", flush=True)
    for number, row in enumerate(make_all(missing, limit), start=1):
        store.add(replace(row, stamp=name), stamp)
        print(f"{number}/{len(missing)}", describe(row), sep="  ", flush=True)


def is_missing(row: Row | None, stamp: str, *, keep: bool) -> bool:
    """Return True if a row is not there, or was made with something else and is not to be kept."""
    return row is None or (row.stamp != stamp and not keep)


def describe(row: Row) -> str:
    """Return a row in one line."""
    form = f"{row.model} | {row.route} | {row.target} {row.precision} | {row.seconds:.0f} s"
    if row.error:
        return f"{form} | {row.error}"
    share = "" if row.weights_pct is None else f" | weights {row.weights_pct} %"
    problems = [*row.problems, *(f"{count} sites: {reason}" for reason, count in row.unfused.items())]
    figures = f"{row.fused} of {row.sites} fused | norms {row.norms_fused} of {row.norms}{share} | {row.difference:.0e}"
    return " | ".join([form, figures, *problems])


if __name__ == "__main__":
    main()
