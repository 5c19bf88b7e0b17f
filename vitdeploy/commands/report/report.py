"""Collect what is known about artifacts, look at their attention, and write the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import EVIDENCE, MANIFEST, Artifact, atomic_file
from vitdeploy.artifact.layout import REPORT, SITES
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.evidence import Audit, Bench, Eval, Fact, Gate, Sensitivity
from vitdeploy.graph import structure as structures
from vitdeploy.progress import Progress
from vitdeploy.render import html
from vitdeploy.render.html.attention import AttentionMaps
from vitdeploy.render.html.page import compose
from vitdeploy.render.html.parts import Missing
from vitdeploy.render.html.subject import Kind, Subject

IMAGES = 3
"""Images whose attention is shown: enough to see a pattern, few enough for a phone."""

_MAKES: dict[type[Fact], tuple[Kind, str]] = {
    Bench: ("bench", "bench"),
    Eval: ("eval", "eval"),
    Gate: ("gate", "gate"),
    Sensitivity: ("sensitivity", "inspect --sensitivity"),
}


class SectionState(BaseModel):
    """A section of the page; `missing` says why it has nothing to show, and `fix` what to run."""

    model_config = ConfigDict(frozen=True)
    name: str
    state: Literal["shown", "missing"]
    missing: str | None = None
    fix: str | None = None


class Reported(BaseModel):
    """What `report` prints."""

    model_config = ConfigDict(frozen=True)
    report: str
    bytes: int
    verdict: str
    sections: tuple[SectionState, ...]


def available() -> bool:
    """Whether the extra `report` is installed."""
    return find_spec("jinja2") is not None


def report(
    paths: Sequence[Path], out: Path | None, progress: Progress, *, images: int = IMAGES, data: str | None = None
) -> Reported:
    """Write the page about the first artifact, with the others beside it in speed against accuracy.

    Args:
        paths: artifact folders.
        out: the file to write; None is `report.html` in the first folder.
        progress: told about the steps.
        images: whose attention is shown; 0 leaves it out.
        data: where these images come from; None is what the artifact was evaluated or calibrated on.

    Raises:
        ArtifactError: a folder is damaged.
        UsageError: the file cannot be written there, or Jinja is not installed.
    """
    loaded = [artifacts.load(path) for path in paths]
    out = out or paths[0] / REPORT
    _check_place(out, loaded)
    if not available():
        raise UsageError("jinja2 is not installed", fix="pip install 'vitdeploy[report]'.")
    subjects = [_subject(artifact) for artifact in loaded]
    maps, missing = _attention(loaded[0], data, images, progress)
    if missing is not None:
        subjects[0] = replace(subjects[0], missing={**subjects[0].missing, "attention": missing})
    page = compose(subjects, maps)
    text = html.render(page).encode()
    try:
        with atomic_file(out) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}", fix="Name a file elsewhere with -o.") from None
    states = tuple(
        SectionState(name=s.name, state="shown")
        if s.missing is None
        else SectionState(name=s.name, state="missing", missing=s.missing.why, fix=s.missing.fix)
        for s in page.sections
    )
    return Reported(report=str(out), bytes=len(text), verdict=page.head.verdict, sections=states)


def _check_place(out: Path, loaded: Sequence[Artifact]) -> None:
    """Refuse, before the work, a place where nothing can be written, or where an artifact has a file of its own."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix=f"Name a file: -o {out / REPORT}")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", fix="Make it, or name a file elsewhere with -o.")
    for artifact in loaded:
        own = (MANIFEST, *EVIDENCE, *(entry.path for entry in artifact.manifest.files))
        if out.resolve() in {artifact.file(name).resolve() for name in own}:
            raise UsageError(f"{out} is a file of the artifact", fix="Name another file with -o.")


def _subject(artifact: Artifact) -> Subject:
    missing: dict[Kind, Missing] = {}

    def stored(kind: type[artifacts.FactT]) -> artifacts.FactT | None:
        found, why = artifact.read_evidence(kind)
        if found is None:
            name, command = _MAKES[kind]
            missing[name] = Missing(why, _command(artifact, command))
        return found

    audit: Audit | None = None
    try:
        audit = inspect(artifact.path)
    except VitdeployError as error:
        missing["audit"] = Missing(error.message, error.fix)
    return Subject(
        folder=str(artifact.path),
        name=artifact.path.resolve().name,
        digest=artifact.digest,
        manifest=artifact.manifest,
        structure=structures.load(artifact.file(SITES)),
        audit=audit,
        bench=stored(Bench),
        evaluation=stored(Eval),
        gate=stored(Gate),
        sensitivity=stored(Sensitivity),
        missing=missing,
    )


def _command(artifact: Artifact, command: str) -> str:
    """What makes a piece of evidence; a bundle has to be compiled before it can run."""
    if artifact.manifest.stage == "bundle" and command in ("bench", "eval"):
        return f"vitdeploy compile {artifact.path}"
    needs_data = command == "eval" and artifact.manifest.recipe.data.evaluation is None
    return f"vitdeploy {command} {artifact.path}{' --data DATA' if needs_data else ''}"


def _attention(
    artifact: Artifact, data: str | None, images: int, progress: Progress
) -> tuple[AttentionMaps | None, Missing | None]:
    """The maps, or why there are none: a page without them is still worth reading."""
    if not images:
        return None, Missing("attention maps were left out (--images 0)", f"vitdeploy report {artifact.path}")
    from vitdeploy.commands.report.attention_maps import attention_maps

    try:
        return attention_maps(artifact, data, images, progress), None
    except VitdeployError as error:
        return None, Missing(error.message, error.fix)
