"""Which of the compared settings for throughput is used: only a certain gain replaces a simpler setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitdeploy.evidence import Bench, Interval, Run, StreamSetting, TriedSetting, TunedScenario
from vitdeploy.evidence.streams import Kept
from vitdeploy.frozen import replace
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.pipeline.fastest import certain_speedup, format_times, is_sound

UNTUNED: Kept = "untuned"
HINT: Kept = "hint"
TUNED: Kept = "tuned"


def judge(
    bench: Bench, settings: Mapping[Kept, StreamSetting], images: Sequence[int], tried: Sequence[TriedSetting]
) -> TunedScenario:
    """Choose among the settings that were timed in turns.

    The hint replaces the untuned setting if it is certainly faster, and the tuned one what is then kept, likewise. A
    setting whose own timing is doubtful replaces nothing; if the whole comparison is doubtful, none does.

    Args:
        bench: the comparison; a sample is one query.
        settings: the untuned one first, in the order of the runs.
        images: of each query.
        tried: the grid, for the record.
    """
    names = list(settings)
    counts = dict(zip(names, images, strict=True))
    runs = {
        name: _describe_run(run, name, settings[name], counts[name])
        for name, run in zip(names, bench.runs, strict=True)
    }

    def compare(name: Kept, over: Kept) -> Interval:
        return _images_ratio(runs[over], runs[name], counts[over], counts[name])

    sound = {name for index, name in enumerate(names) if is_sound(bench, index)}
    winner = UNTUNED
    for name in names[1:]:
        if name in sound and certain_speedup(compare(name, winner)) > 1:
            winner = name
    bases = [base for base in (UNTUNED, HINT) if base != winner and sound.issuperset({base, winner})]
    over = {base: compare(winner, base) for base in bases}
    shown = (
        replace(run, speedup=compare(name, UNTUNED) if name != UNTUNED and name in sound else None)
        for name, run in runs.items()
    )
    return TunedScenario(
        kept=winner, setting=settings[winner], over_untuned=over.get(UNTUNED), over_hint=over.get(HINT),
        why=_explain(bench, winner, settings, over), valid=bench.valid, doubts=bench.doubts,
        runs=tuple(shown), settings=settings, tried=tuple(tried), seconds=bench.seconds,
    )  # fmt: skip


def _describe_run(run: Run, name: str, setting: StreamSetting, images: int) -> Run:
    mean_ms = float(np.mean([sample for block in run.blocks for sample in block]))
    return replace(run, name=name, batch=setting.batch, throughput_ips=round(images * 1e3 / mean_ms, 3))


def _images_ratio(reference: Run, other: Run, reference_images: int, other_images: int) -> Interval:
    """Return how many times as many images a second `other` answers. Queries may differ by some images."""
    queries = speedup_interval(reference.blocks, other.blocks, other.rounds)
    factor = other_images / reference_images
    low, high = queries.ci95
    return Interval(ratio=queries.ratio * factor, ci95=(low * factor, high * factor))


def _explain(bench: Bench, winner: Kept, settings: Mapping[Kept, StreamSetting], over: Mapping[Kept, Interval]) -> str:
    if winner == UNTUNED and not bench.valid:
        return "the untuned setting is kept, because the comparison is in doubt: --seconds measures longer"
    if winner == UNTUNED:
        return f"the untuned setting is kept ({settings[winner]}): nothing else is certainly faster"
    gains = [f"{format_times(over[UNTUNED])} as many images a second as untuned"]
    if HINT in over:
        gains.append(f"{format_times(over[HINT])} as many as with the engine's own hint")
    return f"{settings[winner]}: {', '.join(gains)}"
