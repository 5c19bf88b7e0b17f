"""A setting for throughput."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vitdeploy.evidence.fact import Fact

_Count = Annotated[int, Field(ge=1, le=1 << 16)]


class StreamSetting(Fact):
    """A number of inferences at the same time, and the images of each.

    Attributes:
        streams: inferences at the same time; with `hint` those that the engine chose.
        batch: images of one inference.
        threads: the threads of each stream.
        hint: True if the engine is asked for throughput and chooses the streams itself.
    """

    streams: _Count
    batch: _Count
    threads: _Count
    hint: bool = False

    def __str__(self) -> str:
        name = "stream" if self.streams == 1 else "streams"
        chosen = " by the engine's hint" if self.hint else ""
        return f"{self.streams} {name}{chosen}, batch {self.batch}"
