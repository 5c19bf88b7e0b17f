"""What a run costs beside its time: the share of this host's peak, start-up, memory and size."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.bench.startup import startup
from vitdeploy.evidence import Audit, Bench, Peak, Run, Startup
from vitdeploy.graph import structure as structures
from vitdeploy.measure import roofline, work
from vitdeploy.measure.scenarios import runs_in_query
from vitdeploy.progress import Progress


def with_costs(
    found: Bench,
    loaded: Sequence[Artifact],
    others: Sequence[Artifact],
    threads: int,
    peaks: dict[str, Peak],
    progress: Progress,
) -> Bench:
    """Add efficiency to every run; start-up and size to those of artifacts.

    Args:
        found: what was timed.
        loaded: the artifacts.
        others: artifacts that they were timed against.
        threads: of all sides.
        peaks: of this host on these threads.
        progress: told what could not be measured.
    """
    plain = work.count_float32_work(structures.load(loaded[0].path / SITES))
    own = {artifact.digest: _work(artifact) for artifact in (*others, *loaded)}
    cache = roofline.read_largest_cache()
    streamed = cache is not None and max(w.weight_bytes for w in (plain, *own.values())) > cache
    described = roofline.describe(
        own[loaded[0].digest], threads, peaks, roofline.measure_copy_gbs(threads) if streamed else None
    )
    batch = found.runs[0].batch
    costs = {
        a.digest: {"startup": started(a, threads, batch, progress), "size_bytes": a.deployed_bytes} for a in loaded
    }
    runs = []
    for run in found.runs:
        images = run.batch * runs_in_query(found.scenario, run.batch)
        floor = roofline.floor_ms(own.get(run.manifest, plain), images, described) if _on_cpu(run) else None
        share = None if floor is None else 100 * floor / run.p50_ms
        if share is not None and share > 100:
            progress.warn(f"{run.name} is faster than this host's measured peak allows: no efficiency is given")
            share = None
        more = {"floor_ms": floor, "efficiency_pct": share, **costs.get(run.manifest, {})}
        runs.append(run.model_copy(update=more))
    return found.model_copy(update={"runs": tuple(runs), "roofline": described})


def started(artifact: Artifact, threads: int, batch: int, progress: Progress) -> Startup | None:
    """Start-up in a process of its own; None, and a warning that says why, where that did not tell."""
    found = startup(artifact, threads, batch)
    if isinstance(found, str):
        progress.warn(f"the start-up of {artifact.path} was not measured: {found}")
        return None
    return found


def _on_cpu(run: Run) -> bool:
    """The peak is the CPU's; what runs elsewhere is not held against it."""
    return run.effective.get("device", "CPU").upper().startswith("CPU")


def _work(artifact: Artifact) -> work.Work:
    audit, _ = artifact.read_evidence(Audit)
    structure = structures.load(artifact.path / SITES)
    return (
        work.count_float32_work(structure) if audit is None else work.count_work(structure, audit.layers, audit.stored)
    )
