"""The section `tokens` of a recipe: fewer tokens in later blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vitdeploy.frozen import Frozen

OFF = "off"
SEARCH: Literal["auto"] = "auto"
_Count = Annotated[int, Field(ge=0)]
Schedule = Mapping[_Count, _Count]
"""The number of a block, from 0, and how many tokens fewer there are behind its attention."""


class TokensSpec(Frozen):
    """Fewer tokens in later blocks, for speed: either merged or dropped.

    Both are a number of tokens behind the attention of each block: `{3: 40, 6: 60}`, "3:40,6:60" or "off".

    Attributes:
        merge: the most similar tokens are averaged, image by image. "auto": a search for the blocks and numbers.
        drop: the tokens of fixed positions are left out, chosen on the calibration images.
    """

    merge: Literal["auto"] | Schedule = Field(default_factory=dict)
    drop: Schedule = Field(default_factory=dict)

    @field_validator("merge", mode="before")
    @classmethod
    def _parse_merge(cls, value: Any) -> Any:
        """Accept the text of --merge-tokens as well as a mapping."""
        return value if value == SEARCH else _parse(value, "off nor auto")

    @field_validator("drop", mode="before")
    @classmethod
    def _parse_drop(cls, value: Any) -> Any:
        """Accept the text of --drop-tokens as well as a mapping."""
        return _parse(value, "off")

    @model_validator(mode="after")
    def _check_one(self) -> TokensSpec:
        if (self.merges or self.searches) and self.drops:
            raise ValueError("tokens are either merged or dropped, and both are there: set merge or drop to off")
        return self

    @property
    def merges(self) -> bool:
        """Return whether tokens are merged behind given blocks."""
        return any(self.schedule.values())

    @property
    def schedule(self) -> Schedule:
        """The given blocks behind which tokens are merged; none for a search."""
        return {} if isinstance(self.merge, str) else self.merge

    @property
    def searches(self) -> bool:
        """Return whether a search decides what is merged."""
        return self.merge == SEARCH

    @property
    def drops(self) -> bool:
        """Return whether tokens are dropped."""
        return any(self.drop.values())


def describe_schedule(schedule: Schedule) -> str:
    """Return a schedule as --merge-tokens takes it: `3:60,6:40`."""
    return ",".join(f"{block}:{removed}" for block, removed in sorted(schedule.items()))


def _parse(value: Any, words: str) -> Any:
    """Return the blocks of a text such as `3:40,6:60`; anything but a text as it is."""
    if value in (OFF, False):
        return {}
    if not isinstance(value, str):
        return value
    pairs = [re.fullmatch(r"([0-9]+):([0-9]+)", part.strip()) for part in value.split(",")]
    blocks = [pair.group(1) for pair in pairs if pair is not None]
    if len(blocks) < len(pairs):
        raise ValueError(f"{value!r} is neither {words} nor BLOCK:REMOVED,…, such as 3:40,6:60")
    if len(set(map(int, blocks))) < len(blocks):
        raise ValueError(f"a block is there twice: {value}")
    return {int(pair.group(1)): int(pair.group(2)) for pair in pairs if pair is not None}
