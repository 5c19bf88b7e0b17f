"""The setting for throughput that `bench --tune-streams` stored beside an artifact, where it is valid."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Scenario, StreamSetting, StreamTuning
from vitdeploy.runtime.artifact_session import count_threads


@dataclass(frozen=True)
class StoredSetting:
    """The setting to use for a scenario; None for the artifact's own. `note` says why none of the search is used."""

    setting: StreamSetting | None = None
    note: str = ""


def read_setting(artifact: Artifact, scenario: Scenario, threads: int | None = None) -> StoredSetting:
    """Read the stored setting for a scenario.

    A setting is that of one machine, engine and number of threads. Anyone may have written the file, so a setting that
    the artifact or this machine does not take is not used either.

    Args:
        artifact: the artifact.
        scenario: the scenario; single-stream has no setting.
        threads: of all streams together; None: the recipe's, else all cores.
    """
    if scenario == "single-stream":
        return StoredSetting()
    tuning, reason = artifact.read_evidence(StreamTuning)
    again = f"search again with: vitdeploy bench {artifact.path} --tune-streams"
    if tuning is None:
        missing = f"no setting for {scenario} is stored" if reason.startswith("there is no") else reason
        return StoredSetting(note=f"{missing}: search for one with: vitdeploy bench {artifact.path} --tune-streams")
    tuned = tuning.scenarios.get(scenario)
    if tuned is None:
        return StoredSetting(note=f"no setting for {scenario} is stored: {again} --scenario {scenario}")
    mismatch = _find_mismatch(artifact, tuning, tuned.setting, threads or count_threads(artifact.manifest.recipe))
    if mismatch:
        return StoredSetting(note=f"the stored setting for {scenario} is not used: {mismatch}; {again}")
    return StoredSetting(None if tuned.kept == "untuned" else tuned.setting)


def _find_mismatch(artifact: Artifact, tuning: StreamTuning, setting: StreamSetting, threads: int) -> str:
    """Return the reason why a setting does not apply here; empty if it does."""
    measured, target = tuning.provenance, targets.find(artifact.manifest.recipe.target)
    allowed = artifact.manifest.recipe.target.batch
    if measured is None or measured.machine != environment.host().machine:
        return "it was measured on another machine, or on other cores"
    if measured.engine != target.installed_engine():
        return f"it was measured with {measured.engine}"
    if measured.threads != threads:
        return f"it was measured with {measured.threads} threads, not with {threads}"
    if not allowed.min <= setting.batch <= allowed.max:
        return f"the artifact accepts batches of {allowed}, not of {setting.batch}"
    if not (target.hints_throughput if setting.hint else target.runs_streams or setting.streams == 1):
        return f"{target.name} has no streams on {target.device}"
    if setting.streams > threads:
        return f"{setting.streams} streams are more than {threads} threads"
    return ""
