"""INT8 with folded norms among the candidates of `auto`: judged, timed, and named as what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from vitdeploy.recipe import Recipe

pytest.importorskip("openvino")
HERE = environment.host()


def exported(
    folder: Path, patch: pytest.MonkeyPatch, *, cpu: Host = HERE, target: str = "openvino", **spec: Any
) -> Exported:
    patch.setattr(environment, "host", lambda: cpu)
    for name in ("list_folded_norms", "list_int8_attention"):  # tests/conftest.py leaves them out
        patch.setattr(choose, name, getattr(attempts, name))
    recipe: Recipe = recipes.compose("demo:digits", target=target, precision="fp32,int8")
    recipe = replace(recipe, precision=replace(recipe.precision, **spec))
    return export(recipe, folder / "artifact", Silent(), cache=GraphCache()).summary


@pytest.mark.slow
def test_auto_tries_it_beside_plain_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = exported(tmp_path, monkeypatch, cpu=replace(HERE, isa=("avx2",))).trials
    assert [(t.label, t.folded_norms) for t in trials] == [
        ("fp32", False), ("int8", False), ("int8, norms folded", True)
    ]  # fmt: skip
    assert trials[2].judged_by == "labels"
    assert sum(trial.kept for trial in trials) == 1


@pytest.mark.slow
@pytest.mark.skipif(not HERE.int8_products_on_x86, reason="OpenVINO has no INT8 attention on this CPU")
def test_auto_tries_it_with_int8_attention_where_there_is_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = exported(tmp_path, monkeypatch, cpu=replace(HERE, isa=tuple({*HERE.isa} - _BFLOAT16))).trials
    assert [t.label for t in trials if t.folded_norms] == [
        "int8 with INT8 attention (values only), norms folded", "int8 with INT8 attention, norms folded"
    ]  # fmt: skip


_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


@pytest.mark.parametrize(
    ("target", "spec"), [("onnxruntime", {}), ("openvino", {"smooth_alpha": 0.5}), ("openvino", {"quantizer": "nncf"})]
)
def test_it_is_left_out(target: str, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = replace(HERE, isa=("avx2",))
    trials = exported(tmp_path, monkeypatch, cpu=cpu, target=target, **spec).trials
    assert not any(trial.folded_norms for trial in trials)
