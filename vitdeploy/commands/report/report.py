"""`vitdeploy report`: collect the evidence of artifacts, compare their attention, and write the page."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import MANIFEST, Artifact, EvidenceT, atomic_file
from vitdeploy.artifact.layout import BESIDE, FLIPS, REPORT, SITES
from vitdeploy.commands.gate.gate import judge_again
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.data.array_files import read_members
from vitdeploy.errors import DataError, UsageError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Evidence, Gate, Sensitivity
from vitdeploy.graph import structure as structures
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.render import html
from vitdeploy.render.html.attention import AttentionMaps
from vitdeploy.render.html.page import compose
from vitdeploy.render.html.parts import Missing
from vitdeploy.render.html.subject import Kind, Subject
from vitdeploy.render.html.tokens import TokenGroups
from vitdeploy.session import Array

SHOWN_IMAGES = 3
"""Images whose attention is shown: enough to see a pattern, and not too many for a phone."""

_MAX_THUMBNAIL_BYTES = 32 << 20  # 24 pictures of 96 x 96 have less than a million

_COMMANDS: dict[type[Evidence], tuple[Kind, str]] = {
    Bench: ("bench", "bench"),
    Eval: ("eval", "eval"),
    Gate: ("gate", "gate"),
    Sensitivity: ("sensitivity", "inspect --sensitivity"),
}
"""For each kind of evidence, its section and the command that makes it."""


class SectionState(BaseModel):
    """A section of the page. If it is empty, `missing` gives the reason and `fix` the command to run."""

    model_config = ConfigDict(frozen=True)
    name: str
    state: Literal["shown", "missing"]
    missing: str | None = None
    fix: str | None = None


class ReportedRun(BaseModel):
    """One of several artifacts: its verdict, its group (0: not compared), its doubts, and what is missing."""

    model_config = ConfigDict(frozen=True)
    number: int
    name: str
    path: str
    group: int
    front: bool
    valid: bool
    verdict: str
    doubts: tuple[str, ...] = ()
    missing: tuple[SectionState, ...] = ()


class ReportedGroup(BaseModel):
    """Artifacts that may be compared: the numbers of their runs, and why they are apart from the first group."""

    model_config = ConfigDict(frozen=True)
    number: int
    runs: tuple[int, ...]
    conditions: Mapping[str, str]
    apart: str = ""


class Reported(BaseModel):
    """The summary that `report` prints. `runs`, `groups` and `notes` are those of a page about several artifacts."""

    model_config = ConfigDict(frozen=True)
    report: str
    bytes: int
    verdict: str
    sections: tuple[SectionState, ...] = ()
    runs: tuple[ReportedRun, ...] = ()
    groups: tuple[ReportedGroup, ...] = ()
    notes: tuple[str, ...] = ()


def is_available() -> bool:
    """Return True if the extra `report` is installed."""
    return find_spec("jinja2") is not None


def report(
    artifact: Artifact,
    out: Path | None,
    progress: Progress,
    *,
    images: int = SHOWN_IMAGES,
    data: str | None = None,
    cache: GraphCache | None = None,
) -> Reported:
    """Write a page about an artifact.

    Args:
        artifact: the subject of the page.
        out: the file to write; None is `report.html` beside the artifact.
        progress: gets the steps and warnings.
        images: the number of images whose attention and merged tokens are shown; 0 leaves both out.
        data: DATA with these images; None is the recipe's data for evaluation, or else for calibration.
        cache: the cache of exported graphs, which may have the float32 graph.

    Raises:
        UsageError: the file cannot be written, or Jinja is not installed.
    """
    place = out or artifact.beside(REPORT)
    if out is not None:
        check_place(out, [artifact])
    if not is_available():
        raise UsageError("jinja2 is not installed", fix="pip install 'vitdeploy[report]'.")
    subject = make_subject(artifact)
    maps, missing = _compare_attention(artifact, data, images, progress, cache)
    if missing is not None:
        subject = replace(subject, missing={**subject.missing, "attention": missing})
    groups, missing = _group_tokens(artifact, data, images, progress)
    if missing is not None:
        subject = replace(subject, missing={**subject.missing, "tokens": missing})
    page = compose(subject, maps, groups)
    text = html.render(page).encode()
    if out is None:
        artifact.write_beside({REPORT: text})
    else:
        write_page(out, text)
    states = tuple(
        SectionState(name=s.name, state="shown")
        if s.missing is None
        else SectionState(name=s.name, state="missing", missing=s.missing.why, fix=s.missing.fix)
        for s in page.sections
    )
    return Reported(report=str(place), bytes=len(text), verdict=page.head.verdict, sections=states)


def write_page(out: Path, text: bytes) -> None:
    """Write the page, completely or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with atomic_file(out) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}", fix="Choose another file with -o.") from None


