"""The base class of all evidence."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """An immutable piece of evidence. Unknown keys, which a newer vitdeploy may have written, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
