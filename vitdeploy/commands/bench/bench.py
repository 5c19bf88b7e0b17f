"""`vitdeploy bench`: latency of artifacts against a reference, timed in turns; and the costs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.bench import host_peak
from vitdeploy.commands.bench.costs import add_costs
from vitdeploy.commands.bench.device_time import bench_outside, measure_alone
from vitdeploy.commands.bench.end_to_end import measure_end_to_end, read_encoded
from vitdeploy.commands.bench.opponents import Opponent, Opponents, artifacts_among, refuse_other_models
from vitdeploy.commands.bench.stored_setting import find_setting
from vitdeploy.commands.bench.sustained import measure_sustained
from vitdeploy.errors import ArtifactError, TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Bench, Interval, Pair, Profile, Role, Run, Scenario, StreamSetting
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.measure import latency
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.profiling import profile as make_profile
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import (
    count_threads,
    feed,
    make_shared_images,
    open_session,
    refuse_decoder,
    set_streams,
)
from vitdeploy.runtime.provenance import describe_provenance, list_reference_libraries
from vitdeploy.session import Array, Counters, Feeds, Session
from vitdeploy.verdict import recompute_bench


@dataclass(frozen=True)
class Plan:
    """The settings of a measurement. None and empty take the recipe of the first artifact.

    Attributes:
        seconds: the time to measure, for each batch size.
        threads: the number of threads, for all sides.
        against: the opponents; the first is the reference.
        scenario: the LoadGen scenario.
        batches: batch sizes to measure one after the other.
        streams: inferences at the same time, for targets that have streams.
        profile: measure the time per operator too.
        any_model: time artifacts of different models too.
        end_to_end: also time the first artifact from an encoded image to the answer.
        images: encoded images for that: a file or a folder; None makes one up.
        sustained: the longest time in minutes to run the first artifact until its temperature is steady; None: do not.
    """

    seconds: float | None = None
    threads: int | None = None
    against: tuple[str, ...] = ()
    scenario: Scenario = "single-stream"
    batches: tuple[int, ...] = ()
    streams: int | None = None
    profile: bool = False
    any_model: bool = False
    end_to_end: bool = False
    images: str | None = None
    sustained: float | None = None


def parse_batches(text: str | None) -> tuple[int, ...]:
    """Parse `1,4,8` as batch sizes.

    Raises:
        UsageError: the text is not a list of sizes.
    """
    parts = [] if text is None else text.split(",")
    if any(not part.strip().isdecimal() or int(part) < 1 for part in parts):
        raise UsageError(f"--batch {text!r} is not a list of sizes", fix="Give N or N,N,…, such as 1,4,8.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench(artifacts: Sequence[Artifact], progress: Progress, plan: Plan | None = None) -> Bench:
    """Time artifacts and the reference of the first one in turns, and store the result beside the first.

    Raises:
        UsageError: the artifacts take different inputs, or one does not accept these batches or streams.
        TargetUnavailable: an artifact cannot run here.
    """
    plan = plan or Plan()
    if plan.end_to_end:
        refuse_decoder(artifacts[0], "bench")
    if not plan.any_model:
        refuse_other_models(artifacts)
    encoded = read_encoded(plan.images, artifacts[0].manifest.preprocess) if plan.end_to_end else None
    timed = [set_streams(artifact, plan.streams) for artifact in artifacts]
    first, recipe = timed[0], timed[0].manifest.recipe
    threads, seconds = plan.threads or count_threads(recipe), plan.seconds or recipe.bench.seconds
    setting = None if plan.batches or plan.streams else find_setting(timed, plan.scenario, plan.threads, progress)
    usual = recipe.target.batch.opt if setting is None else setting.batch
    images = [make_shared_images(timed, batch) for batch in plan.batches or (usual,)]
    try:
        counters = _open_once(timed, images[0], threads, progress, profile=plan.profile)
    except TargetUnavailable as error:
        is_alone = len(timed) == 1 and first.manifest.stage == "artifact" and plan.sustained is None
        outside = bench_outside(first, feed(first, images[0]), seconds, error.message, progress) if is_alone else None
        if outside is None:
            raise
        return _store(outside, artifacts[0], None)
    with progress.step("Measure this host's peak"):
        peaks = host_peak.measure_peaks(threads)
    with ExitStack() as stack:
        opponents = Opponents(first, images[0], threads, stack, progress)
        opposing, missing = opponents.open_all(plan.against or (recipe.bench.against,), any_model=plan.any_model)
        contest = _Contest(timed, opposing, threads, seconds, plan.scenario, setting, progress)
        result = _join([contest.time(pixels) for pixels in images])
        others = artifacts_among(opposing)
    with progress.step("Measure this host's peak again"):
        peaks = host_peak.merge_peaks(peaks, host_peak.measure_peaks(threads))
    profiles = _make_profiles(result, timed, counters)
    runs, roofline = add_costs(result.runs, plan.scenario, timed, others, threads, peaks, progress)
    alone = measure_alone(first, partial(open_session, first, threads), feed(first, images[0]), seconds, progress)
    through = None if encoded is None else measure_end_to_end(timed[0], encoded, threads, seconds, progress)
    steady = None
    if plan.sustained is not None:  # last: it heats the machine
        inputs = feed(first, images[0])
        steady = measure_sustained(partial(open_session, first, threads), inputs, plan.sustained, progress)
    result = replace(
        result,
        runs=runs,
        missing=missing,
        end_to_end=through,
        sustained=steady,
        roofline=roofline,
        profiles=profiles,
        scenario=plan.scenario,
        setting=setting,
        device=alone.device,
        power=alone.power,
    )
    for name, reason in missing.items():
        progress.warn(f"no speed-up over {name}, which is not available here: {reason}")
    _store_beside_others(result, artifacts[1:], threads, progress)
    return _store(result, artifacts[0], threads)


def _store_beside_others(bench: Bench, others: Sequence[Artifact], threads: int, progress: Progress) -> None:
    """Store the bench beside the other artifacts too, each with its own run first."""
    for artifact in others:
        order = sorted(bench.runs, key=lambda run: run.role == "artifact" and run.manifest != artifact.digest)
        runs = tuple(run for batch in dict.fromkeys(r.batch for r in bench.runs) for run in order if run.batch == batch)
        names = {run.name for run in runs if run.manifest == artifact.digest}
        own = replace(
            bench, runs=runs, device=(), power=None, roofline=None, end_to_end=None, sustained=None,
            manifest=artifact.digest,
            profiles=tuple(profile for profile in bench.profiles if profile.name in names),
        )  # fmt: skip
        try:
            _store(recompute_bench(own), artifact, threads)
        except ArtifactError as error:
            progress.warn(f"not stored beside {artifact.path}: {error.message}")


def _store(bench: Bench, artifact: Artifact, threads: int | None) -> Bench:
    own = bench.own  # its engine may use fewer threads than it was given
    libraries = list_reference_libraries(bench.reference.name) if bench.reference is not None else ()
    provenance = describe_provenance(artifact.manifest, threads if own is None else own.threads, "torch", *libraries)
    return artifact.write_evidence(replace(bench, machine=provenance.machine, provenance=provenance))


def _open_once(
    artifacts: Sequence[Artifact], pixels: Array, threads: int, progress: Progress, *, profile: bool
) -> list[Counters | None]:
    """Open every artifact once, so that errors come before the long measurement; profile it if requested."""
    results: list[Counters | None] = []
    for artifact in artifacts:
        with open_session(artifact, threads, progress) as session:
            counters = None
            if profile:
                with progress.step(f"Profile {session.name}"):
                    counters = _read_counters(session, feed(artifact, pixels), progress)
        results.append(counters)
    return results


def _read_counters(session: Session, images: Feeds, progress: Progress) -> Counters | None:
    """Run a session with its engine's counters. Without counters there is a warning, and no profile."""
    try:
        counters = session.profile(images)
    except VitdeployError as error:
        progress.warn(f"{session.name} has no profile: {error.message}")
        return None
    if counters is None:
        progress.warn(f"{session.name} has no profile: its engine has no counters")
    return counters


