"""`vitdeploy bench --tune-streams`: search for the streams and the batch that answer the most images a second."""

from __future__ import annotations

from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.stream_search import StreamSearch
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Provenance, Scenario, StreamTuning, TunedScenario
from vitdeploy.frozen import replace
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import count_threads, open_session, refuse_decoder
from vitdeploy.runtime.provenance import describe_provenance

SCENARIOS: tuple[Scenario, ...] = ("multi-stream", "offline")
"""The scenarios with several images at once."""


def tune_streams(
    artifact: Artifact,
    progress: Progress,
    *,
    scenario: Scenario | None = None,
    seconds: float | None = None,
    threads: int | None = None,
) -> StreamTuning:
    """Search for the fastest setting of each scenario, and store it beside the artifact.

    Args:
        artifact: a compiled artifact.
        progress: gets the steps.
        scenario: multi-stream or offline; None: both. A result of the other one that is still valid stays.
        seconds: the time to measure for each scenario; the recipe's when it is None, else 10.
        threads: of all streams together; the recipe's when it is None, else all cores.

    Raises:
        UsageError: there is only one setting, or the scenario has only one image at a time.
        TargetUnavailable: it is a bundle, or cannot run here.
    """
    if scenario == "single-stream":
        raise UsageError(
            "single-stream has one image at a time, so there are no streams to search for",
            fix="Give the scenario multi-stream or offline, or none for both.",
        )
    refuse_decoder(artifact, "bench")
    recipe = artifact.manifest.recipe
    threads, seconds = threads or count_threads(recipe), seconds or recipe.bench.seconds
    with open_session(artifact, threads, progress) as untuned:
        searches = [
            StreamSearch(artifact, name, untuned, threads, seconds, progress)
            for name in SCENARIOS
            if scenario in (None, name)
        ]
    for search in searches:
        search.require_choice()
    provenance = describe_provenance(artifact.manifest, threads)
    earlier = read_earlier(artifact, provenance)
    tuned = {search.scenario: search.run() for search in searches}
    return artifact.write_evidence(StreamTuning(scenarios={**earlier, **tuned}, provenance=provenance))


def read_earlier(artifact: Artifact, provenance: Provenance) -> dict[Scenario, TunedScenario]:
    """Return the stored results that were measured in the same way: on this machine, with these libraries."""
    earlier, _ = artifact.read_evidence(StreamTuning)
    if earlier is None or earlier.provenance is None:
        return {}
    is_same = replace(earlier.provenance, date=provenance.date) == provenance
    return dict(earlier.scenarios) if is_same else {}
