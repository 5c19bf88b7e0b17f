"""Which precision an export keeps, and what it says about the others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import bench
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Trial, load
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import complete
from vitdeploy.commands.family.export import fit_part
from vitdeploy.errors import PassError, QuantizeError, RecipeError, UsageError
from vitdeploy.evidence import Bench, Interval
from vitdeploy.frozen import replace
from vitdeploy.pipeline import choose
from vitdeploy.pipeline.attempts import Way
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.precision import Precision
from vitdeploy.progress import Silent
from vitdeploy.targets.onnxruntime import OnnxRuntime

Export = Callable[..., Exported]
INSIST = "To insist, stop other processes and measure longer:"
SMALL_VIT = """
import timm, torch
def build():
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10)
"""
OVERFLOWING_VIT = (
    SMALL_VIT.replace("return ", "model = ")
    + """
    for block in model.blocks:
        for linear in (block.mlp.fc1, block.mlp.fc2):
            linear.weight.data *= 1e7  # up to 1e6, and float16 ends at 65,504
    return model
"""
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


@pytest.fixture
def exported(out: Path) -> Export:
    def run(
        model: str = "demo:digits", target: str = "onnxruntime", spec: dict[str, Any] | None = None, **flags: object
    ) -> Exported:
        recipe = recipes.compose(model, target=target, **flags)  # type: ignore[arg-type]
        recipe = replace(recipe, precision=replace(recipe.precision, **(spec or {})))
        return export(recipe, out, Silent(), cache=GraphCache()).summary

    return run


def timed(monkeypatch: pytest.MonkeyPatch, *ratios: float, valid: bool = True) -> list[float]:
    """Let the stopwatch say this about the candidates behind the first. Return the seconds of each measurement."""
    asked: list[float] = []

    def time(builder: CandidateBuilder, candidates: list[object], seconds: float) -> Bench:
        asked.append(seconds)
        assert len(candidates) == 1 + len(ratios)
        one = bench().runs[0]
        speedups = [None, *(Interval(ratio=r, ci95=(r - 0.05, r + 0.05)) for r in ratios)]
        runs = tuple(replace(one, speedup=speedup) for speedup in speedups)
        return Bench(valid=valid, doubts=() if valid else ("busy",), runs=runs)

    monkeypatch.setattr(CandidateBuilder, "time", time)
    return asked


@pytest.mark.parametrize(
    ("ratios", "kept"), [((1.5, 1.2), "int8"), ((1.2, 1.5), "int8-dynamic"), ((1.04, 0.8), "fp32")]
)
def test_auto_keeps_the_fastest_and_nothing_slower_than_float(
    ratios: tuple[float, ...], kept: str, exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, *ratios)
    found = exported(precision="auto")
    assert found.precision == load(out).manifest.target.precision == kept
    assert [(t.precision, t.kept) for t in found.trials] == [
        (kind, kind == kept) for kind in ("fp32", "int8", "int8-dynamic")
    ]
    assert [t.judged_by for t in found.trials] == [None, "labels", "labels"]
    assert all(t.lost is not None and t.lost <= 0.5 for t in found.trials[1:])
    assert found.faster_than_fp32 is (True if kept != "fp32" else None)


def test_a_slower_precision_is_made_but_said_to_be_slower(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.8)
    found = exported(precision="int8")
    assert found.faster_than_fp32 is False
    assert found.notes[0] == "int8 is slower than fp32 here, 0.80 [0.75, 0.85] ×: use --precision fp32"


def test_a_precision_that_may_be_as_fast_is_not_said_to_be_slower(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 0.98)  # 0.93 to 1.03
    assert exported(precision="int8").notes == ()


def test_a_doubtful_measurement_is_no_verdict(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.8, valid=False)
    found = exported(precision="int8-dynamic")
    assert found.faster_than_fp32 is None
    assert found.notes[0] == f"the comparison of speeds is in doubt: busy. {INSIST} --seconds 30"


def test_auto_keeps_float_when_the_stopwatch_is_in_doubt(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 1.5, 1.4, valid=False)
    found = exported(precision="auto")
    assert found.precision == "fp32"
    assert [(t.kept, t.speedup, t.why) for t in found.trials] == [
        (True, None, ""), (False, None, "its speed is in doubt"), (False, None, "its speed is in doubt")
    ]  # fmt: skip
    doubt = f"the comparison of speeds is in doubt: busy. {INSIST} --seconds 30"
    assert found.notes[-2:] == ("auto kept fp32", doubt)


def test_seconds_are_those_of_each_comparison(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, 1.5, 1.4, valid=False)
    found = exported(precision="auto", seconds=20)
    assert asked == [20.0]
    assert found.notes[-1].endswith(f"{INSIST} --seconds 60")
    assert load(out).manifest.recipe.precision.seconds == 20
    asked = timed(monkeypatch, 1.5)
    recipe = recipes.compose("demo:digits", target="onnxruntime", precision="int8-dynamic", seconds=7)
    export(recipe, out.parent / "named", Silent(), cache=GraphCache())
    assert asked == [7.0]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({}, "--seconds is for comparisons of speed, and fp32 is compared with nothing"),
        ({"precision": "fp32"}, "--seconds is for comparisons of speed, and fp32 is compared with nothing"),
        ({"merge_tokens": "1:8"}, "--seconds is for comparisons of speed, and fp32 is compared with nothing"),
        ({"target": "tensorrt"}, "--seconds has no meaning where nothing can be timed: "),
        ({"target": "tensorrt", "precision": "int8"}, "--seconds has no meaning where nothing can be timed: "),
    ],
)
def test_seconds_without_a_comparison_are_refused(flags: dict[str, str], why: str, exported: Export, out: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        exported(seconds=20, **flags)
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "precision", "merge"), [("tensorrt", "fp16,int8", None), ("onnxruntime", None, "auto")]
)
def test_seconds_are_taken_for_variants_and_for_merging(target: str, precision: str | None, merge: str | None) -> None:
    recipe = recipes.compose(
        "demo:digits", target=target, precision=precision, merge_tokens=merge, seconds=20
    )  # fmt: skip
    assert complete(recipe, None).recipe.precision.seconds == 20


@pytest.mark.parametrize(("precision", "seconds"), [("int8", None), ("bf16", 20)])
def test_a_decoder_that_is_compared_with_nothing_takes_no_seconds(precision: str, seconds: float | None) -> None:
    recipe = recipes.compose("hf:sam", target="openvino", precision=precision, seconds=20)
    assert fit_part(recipe, "decoder").precision.seconds == seconds
    assert fit_part(recipe, "encoder").precision.seconds == 20


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_impossible_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(RecipeError, match=r"precision\.seconds"):
        recipes.compose("demo:digits", target="onnxruntime", precision="auto", seconds=seconds)


def test_without_images_auto_loses_no_accuracy_unseen(exported: Export, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL_VIT)
    found = exported(f"python:{tmp_path}/small.py:build", precision="auto", image_size="32x32")
    assert found.precision == "fp32"
    why = {t.precision: t.why for t in found.trials}
    assert why["int8"] == "its accuracy cannot be judged without images"
    assert why["int8-dynamic"] == "its accuracy cannot be judged without images"


def test_auto_does_not_hide_a_pass_that_failed(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bug of this program, not a precision that the model cannot have."""
    make = CandidateBuilder.make

    def fail_below_float32(builder: CandidateBuilder, precision: Precision) -> Candidate:
        if not precision.is_float32:
            raise PassError("pass fuse-bias failed: KeyError: 'bias'", fix="Report it, with --traceback.")
        return make(builder, precision)

    monkeypatch.setattr(CandidateBuilder, "make", fail_below_float32)
    with pytest.raises(PassError, match="pass fuse-bias failed"):
        exported(precision="auto")


