"""Choose by measurement which tokens are merged: the fastest schedule within the accuracy budget."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import frozen
from vitdeploy.artifact import Trial
from vitdeploy.errors import PassError, VitdeployError
from vitdeploy.evidence import Bench, Interval
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget, make_trial
from vitdeploy.pipeline.attempts import Chosen, Request, make_failed_trial, make_reference, open_budget
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.fastest import (
    certain_speedup,
    describe_doubts,
    format_times,
    glance,
    is_sound,
    is_undecided,
    time_until_valid,
)
from vitdeploy.pipeline.merged_candidates import list_possible, merge_prepared
from vitdeploy.pipeline.merging_notes import describe_doubt, explain_loser, explain_nothing
from vitdeploy.pipeline.token_schedules import (
    Schedule,
    describe_schedule,
    drop_slower,
    makes_needless,
    removes_more,
)
from vitdeploy.precision import Precision
from vitdeploy.progress import Progress
from vitdeploy.recipe import AUTO

_MOST_QUANTIZED = 3
"""Schedules that are tried in the chosen precision: each is calibrated anew, which takes as long as the precision."""

_CLEAR_PP = 1.0
"""A loss that is this many points over the budget is no accident of a few images."""


@dataclass(frozen=True)
class Merging:
    """The choice, and the builder of its candidate, whose prepared model is the one with merged tokens if there are."""

    chosen: Chosen
    builder: CandidateBuilder


@dataclass(frozen=True)
class _Merged:
    """A candidate with merged tokens, and the builder that made it."""

    builder: CandidateBuilder
    candidate: Candidate
    trial: Trial

    @property
    def schedule(self) -> Schedule:
        return self.trial.merged

    def discard(self) -> None:
        """Remove its folder from the disk, and what its builder holds in memory."""
        self.candidate.discard()
        self.builder.forget_images()


def choose_merging(
    builder: CandidateBuilder, request: Request, chosen: Chosen, work: Path, progress: Progress
) -> Merging:
    """Search for the schedule that makes the chosen candidate faster within the budget, or keep it as it is.

    Schedules are judged in the target's default precision first, from the most tokens left to the fewest. One that
    removes more than another that lost far too much is not tried. Those that hold are timed, and the fastest are made
    in the chosen precision until one holds. All that is left is timed in turns, and only a certain gain over the
    candidate without merging counts. The budget is that of the precision: for all that is lost.

    Args:
        builder: of the model without merging.
        request: the recipe's precision, and images to judge on.
        chosen: the candidate in its precision, without merging.
        work: a folder to work in.
        progress: gets the steps.

    Raises:
        PassError: a pass failed, which is a bug of this program.
    """
    possible = list_possible(builder.prepared)
    if not possible.schedules:
        return _keep(builder, chosen, [], f"auto merged no tokens: {possible.reason}")
    if request.judging is None and builder.prepared.facts.model.weights != "random":
        why = "there are no images to judge it on (--calibration)"
        return _keep(builder, chosen, [], f"auto merged no tokens: {why}")
    search = _open_search(builder, request, chosen, work, progress)
    builder.forget_images()  # each schedule is calibrated anew, which would take the memory twice
    gc.collect()
    # Without a budget all of them hold, so what needs no timing need not be made.
    schedules = possible.schedules if search.budget is not None else drop_slower(possible.schedules)
    default = search.judge(schedules, search.reference.precision)
    if not default.within:
        return _keep(builder, chosen, default.trials, explain_nothing(default.trials, search.budget))
    contenders, trials = _drop_slower(default)
    if search.reference is not chosen.candidate:
        ranked = search.rank(contenders)
        quantized = search.judge_until_one_holds([one.schedule for one in ranked], chosen.candidate.precision)
        trials += quantized.trials
        in_float = ranked[:1] if request.spec.kind == AUTO else []  # a named precision is not left
        left = ranked[len(in_float) :]
        trials = _explain_unfinished(trials, left, chosen.candidate.label)
        _discard(left)
        contenders = [*quantized.within, *in_float]
        if not contenders:
            return _keep(builder, chosen, trials, explain_nothing(quantized.trials, search.budget))
    return search.take_fastest(contenders, trials)


@dataclass(frozen=True)
class _Judged:
    """Schedules that were tried in one precision: all trials, and the candidates of those within the budget."""

    trials: list[Trial]
    within: list[_Merged]


@dataclass
class _Search:
    """The search over schedules.

    Attributes:
        builder: of the model without merging.
        chosen: the candidate without merging, and its trials.
        reference: the candidate in float without merging, with which all are compared.
        budget: None judges nothing, which works only with random weights.
        notes: for the user.
        seconds: of the recipe, for each comparison of speed.
    """

    builder: CandidateBuilder
    chosen: Chosen
    reference: Candidate
    budget: AccuracyBudget | None
    notes: list[str]
    seconds: float | None
    work: Path
    progress: Progress

    def judge(self, schedules: Sequence[Schedule], precision: Precision) -> _Judged:
        """Make each schedule in a precision, and judge it unless a milder one lost far too much."""
        judged = _Judged([], [])
        for schedule in schedules:
            bad = [trial for trial in judged.trials if self._loses_far_too_much(trial)]
            milder = next((trial for trial in bad if removes_more(schedule, trial.merged)), None)
            if milder is None:
                self._try(schedule, precision, judged)
            else:
                why = f"not tried: {describe_schedule(milder.merged)} leaves more tokens and loses far too much"
                failed = make_failed_trial(self.builder, precision)
                judged.trials.append(frozen.replace(failed, merged=schedule, why=why))
        return judged

    def _loses_far_too_much(self, trial: Trial) -> bool:
        return self.budget is not None and trial.lost is not None and trial.lost > self.budget.limit + _CLEAR_PP

    def judge_until_one_holds(self, schedules: Sequence[Schedule], precision: Precision) -> _Judged:
        """Make the first schedules in a precision, until one of them is within the budget."""
        judged = _Judged([], [])
        for schedule in schedules[:_MOST_QUANTIZED]:
            self._try(schedule, precision, judged)
            if judged.within:
                break
        return judged

    def _try(self, schedule: Schedule, precision: Precision, judged: _Judged) -> None:
        """Make one candidate and judge it. A precision or an engine may refuse it, which is a trial too."""
        folder = self.work / f"merged-{len(list(self.work.glob('merged-*')))}"
        folder.mkdir()
        candidate: Candidate | None = None
        try:
            with self.progress.step(f"Merge tokens {describe_schedule(schedule)} in {precision.name}"):
                prepared = merge_prepared(self.builder.prepared, schedule, self.builder, folder)
            builder = self.builder.derive(prepared, folder)
            candidate = builder.make(precision)
            builder.compile(candidate)
            trial = make_trial(candidate) if self.budget is None else self.budget.judge(candidate)
        except PassError:
            raise
        except VitdeployError as error:
            failed = make_failed_trial(self.builder, precision)
            judged.trials.append(frozen.replace(failed, merged=schedule, why=error.message))
            return
        trial = frozen.replace(trial, merged=schedule)
        judged.trials.append(trial)
        if self.budget is None or self.budget.holds(trial):
            judged.within.append(_Merged(builder, candidate, trial))
        else:
            candidate.discard()

    def rank(self, merged: list[_Merged]) -> list[_Merged]:
        """Return candidates from the fastest to the slowest, in a short measurement. It proves nothing."""
        if len(merged) == 1:
            return merged
        with self.progress.step("Compare the speed of the schedules"):
            bench = self.builder.time([self.reference, *(one.candidate for one in merged)], glance(self.seconds))
        order = sorted(range(len(merged)), key=lambda index: bench.runs[1 + index].p50_ms)
        return [merged[index] for index in order]

    def take_fastest(self, contenders: list[_Merged], trials: list[Trial]) -> Merging:
        """Time the contenders and the candidate without merging in turns, and choose."""
        unmerged = self.chosen.candidate
        sides = [self.reference, *([] if unmerged is self.reference else [unmerged])]
        first = len(sides)
        candidates = [*sides, *(one.candidate for one in contenders)]
        with self.progress.step("Compare the speed with and without merging"):
            bench = time_until_valid(lambda duration: self.builder.time(candidates, duration), self.seconds)
        gains = [_compare(bench, first - 1, first + number) for number in range(len(contenders))]
        best = max(range(len(contenders)), key=lambda number: certain_speedup(gains[number]))
        wins = certain_speedup(gains[best]) > 1
        for number, one in enumerate(contenders):
            place = next(i for i, trial in enumerate(trials) if trial is one.trial)
            is_winner = wins and number == best
            why = "" if is_winner else explain_loser(gains[number], wins=wins)
            speedup = bench.runs[first + number].speedup if is_sound(bench, first + number) else None
            trials[place] = frozen.replace(one.trial, speedup=speedup, kept=is_winner, why=why)
        doubts = describe_doubts(bench, self.seconds)
        if not wins:
            is_open = any(gain is None or is_undecided(gain) for gain in gains)
            doubt = describe_doubt([one.schedule for one in contenders], self.seconds)
            note = f"auto merged no tokens: {doubt if is_open else 'nothing is faster within the budget'}"
            return _keep(self.builder, self.chosen, trials, note, self.notes, doubts)
        _discard(one for number, one in enumerate(contenders) if number != best)
        winner, gain = contenders[best], gains[best]
        assert gain is not None
        before = [
            frozen.replace(trial, kept=False, why="merging is faster") if trial.kept else trial
            for trial in _own_trials(self.chosen)
        ]
        note = (
            f"auto merged tokens, {describe_schedule(winner.schedule)}: {format_times(gain)} as fast as "
            f"{unmerged.label} without merging, on this machine"
        )
        notes = tuple(dict.fromkeys((*self.chosen.notes, *self.notes, note, *doubts)))
        return Merging(Chosen(winner.candidate, (*before, *trials), notes), winner.builder)


def _open_search(
    builder: CandidateBuilder, request: Request, chosen: Chosen, work: Path, progress: Progress
) -> _Search:
    """Make the reference, and open the budget."""
    precision = chosen.candidate.precision
    is_base = precision.is_float32 or precision.name == builder.target.default_precision or not chosen.trials
    reference = chosen.candidate if is_base else make_reference(builder, request)[0]  # trials say why it is float32
    budget, notes = open_budget(builder, reference, request, progress)
    return _Search(builder, chosen, reference, budget, notes, request.spec.seconds, work, progress)


def _drop_slower(judged: _Judged) -> tuple[list[_Merged], list[Trial]]:
    """Leave out candidates that need no timing. Return the others, and all trials with the reason."""
    front = drop_slower([one.schedule for one in judged.within])
    trials = list(judged.trials)
    for one in judged.within:
        if one.schedule not in front:
            faster = next(other for other in front if makes_needless(other, one.schedule))
            place = next(i for i, trial in enumerate(trials) if trial is one.trial)
            why = f"not timed: {describe_schedule(faster)} leaves fewer tokens"
            trials[place] = frozen.replace(one.trial, why=why)
            one.discard()
    return [one for one in judged.within if one.schedule in front], trials


def _explain_unfinished(trials: list[Trial], left: Sequence[_Merged], label: str) -> list[Trial]:
    """Return all trials, with the reason at those of candidates that only chose the schedules to try further."""
    why = f"it only chose the schedules to try in {label}"
    return [
        frozen.replace(trial, why=why) if any(trial is one.trial for one in left) else trial for trial in trials
    ]  # fmt: skip


def _keep(builder: CandidateBuilder, chosen: Chosen, trials: list[Trial], note: str, *notes: list[str]) -> Merging:
    """Return the candidate without merging, with the trials and the reason."""
    further = [note for group in notes for note in group]
    own = _own_trials(chosen) if trials else chosen.trials
    all_notes = tuple(dict.fromkeys((*chosen.notes, note, *further)))
    return Merging(Chosen(chosen.candidate, (*own, *trials), all_notes, chosen.variants), builder)


def _own_trials(chosen: Chosen) -> tuple[Trial, ...]:
    """Return the trials of the precision. A precision without any was not compared, and is kept."""
    return chosen.trials or (frozen.replace(make_trial(chosen.candidate), kept=True),)


def _discard(merged: Iterable[_Merged]) -> None:
    for one in merged:
        one.discard()


def _compare(bench: Bench, unmerged: int, merged: int) -> Interval | None:
    """Return how many times as fast one run is as another one; None if one of them is doubtful."""
    if not (is_sound(bench, unmerged) and is_sound(bench, merged)):
        return None
    first, second = bench.runs[unmerged], bench.runs[merged]
    return speedup_interval(first.blocks, second.blocks, second.rounds)
