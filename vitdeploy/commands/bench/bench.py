"""`vitdeploy bench`: latency of artifacts against a reference, in turns, reopened; and what a run costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.commands.bench import host_peak
from vitdeploy.commands.bench.costs import add_costs
from vitdeploy.commands.bench.device_time import bench_outside, measure_alone
from vitdeploy.commands.bench.opponents import Opponent, Opponents, loaded_artifacts
from vitdeploy.errors import TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Bench, Interval, Pair, Profile, Role, Run, Scenario
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.measure import latency
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.profiling import profile as make_profile
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import count_threads, feed, make_shared_images, open_session, set_streams
from vitdeploy.session import Array, Counters, Feeds, Session


@dataclass(frozen=True)
class Plan:
    """How to measure; None is what the first artifact's recipe says.

    Attributes:
        seconds: to measure.
        threads: of all sides.
        against: opponents, the first of which is the reference.
        scenario: of LoadGen.
        batches: sizes to try one after the other.
        streams: inferences at a time, where the target lets one choose.
        profile: whether to show where the time goes.
    """

    seconds: float | None = None
    threads: int | None = None
    against: tuple[str, ...] = ()
    scenario: Scenario = "single-stream"
    batches: tuple[int, ...] = ()
    streams: int | None = None
    profile: bool = False


def parse_batches(text: str | None) -> tuple[int, ...]:
    """Read `1,4,8` as sizes.

    Raises:
        UsageError: that is no list of sizes.
    """
    parts = [] if text is None else text.split(",")
    if any(not part.strip().isdecimal() or int(part) < 1 for part in parts):
        raise UsageError(f"--batch {text!r} is not a list of sizes", fix="Give N or N,N,…, such as 1,4,8.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench(artifacts: Sequence[Artifact], progress: Progress, plan: Plan | None = None) -> Bench:
    """Time artifacts against the reference of the first one, interleaved; stored beside the first.

    Raises:
        UsageError: the artifacts do not take the same input, or not these batches or streams.
        TargetUnavailable: an artifact cannot run here.
    """
    plan = plan or Plan()
    timed = [set_streams(artifact, plan.streams) for artifact in artifacts]
    first, recipe = timed[0], timed[0].manifest.recipe
    threads, seconds = plan.threads or count_threads(recipe), plan.seconds or recipe.bench.seconds
    images = [make_shared_images(timed, batch) for batch in plan.batches or (recipe.target.batch.opt,)]
    try:
        counters = _open_once(timed, images[0], threads, progress, profile=plan.profile)  # quick, and may refuse
    except TargetUnavailable as error:
        alone = len(timed) == 1 and first.manifest.stage == "artifact"
        outside = bench_outside(first, feed(first, images[0]), seconds, error.message, progress) if alone else None
        if outside is None:
            raise
        return first.write_evidence(replace(outside, machine=environment.host().machine))
    with progress.step("Measure this host's peak"):
        peaks = host_peak.peaks(threads)
    with ExitStack() as stack:
        opponents = Opponents(first, images[0], threads, stack, progress)
        opposing, missing = opponents.open_all(plan.against or (recipe.bench.against,))
        contest = _Contest(timed, opposing, missing, threads, seconds, plan.scenario, progress)
        result = _join([contest.time(pixels) for pixels in images])
        others = loaded_artifacts(opposing)
    with progress.step("Measure this host's peak again"):
        peaks = host_peak.better(peaks, host_peak.peaks(threads))
    profiles = _profiles(result, timed, counters)
    runs, roofline = add_costs(result.runs, plan.scenario, timed, others, threads, peaks, progress)
    alone_ = measure_alone(first, partial(open_session, first, threads), feed(first, images[0]), seconds, progress)
    return first.write_evidence(
        replace(
            result,
            runs=runs,
            roofline=roofline,
            profiles=profiles,
            scenario=plan.scenario,
            device=alone_.device,
            power=alone_.power,
            machine=environment.host().machine,
        )
    )


def _open_once(
    artifacts: Sequence[Artifact], pixels: Array, threads: int, progress: Progress, *, profile: bool
) -> list[Counters | None]:
    """Open every artifact, so that a refusal comes before the minutes; count its operators if a profile is wanted."""
    every: list[Counters | None] = []
    for artifact in artifacts:
        with open_session(artifact, threads, progress) as session:
            counters = None
            if profile:
                with progress.step(f"Profile {session.name}"):
                    counters = _count(session, feed(artifact, pixels), progress)
        every.append(counters)
    return every


def _count(session: Session, images: Feeds, progress: Progress) -> Counters | None:
    """Run with counters; that there are none is a warning, and costs nothing but the profile."""
    try:
        counters = session.profile(images)
    except VitdeployError as error:
        progress.warn(f"{session.name} has no profile: {error.message}")
        return None
    if counters is None:
        progress.warn(f"{session.name} has no profile: its engine has no counters")
    return counters


def _profiles(result: Bench, timed: Sequence[Artifact], counters: Sequence[Counters | None]) -> tuple[Profile, ...]:
    """Return profiles by the names of the artifacts' runs at the first batch size."""
    own = [run for run in result.runs if run.role == "artifact"][: len(timed)]
    return tuple(
        make_profile(run.name, counted, structures.load(artifact.file(SITES)))
        for run, artifact, counted in zip(own, timed, counters, strict=True)
        if counted is not None
    )


