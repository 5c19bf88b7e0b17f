"""The costs of a run beside its time: the share of this host's peak, start-up, memory and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitdeploy import precision as precisions
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.bench.startup import start_process
from vitdeploy.evidence import Audit, Peak, Roofline, Run, Scenario, Startup
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.measure import roofline, work
from vitdeploy.measure.scenarios import runs_in_query
from vitdeploy.progress import Progress


def add_costs(
    runs: Sequence[Run],
    scenario: Scenario,
    timed: Sequence[Artifact],
    opposing: Sequence[Artifact],
    threads: int,
    peaks: Mapping[str, Peak],
    progress: Progress,
) -> tuple[tuple[Run, ...], Roofline]:
    """Add efficiency to every run, and start-up and size to the runs of the timed artifacts.

    Args:
        runs: the runs of all sides.
        scenario: the scenario that they were timed in.
        timed: the artifacts that the bench is about.
        opposing: the artifacts that they were timed against.
        threads: the number of threads, for all sides.
        peaks: this host's peak performance with these threads.
        progress: gets the steps and warnings.
    """
    plain = work.count_float32_work(structures.load(timed[0].file(SITES)))
    works = {artifact.digest: _count_work(artifact) for artifact in (*opposing, *timed)}
    cache = roofline.read_largest_cache()
    exceeds_cache = cache is not None and max(w.weight_bytes for w in (plain, *works.values())) > cache
    bandwidth = roofline.measure_copy_gbs(threads) if exceeds_cache else None
    host_roofline = roofline.describe(works[timed[0].digest], threads, dict(peaks), bandwidth)
    startups = {a.digest: measure_startup(a, threads, runs[0].batch, progress) for a in timed}
    sizes = {a.digest: a.manifest.deployed_bytes for a in timed}
    complete = []
    for run in runs:
        images = run.batch * runs_in_query(scenario, run.batch)
        floor = roofline.floor_ms(works.get(run.manifest, plain), images, host_roofline) if _is_on_cpu(run) else None
        share = None if floor is None else 100 * floor / run.p50_ms
        if share is not None and share > 100:
            progress.warn(f"{run.name} is faster than this host's measured peak allows, so its efficiency is unknown")
            share = None
        startup, size = startups.get(run.manifest, run.startup), sizes.get(run.manifest, run.size_bytes)
        complete.append(replace(run, floor_ms=floor, efficiency_pct=share, startup=startup, size_bytes=size))
    return tuple(complete), host_roofline


def measure_startup(artifact: Artifact, threads: int, batch: int, progress: Progress) -> Startup | None:
    """Measure the start-up of an artifact in a process of its own; None, with a warning, if that fails."""
    startup = start_process(artifact, threads, batch)
    if isinstance(startup, str):
        progress.warn(f"the start-up of {artifact.path} was not measured: {startup}")
        return None
    return startup


def _is_on_cpu(run: Run) -> bool:
    """Return True if the run is on the CPU, so that the CPU's peak applies."""
    return run.effective.get("device", "CPU").upper().startswith("CPU")


def _count_work(artifact: Artifact) -> work.Work:
    audit, _ = artifact.read_evidence(Audit)
    structure = structures.load(artifact.file(SITES))
    if audit is None:
        return work.count_float32_work(structure)
    return work.count_work(structure, audit.layers, audit.stored, _find_attention_types(artifact))


def _find_attention_types(artifact: Artifact) -> tuple[str, str]:
    """Return the types in which queries meet keys, and probabilities meet values.

    Where only some sites are INT8, all count as INT8: the floor stays a lower bound.
    """
    manifest = artifact.manifest
    rest = precisions.kind_of(manifest.target.precision).numbers.rest
    record = manifest.quantized.attention if manifest.quantized is not None else None
    if record is None or not record.sites:
        return rest, rest
    return (rest if record.values_alone else "int8"), "int8"
