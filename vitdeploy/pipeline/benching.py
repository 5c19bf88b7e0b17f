"""Latency of artifacts against a reference: in turns, reopened, with what they cost and how near the peak they come."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError
from vitdeploy.evidence import Audit, Bench, Pair, Peak, Profile, Run, Scenario
from vitdeploy.graph import structure as structures
from vitdeploy.measure import latency, roofline, work
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.profiling import profile as profile_of
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.pipeline import opponents
from vitdeploy.pipeline.compiling import SITES
from vitdeploy.pipeline.observing import observe, outside_only
from vitdeploy.pipeline.prove import feeds, open_session
from vitdeploy.pipeline.startup import startup
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe, TargetSpec
from vitdeploy.session import Array, Feeds, Session


@dataclass(frozen=True)
class Plan:
    """How to measure; None is what the first artifact's recipe says.

    `against`: opponents, the first of which is the reference. `batches`: sizes to try one after the other. `streams`:
    inferences at a time, where the target lets one choose.
    """

    seconds: float | None = None
    threads: int | None = None
    against: tuple[str, ...] = ()
    scenario: Scenario = "single-stream"
    batches: tuple[int, ...] = ()
    streams: int | None = None
    profile: bool = False


def plan_batches(text: str | None) -> tuple[int, ...]:
    """`1,4,8` as sizes.

    Raises:
        UsageError: that is no list of sizes.
    """
    parts = [] if text is None else text.split(",")
    if any(not part.strip().isdecimal() or int(part) < 1 for part in parts):
        raise UsageError(f"--batch {text!r} is not a list of sizes", fix="Give N or N,N,…, such as 1,4,8.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench(paths: Sequence[Path], progress: Progress, plan: Plan | None = None) -> Bench:
    """Latency of artifacts against the reference of the first one, interleaved; stored beside the first.

    Raises:
        UsageError: the artifacts do not take the same input, or not these batches or streams.
        TargetUnavailable: an artifact cannot run here.
    """
    plan = plan or Plan()
    loaded = [_with_streams(artifacts.load(path), plan.streams) for path in paths]
    spec = loaded[0].manifest.recipe
    threads = plan.threads or threads_of(spec)
    batches = plan.batches or (spec.target.batch.opt,)
    pixels = [_images(loaded, batch) for batch in batches]
    try:
        profiles = _opened_once(loaded, pixels[0], threads, progress, wanted=plan.profile)  # quick, and may refuse
    except TargetUnavailable as error:
        alone = _timed_outside(loaded, pixels[0], plan.seconds or spec.bench.seconds, error.message, progress)
        if alone is None:
            raise
        return _kept(loaded[0], alone)
    with progress.step("Measure this host's peak"):
        peaks = roofline.peaks(threads)
    found = [_timed(loaded, images, threads, plan, progress) for images in pixels]
    with progress.step("Measure this host's peak again"):
        peaks = roofline.better(peaks, roofline.peaks(threads))
    result = _joined(found).model_copy(update={"scenario": plan.scenario, "profiles": profiles})
    result = _with_costs(result, loaded, threads, peaks, progress)
    own, seconds = feeds(loaded[0], pixels[0]), plan.seconds or spec.bench.seconds
    beside = observe(loaded[0], partial(open_session, loaded[0], threads), own, seconds, progress)
    return _kept(loaded[0], result.model_copy(update=beside))


def _timed_outside(
    loaded: Sequence[Artifact], pixels: Array, seconds: float, why: str, progress: Progress
) -> Bench | None:
    """What the backend's own stopwatch tells of a lone artifact that cannot be opened from Python."""
    alone = len(loaded) == 1 and loaded[0].manifest.stage == "artifact"
    return outside_only(loaded[0], feeds(loaded[0], pixels), seconds, why, progress) if alone else None


def _kept(artifact: Artifact, found: Bench) -> Bench:
    found = found.model_copy(update={"manifest": artifact.digest, "machine": environment.host().machine})
    artifact.write_evidence(found)
    return found


def threads_of(recipe: Recipe) -> int:
    """What the recipe says for measuring or for its target, else all cores that this process may use."""
    own = recipe.target.options.get("threads")
    found = own if recipe.bench.threads == "auto" else recipe.bench.threads
    return found or environment.available_cores()


def _with_streams(artifact: Artifact, streams: int | None) -> Artifact:
    """The artifact, to be opened with so many streams; a target that has none refuses the option by name."""
    if streams is None:
        return artifact
    manifest = artifact.manifest
    target = TargetSpec.model_validate({**manifest.recipe.target.model_dump(), "streams": streams})
    recipe = manifest.recipe.model_copy(update={"target": target})
    return Artifact(artifact.path, manifest.model_copy(update={"recipe": recipe}), artifact.digest)


def _images(loaded: Sequence[Artifact], batch: int) -> Array:
    """Images that all artifacts take, uint8 NCHW.

    Raises:
        UsageError: they take inputs of different shapes, or not this batch.
    """
    first = loaded[0].manifest
    if any(a.manifest.inputs[0].shape[1:] != first.inputs[0].shape[1:] for a in loaded):
        raise UsageError("the artifacts take inputs of different shapes", fix="Compare those of one model.")
    for artifact in loaded:
        allowed = artifact.manifest.recipe.target.batch
        if not allowed.min <= batch <= allowed.max:
            raise UsageError(
                f"{artifact.path} takes batches of {allowed}, not of {batch}",
                fix="Give a --batch that all of them take, or export with --batch MIN:OPT:MAX.",
            )
    return natural_image(0, first.preprocess, batch)


