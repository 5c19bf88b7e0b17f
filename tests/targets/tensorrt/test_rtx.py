"""TensorRT-RTX as a target: GPU generations that it compiles for, and others that its engines refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fixtures import CARD, ORIN
from vitdeploy import precision, targets
from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import Bundle
from vitdeploy.targets._tensorrt.record import load_record

pytest.importorskip("tensorrt_rtx")

SITES = 2


def target(device: str) -> targets.Target:
    return targets.find(TargetSpec(kind="tensorrt-rtx", device=device))


def test_one_engine_for_several_generations(bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    found = target("sm86, SM89,sm86")
    given = bundle(found, "fp16")
    made = found.compile(given, tmp_path)
    assert load_record(tmp_path).compute_capabilities == ("sm86", "sm89")
    audit = found.audit(given, made)
    assert audit.attention.fused == SITES
    assert audit.doubts == ("one layer plan was printed for all of sm86, sm89",)


def test_attention_in_fp32_has_that_reason(bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    compiler = target("sm86")
    given = bundle(compiler, "fp32")
    audit = compiler.audit(given, compiler.compile(given, tmp_path))
    reasons = [site.reason for site in audit.attention.unfused]
    assert len(reasons) == SITES
    assert all(reason.startswith("runs in FP32, which TensorRT does not fuse; runs as ") for reason in reasons), reasons


def test_fp8_where_there_are_units_for_it(bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    found = target("sm89")
    precision.check("fp8", found)
    given = bundle(found, "fp8")
    audit = found.audit(given, found.compile(given, tmp_path))
    assert (audit.attention.fused, audit.linears.fp8) == (SITES, len(given.structure.linears) - 1)
    with pytest.raises(UsageError, match=r"^sm86 has no FP8 units") as caught:
        precision.check("fp8", target("sm86,sm89"))
    assert "sm89" in caught.value.message
    assert caught.value.fix == "It can do fp16, fp32, bf16, int8."


def test_an_unknown_generation_is_refused_with_those_it_knows() -> None:
    missing = target("sm86,sm87").unavailable()
    assert missing is not None
    assert missing.why.endswith("does not compile for sm87")
    assert "sm86" in missing.fix


def test_engines_run_on_their_generation_only(
    device: Callable[..., Any], bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    found = target("sm86")
    given = bundle(found, "fp16")
    made = found.compile(given, tmp_path)
    device(**ORIN)
    unfit = found.cannot_run()
    assert unfit is not None
    assert unfit.why.startswith("this is Orin (sm87, 8 multiprocessors")
    with pytest.raises(TargetUnavailable, match="it was compiled for sm86, and this is Orin"):
        found.open(made, precision.kind_of("fp16").numbers, None)
    device(count=0)
    unfit = found.cannot_run()
    assert unfit is not None
    assert "no CUDA-capable device" in unfit.why
    device(**CARD)
    assert found.cannot_run() is None
