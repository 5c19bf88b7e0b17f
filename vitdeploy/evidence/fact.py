"""The base classes of evidence."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """An immutable piece of evidence. Unknown keys, which a newer vitdeploy may have written, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Evidence(Fact):
    """A piece of evidence that is stored beside an artifact, in a file of its own.

    `manifest` is the sha256 of the manifest.json that it is about. Evidence about another manifest is stale.
    """

    file: ClassVar[str]
    """The name of the file in the artifact's folder."""

    manifest: str = ""