def _opened_once(
    loaded: Sequence[Artifact], pixels: Array, threads: int, progress: Progress, *, wanted: bool
) -> tuple[Profile, ...]:
    """Open every artifact, so that a refusal comes before the minutes; profiles where they are wanted."""
    found = []
    for artifact in loaded:
        with open_session(artifact, threads, progress) as session:
            if not wanted:
                continue
            with progress.step(f"Profile {session.name}"):
                counters = session.profile(feeds(artifact, pixels))
            if counters is None:
                progress.warn(f"{session.name}: its engine has no counters, so there is no profile")
            else:
                found.append(profile_of(session.name, counters, structures.load(artifact.path / SITES)))
    return tuple(found)


def _timed(loaded: Sequence[Artifact], pixels: Array, threads: int, plan: Plan, progress: Progress) -> Bench:
    """One batch size: opponents stay open, artifacts are opened anew in every round."""
    spec, batch = loaded[0].manifest.recipe.bench, len(pixels)
    runs = runs_in_query(plan.scenario, batch)
    openers: list[latency.Opener] = []
    inputs: list[Feeds] = []
    missing: list[str] = []
    with ExitStack() as stack:
        for name in plan.against or (spec.against,):
            try:
                session, images = stack.enter_context(opponents.opened(name, loaded[0], pixels, threads, progress))
            except (SourceError, MeasureError) as error:
                missing.append(f"no {name} here, so no speed-up over it: {error.message}")
                continue
            openers.append(partial(Query, session, runs, closes=False))
            inputs.append(images)
        for artifact in loaded:
            openers.append(partial(_query, artifact, threads, runs))
            inputs.append(feeds(artifact, pixels))
        found = latency.measure_reopened(
            openers, inputs, batch=batch * runs, seconds=plan.seconds or spec.seconds, progress=progress
        )
    return _completed(found, loaded, missing, batch)


def _query(artifact: Artifact, threads: int, runs: int) -> Session:
    return Query(open_session(artifact, threads), runs)


def _completed(found: Bench, loaded: Sequence[Artifact], missing: Sequence[str], batch: int) -> Bench:
    """Names that tell the artifacts apart, their ratios to the first of them, and no reference where there is none."""
    others = len(found.runs) - len(loaded)
    names = [run.name for run in found.runs]
    runs = []
    for number, run in enumerate(found.runs):
        name = run.name
        if number >= others and names.count(name) > 1:
            name = f"{name} ({loaded[number - others].path.name})"
        changed: dict[str, object] = {"name": name, "batch": batch}
        if number >= others:
            changed["manifest"] = loaded[number - others].digest
        if missing and not others:  # the first artifact took the reference's place, which it is not
            changed["speedup"] = None
        runs.append(run.model_copy(update=changed))
    pairs = [
        Pair(
            name=run.name, over=runs[others].name, speedup=speedup_interval(runs[others].blocks, run.blocks, run.rounds)
        )
        for run in runs[others + 1 :]
    ]
    doubts = (*missing, *found.doubts)
    return found.model_copy(update={"runs": tuple(runs), "pairs": tuple(pairs), "doubts": doubts, "valid": not doubts})


def _joined(found: Sequence[Bench]) -> Bench:
    """Several batch sizes as one: runs after one another, doubts with their batch."""
    if len(found) == 1:
        return found[0]
    doubts = tuple(f"batch {bench.runs[0].batch}: {doubt}" for bench in found for doubt in bench.doubts)
    return found[0].model_copy(
        update={
            "valid": not doubts,
            "doubts": doubts,
            "runs": tuple(run for bench in found for run in bench.runs),
            "pairs": tuple(pair for bench in found for pair in bench.pairs),
            "seconds": sum(bench.seconds for bench in found),
        }
    )


def _with_costs(
    found: Bench, loaded: Sequence[Artifact], threads: int, peaks: dict[str, Peak], progress: Progress
) -> Bench:
    """Add efficiency to every run; start-up and size to the artifacts'."""
    plain = work.in_float32(structures.load(loaded[0].path / SITES))
    own = {artifact.digest: _work(artifact) for artifact in loaded}
    cache = roofline.largest_cache()
    streamed = cache is not None and max(w.weight_bytes for w in (plain, *own.values())) > cache
    described = roofline.describe(
        own[loaded[0].digest], threads, peaks, roofline.copy_gbs(threads) if streamed else None
    )
    costs = {a.digest: {"startup": startup(a, threads), "size_bytes": a.deployed_bytes} for a in loaded}
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


def _on_cpu(run: Run) -> bool:
    """The peak is the CPU's; what runs elsewhere is not held against it."""
    return run.effective.get("device", "CPU").upper().startswith("CPU")


def _work(artifact: Artifact) -> work.Work:
    audit, _ = artifact.read_evidence(Audit)
    structure = structures.load(artifact.path / SITES)
    return work.in_float32(structure) if audit is None else work.of(structure, audit.layers, audit.stored)
