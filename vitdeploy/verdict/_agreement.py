"""Check that pieces of evidence are about one machine, one engine and one recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from vitdeploy.evidence import Audit, Bench, Check, Eval, Measured, Provenance, Sensitivity
from vitdeploy.verdict._case import EvidenceName, invalid

_MACHINE = re.compile("[0-9a-f]{12}")


@dataclass(frozen=True)
class Identity:
    """The facts that the evidence about an artifact must agree with.

    Attributes:
        recipe: digest of the manifest's recipe.
        on_cpu: True if the engine compiles on the machine that runs it, so that an audit is about that machine.
        engine: of an engine that belongs to one device: name and version of the engine that built it; else empty.
        hardware: of an engine that belongs to one device: the machine that built it; else empty.
    """

    recipe: str
    on_cpu: bool = True
    engine: str = ""
    hardware: str = ""


def find_contradictions(
    identity: Identity,
    audit: Audit | None,
    bench: Bench | None,
    evaluation: Eval | None,
    sensitivity: Sensitivity | None = None,
) -> list[Check]:
    """Return one invalid check for each thing about which pieces of evidence disagree.

    Evidence of an older vitdeploy does not say how it was made: see `find_silent`.
    """
    known = {e.file: e.provenance for e in (audit, bench, evaluation) if e is not None and e.provenance is not None}
    checks: list[Check] = []
    machines = known if identity.on_cpu else {name: p for name, p in known.items() if name != Audit.file}
    engines = known if identity.on_cpu or identity.engine else machines
    checks += _compare("one machine", {n: p.hardware for n, p in machines.items()}, identity.hardware)
    named = {n: p.engine for n, p in engines.items() if p.engine}  # trtexec does not say
    checks += _compare("one engine", named, identity.engine)
    everything = {**known, **_origin_of(sensitivity)}
    checks += _compare("one recipe", {name: p.recipe for name, p in everything.items()}, identity.recipe)
    checks += _check_origins(everything, on_cpu=identity.on_cpu)
    checks += _check_details(audit, bench)
    return checks


def find_silent(
    audit: Audit | None, bench: Bench | None, evaluation: Eval | None
) -> Iterator[tuple[EvidenceName, str]]:
    """Yield the pieces that do not say how they were made, beside others that do, with the reason for people.

    If no piece does, all are of an older vitdeploy, and are used as they are.
    """
    pieces: Mapping[EvidenceName, Measured | None] = {"audit": audit, "bench": bench, "eval": evaluation}
    if all(piece is None or piece.provenance is None for piece in pieces.values()):
        return
    for name, piece in pieces.items():
        if piece is not None and piece.provenance is None:
            reason = f"{piece.file} does not say on which machine and engine it was made"
            yield name, f"{reason}: {_explain_again(piece.file)}"


def _origin_of(sensitivity: Sensitivity | None) -> Mapping[str, Provenance]:
    if sensitivity is None or sensitivity.provenance is None:
        return {}
    return {sensitivity.file: sensitivity.provenance}


def _compare(name: str, found: Mapping[str, str], expected: str) -> Iterator[Check]:
    """Compare one fact of all pieces with each other, and with the manifest if it says something about it."""
    named = {"manifest.json": expected, **found} if expected else found
    first = next(iter(named), "")
    other = next((file for file, value in named.items() if value != named[first]), None)
    if other is not None:
        reason = f"{other} is of {_describe(named[other])}, {first} of {_describe(named[first])}"
        yield invalid(name, "one", f"{reason}: {_explain_again(*named)}")


def _describe(value: str) -> str:
    return value if len(value) < 64 else f"{value[:12]}…"


def _explain_again(*files: str) -> str:
    commands = {
        "audit.json": "inspect",
        "bench.json": "bench",
        "eval.json": "eval",
        "sensitivity.json": "inspect --sensitivity",
    }
    named = [commands[file] for file in files if file in commands]
    return f"run vitdeploy {' and '.join(dict.fromkeys(named))} again on the device, with the engine that it uses"


def _check_origins(known: Mapping[str, Provenance], *, on_cpu: bool) -> Iterator[Check]:
    """Check each origin by itself: a date, and the engine's version twice."""
    name = "evidence has its origin"
    for file, provenance in known.items():
        kind, _, version = provenance.engine.partition(" ")
        listed = provenance.versions.get(kind, version)
        if version and listed.partition("-")[0] != version.partition("-")[0]:
            yield invalid(name, "every file", f"{file} is of {provenance.engine}, but lists version {listed or 'none'}")
        elif on_cpu and not version:
            yield invalid(name, "every file", f"{file} names no engine")
        elif not _is_date(provenance.date):
            yield invalid(name, "every file", f"{file} has no date: {provenance.date[:40]!r}")
        elif not _MACHINE.fullmatch(provenance.machine) or not _MACHINE.fullmatch(provenance.hardware):
            yield invalid(name, "every file", f"{file} names no machine")
        elif not provenance.versions.get("vitdeploy"):
            yield invalid(name, "every file", f"{file} does not name the version of vitdeploy that made it")


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _check_details(audit: Audit | None, bench: Bench | None) -> Iterator[Check]:
    """Check what a piece of evidence says twice."""
    if bench is not None and bench.provenance is not None:
        if bench.machine != bench.provenance.machine:
            yield invalid("one machine", "one", "bench.json names two machines: run vitdeploy bench again")
        own = bench.own
        if (
            own is not None
            and None not in (own.threads, bench.provenance.threads)
            and (own.threads != bench.provenance.threads)
        ):
            threads = f"{own.threads} and {bench.provenance.threads} threads"
            yield invalid("evidence has its origin", "every file", f"bench.json names {threads}")
    if audit is not None and audit.provenance is not None:
        if audit.threads != audit.provenance.threads:
            threads = f"{audit.threads} and {audit.provenance.threads} threads"
            yield invalid("evidence has its origin", "every file", f"audit.json names {threads}")
        engine = audit.provenance.engine
        if engine and audit.attention.evidence == "compiled" and audit.backend != engine:
            yield invalid("one engine", "one", f"audit.json names {audit.backend} and {engine}")
