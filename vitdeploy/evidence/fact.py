"""The base classes of evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """An immutable piece of evidence. Unknown keys, which a newer vitdeploy may have written, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Provenance(Fact):
    """The machine, the time and the software that a piece of evidence was made with.

    Attributes:
        machine: digest of the machine, its usable cores and its power mode; see `environment.Host.machine`.
        hardware: the same without cores and power mode, which may change between two measurements of one machine.
        engine: name and version of the engine that ran, such as "openvino 2025.3.0".
        versions: versions of vitdeploy and of the libraries that the figures depend on.
        threads: number of threads; None if the engine does not have them.
        date: the day in UTC, as YYYY-MM-DD: the same measurement gives the same evidence all day.
        recipe: digest of the artifact's recipe.
    """

    machine: str
    hardware: str
    engine: str
    versions: Mapping[str, str]
    threads: int | None = None
    date: str
    recipe: str


class Evidence(Fact):
    """A piece of evidence that is stored beside an artifact, in a file of its own.

    `manifest` is the sha256 of the manifest.json that it is about. Evidence about another manifest is stale.
    """

    file: ClassVar[str]
    """The name of the file in the artifact's folder."""

    manifest: str = ""


class Measured(Evidence):
    """Evidence that was measured, or read back from a compiled model, on some machine."""

    provenance: Provenance | None = None
    """None in evidence of a vitdeploy that did not keep it."""