def test_what_cannot_run_here_keeps_the_default(exported: Export, tmp_path: Path) -> None:
    """Its other precisions become variants: tests/pipeline/test_variants.py. Without images there are none."""
    (tmp_path / "small.py").write_text(SMALL_VIT)
    found = exported(f"python:{tmp_path}/small.py:build", target="tensorrt", precision="auto", image_size="32x32")
    assert (found.precision, found.stage) == ("fp16", "bundle")
    assert found.trials[0].kept
    assert "there are no images to judge it on" in found.notes[0]


def test_a_budget_leaves_linears_in_float(exported: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real search: the head alone is made to lose."""
    from vitdeploy.pipeline.accuracy_budget import AccuracyBudget

    def judge(budget: AccuracyBudget, candidate: object) -> Trial:
        kept = "head" not in candidate.quantized_names  # type: ignore[attr-defined]
        floats = candidate.float_linears  # type: ignore[attr-defined]
        return Trial(precision="int8", float_linears=floats, lost=0.1 if kept else 2.0, judged_by="labels", images=9)

    monkeypatch.setattr(AccuracyBudget, "judge", judge)
    timed(monkeypatch, 1.5)
    found = exported(precision="int8", max_drop=0.5)
    assert found.trials[-1].kept
    assert found.trials[-1].lost == 0.1
    manifest = load(out).manifest
    assert manifest.placement["head"].rule.startswith("keep: ")
    assert manifest.quantized is not None
    assert manifest.quantized.quantized == 26 - found.trials[-1].float_linears


def test_a_budget_needs_images_and_a_precision(exported: Export, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL_VIT)
    with pytest.raises(QuantizeError, match="no images to judge --max-drop"):
        exported(f"python:{tmp_path}/small.py:build", precision="int8-dynamic", max_drop=0.5)
    with pytest.raises(UsageError, match="no meaning for float32"):
        exported(precision="fp32", max_drop=0.5)
    with pytest.raises(UsageError, match="does not work with fp16"):
        exported(target="tensorrt", precision="fp16", max_drop=0.5)


@pytest.fixture
def overflowing(tmp_path: Path) -> str:
    (tmp_path / "overflowing.py").write_text(OVERFLOWING_VIT)
    return f"python:{tmp_path}/overflowing.py:build"


def half_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime have the default of GPUs, which cannot be timed here."""
    monkeypatch.setattr(OnnxRuntime, "list_precisions", lambda _: ("fp16", "fp32", "int8-dynamic"))


def test_a_named_precision_is_compared_with_float32_where_float16_is_refused(
    overflowing: str, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_by_default(monkeypatch)
    timed(monkeypatch, 0.8)
    found = exported(overflowing, precision="int8-dynamic", image_size="32x32")
    refused, kept = found.trials
    assert (refused.precision, refused.kept) == ("fp16", False)
    assert refused.why.startswith("fp16 gains nothing: ")
    assert (kept.precision, kept.kept) == ("int8-dynamic", True)
    assert found.notes[0] == "int8-dynamic is slower than fp32 here, 0.80 [0.75, 0.85] ×: use --precision fp32"


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_auto_keeps_float32_where_float16_is_refused(
    target: str, overflowing: str, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_by_default(monkeypatch)
    found = exported(overflowing, target=target, precision="auto", image_size="32x32")
    assert found.precision == "fp32"
    first, second, *_ = found.trials
    assert (first.precision, first.kept, second.precision, second.kept) == ("fp16", False, "fp32", True)
    assert first.why.startswith("fp16 gains nothing: ")
    assert [trial.precision for trial in found.trials].count("fp32") == 1


def test_the_default_alone_is_refused_with_the_reason(overflowing: str, exported: Export) -> None:
    with pytest.raises(QuantizeError, match="fp16 gains nothing"):
        exported(overflowing, target="tensorrt", image_size="32x32")


def test_the_default_of_auto_keeps_linears_in_float(exported: Export, out: Path, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL_VIT)
    model = f"python:{tmp_path}/small.py:build"
    exported(model, target="tensorrt", precision="auto", image_size="32x32", spec={"keep": ("head",)})
    record = load(out).manifest.quantized
    assert record is not None
    assert record.half is not None
    assert "head" in record.half.float32


def test_int8_attention_of_a_recipe_is_for_precisions_that_have_it(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 1.5)
    trials = exported(precision="auto", spec={"attention": True}).trials
    assert [(trial.label, trial.kept) for trial in trials] == [
        ("fp32", False), ("int8 with INT8 attention", False), ("int8-dynamic", True)
    ]  # fmt: skip
    assert trials[1].why.startswith("`attention: true` is not for this target")


@pytest.mark.slow
def test_norms_are_folded_alone_where_they_cannot_be_with_int8_attention(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime has no INT8 attention."""

    def list_folded(_: object, __: object, attentions: Sequence[Way]) -> list[Way]:
        return [dataclasses.replace(way, folded_norms=True) for way in attentions or [Way("int8")]]

    monkeypatch.setattr(choose, "list_int8_attention", lambda *_: [Way("int8", attention=True)])
    monkeypatch.setattr(choose, "list_folded_norms", list_folded)
    timed(monkeypatch, 1.1, 1.5)
    trials = exported(precision="fp32,int8").trials
    assert [(trial.label, trial.kept) for trial in trials] == [
        ("fp32", False), ("int8", False), ("int8 with INT8 attention", False),
        ("int8 with INT8 attention, norms folded", False), ("int8, norms folded", True),
    ]  # fmt: skip