def _make_profiles(
    result: Bench, timed: Sequence[Artifact], counters: Sequence[Counters | None]
) -> tuple[Profile, ...]:
    """Return the profiles of the artifacts, with the names of their runs at the first batch size."""
    runs = [run for run in result.runs if run.role == "artifact"][: len(timed)]
    return tuple(
        make_profile(run.name, counted, structures.load(artifact.file(SITES)))
        for run, artifact, counted in zip(runs, timed, counters, strict=True)
        if counted is not None
    )


@dataclass(frozen=True)
class _Contest:
    """Opponents that stay open, and artifacts that are opened again in every round.

    Attributes:
        timed: the artifacts that the bench is about.
        opposing: the open opponents by name; the first is the reference.
        threads: the number of threads, for all sides.
        seconds: the time to measure, for each batch size.
        scenario: the LoadGen scenario.
        setting: streams to open the artifacts with; None: their own.
        progress: gets the steps and warnings.
    """

    timed: Sequence[Artifact]
    opposing: Mapping[str, Opponent]
    threads: int
    seconds: float
    scenario: Scenario
    setting: StreamSetting | None
    progress: Progress

    def time(self, pixels: Array) -> Bench:
        """Time one batch size."""
        batch = len(pixels)
        queries = runs_in_query(self.scenario, batch)
        openers: list[latency.Opener] = [
            partial(Query, opponent.session, queries, closes=False) for opponent in self.opposing.values()
        ]
        openers += [partial(self._open_query, artifact, queries) for artifact in self.timed]
        inputs: list[Feeds] = [opponent.feed(pixels, self.timed[0]) for opponent in self.opposing.values()]
        inputs += [feed(artifact, pixels) for artifact in self.timed]
        result = latency.measure_reopened(
            openers, inputs, batch=batch * queries, seconds=self.seconds, progress=self.progress
        )
        runs = self._identify(result.runs, batch)
        (state,) = result.conditions.values()
        return replace(result, runs=runs, pairs=self._make_pairs(runs, batch), conditions={batch: state})

    def _open_query(self, artifact: Artifact, queries: int) -> Session:
        return Query(open_session(artifact, self.threads, setting=self.setting), queries)

    def _identify(self, runs: Sequence[Run], batch: int) -> tuple[Run, ...]:
        """Give each run its role, a unique name, and its batch.

        Without an opponent the first run is an artifact, and so there is no reference and no speed-up.
        """
        sides = [*(opponent.artifact for opponent in self.opposing.values()), *self.timed]
        names = _make_unique([run.name for run in runs], sides, len(self.opposing))
        roles: list[Role] = ["reference" if place == 0 else "opponent" for place in range(len(self.opposing))]
        roles += ["artifact" for _ in self.timed]
        return tuple(
            replace(
                run,
                name=name,
                batch=batch,
                manifest=side.digest if side else "",
                role=role,
                speedup=run.speedup if self.opposing else None,
            )
            for run, name, side, role in zip(runs, names, sides, roles, strict=True)
        )

    def _make_pairs(self, runs: Sequence[Run], batch: int) -> tuple[Pair, ...]:
        """Compare the other artifacts with the first."""
        first, *others = [run for run in runs if run.role == "artifact"]

        def over_first(run: Run) -> Interval:
            return speedup_interval(first.blocks, run.blocks, run.rounds)

        return tuple(Pair(name=run.name, over=first.name, batch=batch, speedup=over_first(run)) for run in others)


