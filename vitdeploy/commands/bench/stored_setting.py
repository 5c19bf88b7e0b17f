"""The stored setting for throughput that a bench uses."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Scenario, StreamSetting
from vitdeploy.progress import Progress
from vitdeploy.runtime.stored_streams import read_setting


def find_setting(
    artifacts: Sequence[Artifact], scenario: Scenario, threads: int | None, progress: Progress
) -> StreamSetting | None:
    """Return the stored setting of an artifact for a scenario; None if it is timed with its own.

    Args:
        artifacts: what is timed. Several are timed with the same batch, and may have different settings.
        scenario: the scenario of the bench.
        threads: the number of threads that the user gave.
        progress: gets the reason if there is a setting that is not used, or none.
    """
    if scenario == "single-stream":
        return None
    if len(artifacts) > 1:
        progress.warn(f"of several artifacts no stored setting for {scenario} is used: give --batch and --streams")
        return None
    stored = read_setting(artifacts[0], scenario, threads)
    if stored.note:
        progress.warn(stored.note)
    return stored.setting