def check_place(out: Path, artifacts: Sequence[Artifact]) -> None:
    """Refuse, before any work, an output that cannot be written or that is a file of an artifact."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix=f"Give a file: -o {out / REPORT}")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", fix="Create it, or choose another file with -o.")
    for artifact in artifacts:
        beside = [name for name in BESIDE if name != REPORT]
        names = (MANIFEST, *beside, *(entry.path for entry in artifact.manifest.files))
        paths = (*map(artifact.file, names), *map(artifact.beside, beside))
        if out.resolve() in {path.resolve() for path in paths}:
            raise UsageError(f"{out} is a file of the artifact", fix="Choose another file with -o.")


def make_subject(artifact: Artifact) -> Subject:
    """Return an artifact with its evidence, judged again, and the commands that make what is missing."""
    missing: dict[Kind, Missing] = {}

    def read(kind: type[EvidenceT]) -> EvidenceT | None:
        evidence, reason = artifact.read_evidence(kind)
        if evidence is None:
            name, command = _COMMANDS[kind]
            missing[name] = Missing(reason, _make_command(artifact, command))
        return evidence

    verdict = read(Gate)
    audit: Audit | None = None
    try:
        audit = inspect(artifact)
    except VitdeployError as error:
        missing["audit"] = Missing(error.message, error.fix)
    judged = None
    if verdict is not None and not verdict.digest:
        reason = "gate.json is of an earlier vitdeploy, and its verdict cannot be computed again"
        missing["gate"], verdict = Missing(reason, _make_command(artifact, "gate")), None
    elif verdict is not None:
        judged = judge_again(artifact, verdict)
    evaluation = read(Eval)
    return Subject(
        folder=str(artifact.path),
        name=artifact.path.resolve().name,
        digest=artifact.digest,
        manifest=artifact.manifest,
        structure=structures.load(artifact.file(SITES)),
        audit=audit,
        bench=read(Bench),
        evaluation=evaluation,
        thumbnails={} if evaluation is None else _read_thumbnails(artifact, evaluation),
        gate=verdict,
        judged=judged,
        sensitivity=read(Sensitivity),
        missing=missing,
    )


def _read_thumbnails(artifact: Artifact, evaluation: Eval) -> dict[str, Array]:
    """Return the pictures of flips that the evaluation names; none if they are others, or cannot be read."""
    raw, _ = artifact.read_raw(FLIPS, _MAX_THUMBNAIL_BYTES)
    if raw is None or hashlib.sha256(raw).hexdigest() != evaluation.thumbnails:
        return {}
    try:
        pictures = read_members(FLIPS, io.BytesIO(raw), "Run vitdeploy eval again.", _MAX_THUMBNAIL_BYTES)
    except (DataError, OSError):
        return {}
    return {name: array for name, array in pictures.items() if array.dtype == np.uint8 and array.ndim == 3}


def _make_command(artifact: Artifact, command: str) -> str:
    """Return the command line that makes a piece of evidence. A bundle must be compiled first."""
    if artifact.manifest.stage == "bundle" and command in ("bench", "eval"):
        return f"vitdeploy compile {artifact.path}"
    needs_data = command == "eval" and artifact.manifest.recipe.data.evaluation is None
    return f"vitdeploy {command} {artifact.path}{' --data DATA' if needs_data else ''}"


def _compare_attention(
    artifact: Artifact, data: str | None, images: int, progress: Progress, cache: GraphCache | None
) -> tuple[AttentionMaps | None, Missing | None]:
    """Return the attention maps, or the reason why there are none. The page is written without them too."""
    if not images:
        return None, Missing("attention maps were left out (--images 0)", f"vitdeploy report {artifact.path}")
    from vitdeploy.commands.report.attention_maps import attention_maps

    try:
        return attention_maps(artifact, data, images, progress, cache), None
    except VitdeployError as error:
        return None, Missing(error.message, error.fix)


def _group_tokens(
    artifact: Artifact, data: str | None, images: int, progress: Progress
) -> tuple[TokenGroups | None, Missing | None]:
    """Return the patches of each token, or the reason why they are not shown; neither if all tokens stay."""
    if artifact.manifest.tokens is None:
        return None, None
    if not images:
        return None, Missing("merged tokens were left out (--images 0)", f"vitdeploy report {artifact.path}")
    from vitdeploy.commands.report.token_groups import token_groups

    try:
        return token_groups(artifact, data, images, progress), None
    except VitdeployError as error:
        return None, Missing(error.message, error.fix)
