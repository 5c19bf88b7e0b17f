"""`--merge-tokens auto`: what is tried, what is kept, and what is said about the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import listing, run, small_cnn
from tests.evidence import run as timing
from tests.onnx_files import sized_legacy, sized_vit
from tests.toys import vits
from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.commands.export import export
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Bench
from vitdeploy.frozen import replace
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.progress import Silent

Export = Callable[..., Exported]
TOYS = Path(vits.__file__)
ONE_PATCH = """
import timm, torch
def build():
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=10)
"""
FRAGILE = """
import torch
from tests.toys import vits
def build():
    model = vits.deit()
    with torch.no_grad():  # no class is ahead of the others, so that a small change decides
        model.head.bias -= model(4 * torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 2).mean(0)
    return model
"""
TWO_STREAMS = """
import timm, torch
def build():
    torch.manual_seed(0)
    return timm.models.crossvit.CrossVit(
        img_size=32, img_scale=(1.0, 1.0), patch_size=(8, 16), embed_dim=(32, 64), depth=((1, 2, 0), (1, 2, 0)),
        num_heads=(2, 2), mlp_ratio=(2, 2, 1), num_classes=10)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


@pytest.fixture
def exported(out: Path) -> Export:
    def make(model: str = "demo:digits", target: str = "onnxruntime", **flags: object) -> Exported:
        recipe = recipes.compose(model, target=target, merge_tokens="auto", **flags)  # type: ignore[arg-type]
        return export(recipe, out, Silent(), cache=GraphCache()).summary

    return make


def timed(
    monkeypatch: pytest.MonkeyPatch, cost: Callable[[Candidate], float], *, valid: bool = True
) -> list[Sequence[Candidate]]:
    """Let the stopwatch say these milliseconds. Return what it is asked to time, measurement by measurement."""
    measured: list[Sequence[Candidate]] = []

    def time(builder: CandidateBuilder, candidates: Sequence[Candidate], seconds: float) -> Bench:
        assert all(list(candidate.folder.glob("*")) for candidate in candidates)
        measured.append(candidates)
        blocks = [tuple((cost(one) * (1 + 0.001 * (i % 5)),) for i in range(40)) for one in candidates]
        ratios = [None, *(speedup_interval(blocks[0], other) for other in blocks[1:])]
        runs = tuple(
            timing(one.name, np.median(samples), ratio, blocks=samples)
            for one, samples, ratio in zip(candidates, blocks, ratios, strict=True)
        )
        return Bench(valid=valid, doubts=() if valid else ("busy",), runs=runs)

    monkeypatch.setattr(CandidateBuilder, "time", time)
    return measured


def tokens_of(candidate: Candidate) -> int:
    return sum(site.tokens or 0 for site in candidate.structure.attention)


def by_tokens(candidate: Candidate) -> float:
    """As fast as tokens are few, and int8 twice as fast."""
    return tokens_of(candidate) * (0.5 if candidate.name == "int8" else 1.0)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_fastest_within_the_budget_is_kept(
    target: str, exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, by_tokens)
    summary = exported(target=target, max_drop=1)
    manifest = load(out).manifest
    first, *tried = summary.trials
    assert (first.label, first.kept, first.why) == ("fp32", False, "merging is faster")
    assert all(trial.merged and trial.precision == "fp32" for trial in tried)
    (kept,) = (trial for trial in tried if trial.kept)
    assert kept.lost is not None
    assert kept.lost <= 1
    assert (kept.judged_by, kept.images) == ("labels", 197)
    assert kept.speedup is not None
    assert kept.speedup.ci95[0] > 1
    assert all(trial.why for trial in tried if not trial.kept)
    over = [trial for trial in tried if trial.lost is not None and trial.lost > 1]
    assert {trial.why for trial in over} <= {"over the budget of 1"}
    # What was compiled has these merges, and is as exact as a graph with given merges.
    assert manifest.tokens is not None
    assert manifest.tokens.merged == kept.merged
    assert manifest.recipe.tokens.merge == "auto"
    assert summary.parity.max_abs <= 1e-3 * summary.parity.reference_max
    assert summary.tokens is not None
    assert summary.tokens.parity.max_abs > 1e-3
    left = [65 - sum(n for block, n in kept.merged.items() if block < number) for number in range(4)]
    audit = json.loads(run("inspect", out, "--json").out)
    assert audit["tokens"][:3] == left[:3]
    label = ",".join(f"{block}:{removed}" for block, removed in kept.merged.items())
    assert any(note.startswith(f"auto merged tokens, {label}: ") for note in summary.notes)


