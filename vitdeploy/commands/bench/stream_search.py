"""The search for the setting of one scenario: a grid, then a comparison of its best point that decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vitdeploy import precision, targets
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.stream_verdict import HINT, TUNED, UNTUNED, judge
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Scenario, StreamSetting, TriedSetting, TunedScenario
from vitdeploy.evidence.streams import Kept
from vitdeploy.frozen import replace
from vitdeploy.measure import latency
from vitdeploy.measure.scenarios import Query, runs_in_query
from vitdeploy.measure.statistics import block_log_ratios
from vitdeploy.measure.stopwatch import Samples, interleave, warm_up
from vitdeploy.measure.stream_grid import StreamPoint, list_batches, list_stream_counts, make_grid
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import feed, make_shared_images, open_session
from vitdeploy.session import Feeds, Session

_GRID_SHARE = 1 / 3  # of the time; the rest is for the comparison that decides
_MIN_BLOCKS = 3  # fewer have no useful median
_MUCH_SLOWER = 1.5  # after two queries; on cores that are not contended queries differ by less from run to run


@dataclass
class _Side:
    """A session that answers whole queries, its inputs for one batch, and the images of a query."""

    session: Query
    feeds: Feeds
    images: int


class StreamSearch:
    """The search for the setting of one scenario."""

    def __init__(
        self, artifact: Artifact, scenario: Scenario, untuned: Session, threads: int, seconds: float, progress: Progress
    ) -> None:
        """Lay out the grid.

        Args:
            artifact: the artifact.
            scenario: multi-stream or offline.
            untuned: the artifact as it is opened without a setting; it tells how many threads and streams it has.
            threads: of all streams together.
            seconds: the time to measure. Slow models take longer, for the fewest blocks that have an interval.
            progress: gets the steps.
        """
        recipe = artifact.manifest.recipe
        self.scenario = scenario
        self._artifact, self._threads, self._seconds, self._progress = artifact, threads, seconds, progress
        self._target = targets.find(recipe.target)
        self._usable = min(threads, untuned.threads or threads)
        self._own = StreamPoint(int(untuned.effective.get("streams") or 1), recipe.target.batch.opt)
        streams = list_stream_counts(self._usable) if self._target.runs_streams else [1]
        allowed = recipe.target.batch
        batches = list_batches(scenario, allowed.min, allowed.opt, allowed.max)
        if precision.kind_of(artifact.manifest.target.precision).numbers.dynamic:
            batches = [allowed.min]  # images of one batch would change each other's answers
        self._grid = make_grid(scenario, streams, batches)

    def require_choice(self) -> None:
        """Check that there is more than one setting.

        Raises:
            UsageError: there is not.
        """
        if len({*self._grid, self._own}) > 1:
            return
        runs = f"{self._target.name} runs one inference at a time"
        if self._target.runs_streams:
            runs = f"there is {self._usable} thread" if self._usable == 1 else f"there are {self._usable} threads"
        batch = self._artifact.manifest.recipe.target.batch
        raise UsageError(
            f"{self._artifact.path} has one setting only for {self.scenario}: {runs}, and it takes batches of {batch}",
            fix="Give more --threads, or export it with a range such as --batch 1:1:32.",
        )

    def run(self) -> TunedScenario:
        """Search the grid, compare its best point with the untuned setting and the hint, and judge."""
        tried = [*self._try_grid()]
        settings: dict[Kept, StreamSetting] = {UNTUNED: self._setting(self._own)}
        if self._target.hints_throughput:
            settings[HINT] = self._describe_hint()
        compared = [(setting.streams, setting.batch) for setting in settings.values()]
        others = [one for one in tried if one.ratio is not None and (one.streams, one.batch) not in compared]
        if others:
            best = max(others, key=lambda one: one.ratio or 0.0)
            settings[TUNED] = self._setting(StreamPoint(best.streams, best.batch))
        return self._compare(settings, tried)

    def _try_grid(self) -> Iterator[TriedSetting]:
        """Time every point beside the untuned setting. Only one number of streams is open at a time."""
        counts = sorted({point.streams for point in self._grid})
        share_s = _GRID_SHARE * self._seconds / len(counts)
        with open_session(self._artifact, self._threads) as untuned:
            for count in counts:
                points = [point for point in self._grid if point.streams == count]
                title = f"Time {count} {'stream' if count == 1 else 'streams'} for {self.scenario}"
                with self._progress.step(title), self._open(self._setting(points[0])) as session:
                    own = self._side(untuned, self._own.batch)
                    sides = [self._side(session, point.batch) for point in points]
                    for point, ratio in zip(points, _race(own, sides, share_s), strict=True):
                        yield TriedSetting(streams=count, batch=point.batch, ratio=ratio)

    def _compare(self, settings: Mapping[Kept, StreamSetting], tried: Sequence[TriedSetting]) -> TunedScenario:
        """Time settings in turns, each opened anew in every round, and judge."""
        queries = {name: runs_in_query(self.scenario, setting.batch) for name, setting in settings.items()}
        openers = [
            partial(self._open_query, name, None if name == UNTUNED else setting, queries[name])
            for name, setting in settings.items()
        ]
        bench = latency.measure_reopened(
            openers, [self._feeds(setting.batch) for setting in settings.values()],
            batch=1, seconds=(1 - _GRID_SHARE) * self._seconds, progress=self._progress,
        )  # fmt: skip
        images = [queries[name] * setting.batch for name, setting in settings.items()]
        return judge(bench, settings, images, tried)

    def _open(self, setting: StreamSetting | None) -> Session:
        return open_session(self._artifact, self._threads, setting=setting)

    def _open_query(self, name: Kept, setting: StreamSetting | None, runs: int) -> Session:
        query = Query(self._open(setting), runs)
        query.name = name  # doubts name the setting
        return query

    def _side(self, session: Session, batch: int) -> _Side:
        runs = runs_in_query(self.scenario, batch)
        return _Side(Query(session, runs, closes=False), self._feeds(batch), runs * batch)

    def _feeds(self, batch: int) -> Feeds:
        return feed(self._artifact, make_shared_images([self._artifact], batch))

    def _setting(self, point: StreamPoint) -> StreamSetting:
        share = max(1, self._usable // point.streams)
        return StreamSetting(streams=point.streams, batch=point.batch, threads=share)

    def _describe_hint(self) -> StreamSetting:
        """Return the hint's setting, with the number of streams that the engine chooses here."""
        hint = replace(self._setting(StreamPoint(1, self._own.batch)), hint=True)
        with self._open(hint) as session:
            streams = int(session.effective.get("streams") or 1)
        return replace(hint, streams=streams, threads=max(1, self._usable // streams))


def _race(own: _Side, sides: Sequence[_Side], share_s: float) -> list[float | None]:
    """Time sides in turns with the untuned setting; return how many times as many images a second each answers.

    A side that is much slower than the best after a first look is not timed further, and has None.

    Args:
        own: the untuned setting.
        sides: the points.
        share_s: the time to spend; at least `_MIN_BLOCKS` turns of each.
    """
    first_s = [warm_up(side.session, side.feeds, 0.0).run_s / side.images for side in (own, *sides)][1:]
    running = [side for side, image_s in zip(sides, first_s, strict=True) if image_s <= _MUCH_SLOWER * min(first_s)]
    timed = [own, *running]
    samples = Samples([[] for _ in timed])
    interleave(
        [side.session for side in timed], [side.feeds for side in timed], [1] * len(timed), samples,
        np.random.default_rng(0), lambda blocks, passed_s: blocks >= _MIN_BLOCKS and passed_s >= share_s,
    )  # fmt: skip
    of_own, *of_others = samples.blocks
    ratios = {
        id(side): math.exp(float(np.median(block_log_ratios(of_own, blocks)))) * side.images / own.images
        for side, blocks in zip(running, of_others, strict=True)
    }
    return [round(ratios[id(side)], 4) if id(side) in ratios else None for side in sides]
