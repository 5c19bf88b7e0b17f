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
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.bench import host_peak, opponents
from vitdeploy.commands.bench.costs import with_costs
from vitdeploy.commands.bench.device_time import observe, outside_only
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import MeasureError, SourceError, TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Bench, Pair, Profile, Scenario
from vitdeploy.graph import structure as structures
from vitdeploy.measure import latency
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.profiling import profile as profile_of
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.progress import Progress
from vitdeploy.recipe import OPPONENTS, Recipe
from vitdeploy.runtime.artifact_session import feeds, open_session, threads_of, with_streams
from vitdeploy.session import Array, Counters, Feeds, Session


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
    loaded = [with_streams(artifacts.load(path), plan.streams) for path in paths]
    spec = loaded[0].manifest.recipe
    threads = plan.threads or threads_of(spec)
    batches = plan.batches or (spec.target.batch.opt,)
    pixels = [_images(loaded, batch) for batch in batches]
    try:
        counters = _opened_once(loaded, pixels[0], threads, progress, wanted=plan.profile)  # quick, and may refuse
    except TargetUnavailable as error:
        alone = _timed_outside(loaded, pixels[0], plan.seconds or spec.bench.seconds, error.message, progress)
        if alone is None:
            raise
        return _kept(loaded[0], alone)
    with progress.step("Measure this host's peak"):
        peaks = host_peak.peaks(threads)
    found = [_timed(loaded, images, threads, plan, progress) for images in pixels]
    with progress.step("Measure this host's peak again"):
        peaks = host_peak.better(peaks, host_peak.peaks(threads))
    profiles = _profiles(found[0], loaded, counters)
    result = _joined(found).model_copy(update={"scenario": plan.scenario, "profiles": profiles})
    others = [artifacts.load(Path(name)) for name in _against(plan, spec) if name not in OPPONENTS]
    result = with_costs(result, loaded, others, threads, peaks, progress)
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


def _against(plan: Plan, recipe: Recipe) -> tuple[str, ...]:
    return plan.against or (recipe.bench.against,)


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
) -> list[Counters | None]:
    """Open every artifact, so that a refusal comes before the minutes; its counters where they are wanted."""
    found: list[Counters | None] = []
    for artifact in loaded:
        with open_session(artifact, threads, progress) as session:
            counters = None
            if wanted:
                with progress.step(f"Profile {session.name}"):
                    counters = _counted(session, feeds(artifact, pixels), progress)
        found.append(counters)
    return found


def _counted(session: Session, images: Feeds, progress: Progress) -> Counters | None:
    """A profile that cannot be had is told, and costs nothing but itself."""
    try:
        counters = session.profile(images)
    except VitdeployError as error:
        progress.warn(f"{session.name} has no profile: {error.message}")
        return None
    if counters is None:
        progress.warn(f"{session.name} has no profile: its engine has no counters")
    return counters


def _profiles(found: Bench, loaded: Sequence[Artifact], counters: Sequence[Counters | None]) -> tuple[Profile, ...]:
    """By the names of the artifacts' runs, which stand last."""
    own = zip(found.runs[-len(loaded) :], loaded, counters, strict=True)
    return tuple(
        profile_of(run.name, counted, structures.load(artifact.path / SITES))
        for run, artifact, counted in own
        if counted is not None
    )


def _timed(loaded: Sequence[Artifact], pixels: Array, threads: int, plan: Plan, progress: Progress) -> Bench:
    """One batch size: opponents stay open, artifacts are opened anew in every round."""
    spec, batch = loaded[0].manifest.recipe.bench, len(pixels)
    runs = runs_in_query(plan.scenario, batch)
    openers: list[latency.Opener] = []
    inputs: list[Feeds] = []
    sides: list[Artifact | None] = []
    missing: list[str] = []
    with ExitStack() as stack:
        for name in _against(plan, loaded[0].manifest.recipe):
            try:
                other = stack.enter_context(opponents.opened(name, loaded[0], pixels, threads, progress))
            except (SourceError, MeasureError) as error:
                missing.append(f"no {name} here, so no speed-up over it: {error.message}")
                continue
            openers.append(partial(Query, other.session, runs, closes=False))
            inputs.append(other.feeds)
            sides.append(other.artifact)
        for artifact in loaded:
            openers.append(partial(_query, artifact, threads, runs))
            inputs.append(feeds(artifact, pixels))
        found = latency.measure_reopened(
            openers, inputs, batch=batch * runs, seconds=plan.seconds or spec.seconds, progress=progress
        )
    return _completed(found, sides, loaded, missing, batch)


def _query(artifact: Artifact, threads: int, runs: int) -> Session:
    return Query(open_session(artifact, threads), runs)


def _completed(
    found: Bench, opposing: Sequence[Artifact | None], loaded: Sequence[Artifact], missing: Sequence[str], batch: int
) -> Bench:
    """Names that tell the runs apart, their ratios to the first artifact, and no reference where there is none."""
    sides = [*opposing, *loaded]
    names = _labels([run.name for run in found.runs], sides, len(opposing))
    runs = []
    for run, name, side in zip(found.runs, names, sides, strict=True):
        changed: dict[str, object] = {"name": name, "batch": batch, "manifest": side.digest if side else ""}
        if missing and not opposing:  # the first artifact took the reference's place, which it is not
            changed["speedup"] = None
        runs.append(run.model_copy(update=changed))
    first, *others = runs[len(opposing) :]
    pairs = [
        Pair(
            name=run.name, over=first.name, batch=batch, speedup=speedup_interval(first.blocks, run.blocks, run.rounds)
        )
        for run in others
    ]
    doubts = (*missing, *found.doubts)
    return found.model_copy(update={"runs": tuple(runs), "pairs": tuple(pairs), "doubts": doubts, "valid": not doubts})


def _labels(names: Sequence[str], sides: Sequence[Artifact | None], opponents: int) -> list[str]:
    """An opponent's folder is always told, another artifact's where its name is not the only one of its kind."""
    folders = _told_apart([side.path.absolute() for side in sides if side is not None])
    labels = []
    for number, (name, side) in enumerate(zip(names, sides, strict=True)):
        told = side is not None and (number < opponents or names.count(name) > 1)
        labels.append(f"{name} ({folders[side.path.absolute()]})" if side is not None and told else name)
    return labels


def _told_apart(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path by as many of its last parts as tell it from the others."""
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        short = {path: "/".join(path.parts[-count:]) for path in paths}
        if len(set(short.values())) == len(short):
            return short
    return {path: str(path) for path in paths}


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