def _make_unique(names: Sequence[str], sides: Sequence[Artifact | None], opponents: int) -> list[str]:
    """Add the folder to the names of opponents that are artifacts, and to equal names of artifacts."""
    folders = _shorten_paths([side.path.absolute() for side in sides if side is not None])
    unique = []
    for number, (name, side) in enumerate(zip(names, sides, strict=True)):
        needs_folder = side is not None and (number < opponents or names.count(name) > 1)
        unique.append(f"{name} ({folders[side.path.absolute()]})" if side is not None and needs_folder else name)
    return unique


def _shorten_paths(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest endings of paths that are all different."""
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        short = {path: "/".join(path.parts[-count:]) for path in paths}
        if len(set(short.values())) == len(short):
            return short
    return {path: str(path) for path in paths}


def _join(benches: Sequence[Bench]) -> Bench:
    """Join the results of several batch sizes into one. Doubts name their batch size."""
    if len(benches) == 1:
        return benches[0]
    doubts = tuple(f"batch {bench.runs[0].batch}: {doubt}" for bench in benches for doubt in bench.doubts)
    return replace(
        benches[0],
        valid=not doubts,
        doubts=doubts,
        runs=tuple(run for bench in benches for run in bench.runs),
        pairs=tuple(pair for bench in benches for pair in bench.pairs),
        seconds=sum(bench.seconds for bench in benches),
        conditions={batch: state for bench in benches for batch, state in bench.conditions.items()},
    )
