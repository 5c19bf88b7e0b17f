"""INT8 attention among the candidates of `auto`, in the fastest static INT8 of the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.environment import Host
from vitdeploy.frozen import replace
from vitdeploy.pipeline import attempts, choose
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec, Quantizer
from vitdeploy.targets.openvino import OpenVINO

pytest.importorskip("openvino")
HERE = environment.host()
FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Host, **flags: object) -> Exported:
    monkeypatch.setattr(environment, "host", lambda: cpu)
    monkeypatch.setattr(choose, "list_int8_attention", attempts.list_int8_attention)  # tests/conftest.py leaves it out
    recipe = recipes.compose("demo:digits", target="openvino", **flags)  # type: ignore[arg-type]
    return export(recipe, tmp_path / "artifact", Silent(), cache=GraphCache()).summary


def without_bfloat16() -> Host:
    return replace(HERE, isa=tuple(flag for flag in HERE.isa if flag not in FLAGS))


@pytest.mark.slow
@pytest.mark.skipif(not HERE.int8_products_on_x86, reason="OpenVINO has no INT8 attention on this CPU")
def test_auto_tries_it_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = exported(tmp_path, monkeypatch, without_bfloat16(), precision="fp32,int8").trials
    assert [(t.precision, t.attention) for t in trials] == [
        ("fp32", ""), ("int8", ""), ("int8", "values"), ("int8", "all")
    ]  # fmt: skip
    assert [t.label for t in trials[2:]] == ["int8 with INT8 attention (values only)", "int8 with INT8 attention"]
    assert all(trial.judged_by == "labels" for trial in trials[1:])
    assert sum(trial.kept for trial in trials) == 1


@pytest.mark.slow
@pytest.mark.skipif(not HERE.bfloat16_dot_product, reason="this CPU has no bfloat16")
@pytest.mark.skipif(not HERE.int8_products_on_x86, reason="OpenVINO has no INT8 attention on this CPU")
def test_with_bfloat16_it_is_tried_there_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = exported(tmp_path, monkeypatch, HERE, precision="fp32,int8,int8-bf16").trials
    assert [(t.precision, t.attention) for t in trials] == [
        ("fp32", ""), ("int8", ""), ("int8-bf16", ""), ("int8-bf16", "values"), ("int8-bf16", "all")
    ]  # fmt: skip


@pytest.mark.skipif(not HERE.int8_products_on_x86, reason="OpenVINO has no INT8 attention on this CPU")
@pytest.mark.parametrize(("quantizer", "tried"), [(None, True), ("own", True), ("nncf", False)])
def test_it_is_not_tried_where_nncf_decides(quantizer: Quantizer | None, tried: bool) -> None:
    target = OpenVINO()
    builder = SimpleNamespace(target=target, dialect=target.dialect(), calibrated=SimpleNamespace(has_images=True))
    request = attempts.Request(PrecisionSpec(kind="auto", quantizer=quantizer))
    assert bool(attempts.list_int8_attention(builder, request)) == tried  # type: ignore[arg-type]


@pytest.mark.parametrize("flags", [{"asimddp"}, set()], ids=["Arm", "AVX2"])
def test_it_is_left_out(flags: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = replace(HERE, isa=tuple(flags))
    trials = exported(tmp_path, monkeypatch, cpu, precision="fp32,int8").trials
    assert [(t.precision, t.attention) for t in trials] == [("fp32", ""), ("int8", "")]