@dataclass(frozen=True)
class _Contest:
    """Opponents that stay open, and artifacts that are opened anew in every round.

    Attributes:
        timed: the artifacts that the bench is about.
        opposing: the opened opponents by name; the first is the reference.
        missing: opponents that cannot be had here, and why.
        threads: of all sides.
        seconds: for each batch size.
        scenario: of LoadGen.
        progress: told about the steps.
    """

    timed: Sequence[Artifact]
    opposing: Mapping[str, Opponent]
    missing: Mapping[str, str]
    threads: int
    seconds: float
    scenario: Scenario
    progress: Progress

    def time(self, pixels: Array) -> Bench:
        """Time one batch size."""
        batch = len(pixels)
        queries = runs_in_query(self.scenario, batch)
        openers: list[latency.Opener] = [
            partial(Query, opponent.session, queries, closes=False) for opponent in self.opposing.values()
        ]
        openers += [partial(self._query, artifact, queries) for artifact in self.timed]
        inputs: list[Feeds] = [opponent.feed(pixels, self.timed[0]) for opponent in self.opposing.values()]
        inputs += [feed(artifact, pixels) for artifact in self.timed]
        measured = latency.measure_reopened(
            openers, inputs, batch=batch * queries, seconds=self.seconds, progress=self.progress
        )
        runs = self._identify(measured.runs, batch)
        missing = [f"no {name} here, so no speed-up over it: {why}" for name, why in self.missing.items()]
        doubts = (*missing, *measured.doubts)
        return replace(measured, runs=runs, pairs=self._pairs(runs, batch), doubts=doubts, valid=not doubts)

    def _query(self, artifact: Artifact, queries: int) -> Session:
        return Query(open_session(artifact, self.threads), queries)

    def _identify(self, runs: Sequence[Run], batch: int) -> tuple[Run, ...]:
        """Give each run its role, a name that tells it from the others, and its batch.

        Without an opponent the first artifact took the place of the reference, which it is not.
        """
        sides = [*(opponent.artifact for opponent in self.opposing.values()), *self.timed]
        names = _labels([run.name for run in runs], sides, len(self.opposing))
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

    def _pairs(self, runs: Sequence[Run], batch: int) -> tuple[Pair, ...]:
        """Compare the other artifacts with the first."""
        first, *others = [run for run in runs if run.role == "artifact"]

        def over_first(run: Run) -> Interval:
            return speedup_interval(first.blocks, run.blocks, run.rounds)

        return tuple(Pair(name=run.name, over=first.name, batch=batch, speedup=over_first(run)) for run in others)


def _labels(names: Sequence[str], sides: Sequence[Artifact | None], opponents: int) -> list[str]:
    """Add its folder to an opponent's name always, and to an artifact's where its name is not the only one."""
    folders = _shortest([side.path.absolute() for side in sides if side is not None])
    labels = []
    for number, (name, side) in enumerate(zip(names, sides, strict=True)):
        ambiguous = side is not None and (number < opponents or names.count(name) > 1)
        labels.append(f"{name} ({folders[side.path.absolute()]})" if side is not None and ambiguous else name)
    return labels


def _shortest(paths: Sequence[Path]) -> dict[Path, str]:
    """Return each path by as many of its last parts as tell it from the others."""
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        short = {path: "/".join(path.parts[-count:]) for path in paths}
        if len(set(short.values())) == len(short):
            return short
    return {path: str(path) for path in paths}


def _join(benches: Sequence[Bench]) -> Bench:
    """Join several batch sizes into one: runs after one another, doubts with their batch."""
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
    )