def test_what_a_given_schedule_computes_is_what_auto_computes(
    exported: Export, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, by_tokens)
    exported(max_drop=1)
    artifact = load(out)
    assert artifact.manifest.tokens is not None
    given = ",".join(f"{block}:{removed}" for block, removed in artifact.manifest.tokens.merged.items())
    recipe = recipes.compose("demo:digits", target="onnxruntime", merge_tokens=given)
    export(recipe, tmp_path / "given", Silent(), cache=GraphCache())
    assert (tmp_path / "given" / "graph.onnx").read_bytes() == (out / "graph.onnx").read_bytes()
    (tmp_path / "work").mkdir()
    rebuilt = rebuild_graph(artifact, tmp_path / "work", Silent(), cache=None)
    assert rebuilt.facts.tokens is not None
    assert rebuilt.facts.tokens.merged == artifact.manifest.tokens.merged


def test_precision_and_merging_together(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = timed(monkeypatch, by_tokens)
    summary = exported(target="openvino", precision="auto", max_drop=1)
    (kept,) = (trial for trial in summary.trials if trial.kept)
    assert kept.precision == summary.precision == "int8"
    assert kept.merged
    assert kept.lost is not None
    assert kept.lost <= 1
    assert kept.speedup is not None
    assert kept.speedup.ratio > 2  # over float without merging
    plain = next(trial for trial in summary.trials if trial.precision == "int8" and not trial.merged)
    assert (plain.kept, plain.why) == (False, "merging is faster")
    assert [one.name for one in measured[-1]][:3] == ["fp32", "int8", "int8"]  # the last one is timed beside both
    assert summary.quantized is not None
    manifest = load(out).manifest
    assert manifest.tokens is not None
    assert manifest.tokens.merged == kept.merged


def test_a_named_precision_is_not_left(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if float with merging were faster."""
    timed(monkeypatch, lambda one: tokens_of(one) * (1.5 if one.name == "int8" else 1.0))
    summary = exported(precision="int8", max_drop=2)
    (kept,) = (trial for trial in summary.trials if trial.kept)
    assert kept.precision == summary.precision == "int8"
    assert kept.merged
    assert all(trial.why for trial in summary.trials if not trial.kept)
    assert "it only chose the schedules to try in int8" in {trial.why for trial in summary.trials}


def test_merging_that_is_not_faster_is_not_kept(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda one: 10.0 + 0.01 * (65 * 4 - tokens_of(one)))
    summary = exported(max_drop=1)
    assert [trial.kept for trial in summary.trials] == [True] + [False] * (len(summary.trials) - 1)
    assert "auto merged no tokens: nothing is faster within the budget" in summary.notes
    assert any(trial.why == "not faster than without merging" for trial in summary.trials)
    manifest = load(out).manifest
    assert (manifest.tokens, summary.tokens) == (None, None)


def test_in_doubt_nothing_is_merged(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, by_tokens, valid=False)
    summary = exported(max_drop=1)
    assert summary.trials[0].kept
    assert "its speed is in doubt" in {trial.why for trial in summary.trials}
    assert any(
        note.startswith("auto merged no tokens: it is in doubt whether merging is faster. Of what loses no more")
        for note in summary.notes
    )
    insist = "To insist, stop other processes and measure longer: --seconds"
    assert f"the comparison of speeds is in doubt: busy. {insist} 30" in summary.notes
    assert any(note.endswith(" leaves fewest tokens. --seconds 30 measures longer") for note in summary.notes)
    assert load(out).manifest.tokens is None


def test_seconds_are_those_of_each_comparison(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    timed(monkeypatch, by_tokens, valid=False)
    time = CandidateBuilder.time

    def record(builder: CandidateBuilder, candidates: Sequence[Candidate], seconds: float) -> Bench:
        asked.append(seconds)
        return time(builder, candidates, seconds)

    monkeypatch.setattr(CandidateBuilder, "time", record)
    summary = exported(max_drop=1, seconds=20)
    assert asked == [20.0]
    assert any(note.endswith(" leaves fewest tokens. --seconds 60 measures longer") for note in summary.notes)


def test_what_is_undecided_is_not_called_slower(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that differ by more than merging saves."""

    def time(builder: CandidateBuilder, candidates: Sequence[Candidate], seconds: float) -> Bench:
        chance = np.random.default_rng(0)
        blocks = [tuple((ms,) for ms in chance.lognormal(2, 0.1, 40)) for _ in candidates]
        ratios = [None, *(speedup_interval(blocks[0], other) for other in blocks[1:])]
        assert all(ratio is None or ratio.ci95[0] < 1 < ratio.ci95[1] for ratio in ratios)
        runs = tuple(timing(c.name, 7.4, r, blocks=b) for c, b, r in zip(candidates, blocks, ratios, strict=True))
        return Bench(valid=True, doubts=(), runs=runs)

    monkeypatch.setattr(CandidateBuilder, "time", time)
    summary = exported(max_drop=1)
    assert "not certainly faster than without merging" in {trial.why for trial in summary.trials}
    (note,) = (note for note in summary.notes if note.startswith("auto merged no tokens"))
    assert "it is in doubt whether merging is faster" in note
    assert note.endswith("--seconds 30 measures longer")
    assert load(out).manifest.tokens is None


def test_a_doubt_about_one_schedule_leaves_the_others(
    exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, by_tokens)
    time, doubt = CandidateBuilder.time, "the speed-up of fp32 drifted"

    def doubt_the_fastest(builder: CandidateBuilder, candidates: Sequence[Candidate], seconds: float) -> Bench:
        bench = time(builder, candidates, seconds)
        fastest = min(range(len(candidates)), key=lambda index: bench.runs[index].p50_ms)
        runs = tuple(replace(r, doubts=(doubt,)) if i == fastest else r for i, r in enumerate(bench.runs))
        return Bench(valid=False, doubts=(doubt,), runs=runs)

    monkeypatch.setattr(CandidateBuilder, "time", doubt_the_fastest)
    summary = exported(max_drop=1)
    (kept,) = (trial for trial in summary.trials if trial.kept)
    (open_trial,) = (trial for trial in summary.trials if trial.why == "its speed is in doubt")
    assert kept.merged
    assert sum(open_trial.merged.values()) > 0
    assert (open_trial.speedup, kept.speedup is None) == (None, False)
    assert any(doubt in note and note.endswith("--seconds 30") for note in summary.notes)
    manifest = load(out).manifest
    assert manifest.tokens is not None
    assert manifest.tokens.merged == kept.merged


def pictures(folder: Path) -> str:
    path = folder / "pictures.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    return str(path)


def test_a_budget_that_nothing_meets(
    exported: Export, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = timed(monkeypatch, by_tokens)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    summary = exported(f"python:{tmp_path}/fragile.py:build", calibration=pictures(tmp_path), max_drop=0.001)
    lost = {trial.label: trial.lost for trial in summary.trials if trial.lost is not None}
    assert lost
    nearest = min(lost.values())
    assert nearest > 0.001
    (note,) = (note for note in summary.notes if note.startswith("auto merged no tokens"))
    assert note.startswith("auto merged no tokens: nothing keeps the budget of 0.001 points. The nearest, ")
    assert note.endswith(f"in fp32, loses {nearest:.2f}")
    assert measured == []  # nothing to time
    assert load(out).manifest.tokens is None
    assert sum(trial.kept for trial in summary.trials) == 1
    skipped = [trial for trial in summary.trials if trial.why.startswith("not tried: ")]
    assert skipped
    assert all(trial.why.endswith("leaves more tokens and loses far too much") for trial in skipped)
    milder = {trial.why.split()[2] for trial in skipped}
    assert all(lost[f"fp32, merged {schedule}"] > 1.001 for schedule in milder)


def test_random_weights_are_compared_by_speed_alone(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, by_tokens)
    summary = exported("timm:test_vit", weights="random")
    assert any(trial.kept and trial.merged and trial.lost is None for trial in summary.trials)
    assert "random weights: auto compared speed only, because accuracy means nothing" in summary.notes


SIZED = {"image_size": "32x32"}
NOTHING_TO_MERGE = {
    "windows": (f"python:{TOYS}:swin", {}, "its attention works in windows, which cannot lose tokens"),
    "rotary positions": (f"python:{TOYS}:rope", {}, "as with rotary positions (RoPE)"),
    "one patch": ("python:{folder}/one_patch.py:build", SIZED, "1 patch is there, at most 0 can"),
    "several streams": ("python:{folder}/two_streams.py:build", SIZED, "as in a model with several streams of tokens"),
    "sizes that vary": ("{folder}/sized.onnx", {"image_size": "24x24:32x48:64x64"}, "the number of its tokens varies"),
    "no tokens": ("{folder}/cnn.onnx", {}, "the model has no attention, so it has no tokens to remove"),
}


@pytest.mark.parametrize("case", list(NOTHING_TO_MERGE))
def test_what_cannot_merge_stays_as_it_is(case: str, exported: Export, out: Path, tmp_path: Path) -> None:
    spec, flags, words = NOTHING_TO_MERGE[case]
    (tmp_path / "one_patch.py").write_text(ONE_PATCH)
    (tmp_path / "two_streams.py").write_text(TWO_STREAMS)
    small_cnn(tmp_path / "cnn.onnx")
    (tmp_path / "sized.onnx").write_bytes(sized_legacy(sized_vit(), 14))
    summary = exported(spec.format(folder=tmp_path), calibration=pictures(tmp_path), **flags)
    (note,) = (note for note in summary.notes if note.startswith("auto merged no tokens: "))
    assert words in note
    assert load(out).manifest.tokens is None


def test_without_images_nothing_can_be_judged(exported: Export, out: Path) -> None:
    summary = exported(f"python:{TOYS}:deit")
    assert "auto merged no tokens: there are no images to judge it on (--calibration)" in summary.notes
    assert load(out).manifest.tokens is None


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_what_cannot_be_timed_here_needs_a_schedule(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("export", "demo:digits", "--target", target, "--merge-tokens", "auto")
    assert (ended.code, ended.out) == (1, "")
    assert "--merge-tokens auto times schedules, and nothing can be timed here" in ended.error
    assert "Give a schedule, such as --merge-tokens 3:60,6:40" in ended.error
    assert listing(tmp_path) == []


def test_portable_leaves_nothing_to_search(exported: Export) -> None:
    with pytest.raises(UsageError, match="which cannot search for merges"):
        exported(precision="auto", portable=True)


@pytest.mark.slow
def test_without_a_stand_in_for_the_stopwatch(exported: Export, out: Path) -> None:
    """The real measurement, which decides one way or the other: what is said fits what was made."""
    summary = exported(target="openvino", max_drop=1)
    (kept,) = (trial for trial in summary.trials if trial.kept)
    manifest = load(out).manifest
    assert (manifest.tokens.merged if manifest.tokens is not None else {}) == kept.merged
    said = [note for note in summary.notes if note.startswith(("auto merged tokens, ", "auto merged no tokens: "))]
    assert len(said) == 1
    assert said[0].startswith("auto merged tokens, ") == bool(kept.merged)
    assert all(trial.why for trial in summary.trials if not trial.kept)
