"""The streams and the batch that answer the most images a second, searched on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.fact import Fact, Measured
from vitdeploy.evidence.stream_setting import StreamSetting
from vitdeploy.evidence.timing import Interval, Run, Scenario

Kept = Literal["untuned", "hint", "tuned"]
"""The setting that a search ends with: the artifact's own, the engine's hint for throughput, or one of the grid."""


class TriedSetting(Fact):
    """A setting of the grid that was timed beside the untuned one.

    `ratio` is its images a second over those of the untuned setting. It has few blocks and no interval: it only chooses
    what is compared thoroughly. None if a first look already showed that another batch is much faster.
    """

    streams: int
    batch: int
    ratio: float | None


class TunedScenario(Fact):
    """The result of the search for one scenario. All ratios are of images a second: above 1 is faster.

    Attributes:
        kept: the setting that is used: only one that is certainly faster than the simpler ones replaces them.
        setting: its streams and batch.
        over_untuned: how many times as fast it is as the artifact's own setting; None if it is that, or in doubt.
        over_hint: how many times as fast it is as the engine's hint; None without such a hint, if it is that, or in
            doubt.
        why: the reason for what was kept, in a sentence.
        valid: False if there are `doubts` about the comparison. A doubtful setting is not kept; where the doubt is
            about the machine or the untuned setting, that one is.
        runs: the thorough comparison, "untuned" first, with all raw samples in ms: each is one query.
        settings: the setting of each run by its name.
        tried: the grid.
        seconds: time spent timing, in the grid and in the comparison.
    """

    kept: Kept
    setting: StreamSetting
    over_untuned: Interval | None = None
    over_hint: Interval | None = None
    why: str
    valid: bool
    doubts: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    settings: Mapping[Kept, StreamSetting] = {}
    tried: tuple[TriedSetting, ...] = ()
    seconds: float = 0.0


class StreamTuning(Measured):
    """The settings for throughput by scenario. They are used on the machine and with the engine that they are of."""

    file: ClassVar[str] = "streams.json"

    scenarios: Mapping[Scenario, TunedScenario]
