"""What every piece of evidence is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """An immutable piece of evidence. Unknown keys are dropped on reading: a newer vitdeploy may have written more."""

    model_config = ConfigDict(frozen=True, extra="ignore")
