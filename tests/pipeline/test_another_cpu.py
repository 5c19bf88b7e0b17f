"""INT8 weights and attention follow the CPU that runs the artifact, not the one that exports it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdeploy import environment, targets
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import Elsewhere, complete
from vitdeploy.commands.inspect.sensitivity import measure_sensitivity
from vitdeploy.environment import Host
from vitdeploy.frozen import replace
from vitdeploy.graph.model import array, load
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import TargetSpec

AVX2 = replace(environment.host(), isa=("avx2",))
VNNI = replace(AVX2, isa=("avx2", "avx512_vnni"))
ARM = replace(AVX2, isa=("asimddp",))
HALF_RANGE = 64


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("cpu", "saturates"), [(AVX2, True), (VNNI, False), (ARM, False)], ids=["AVX2", "VNNI", "Arm"])
@pytest.mark.parametrize("here", [AVX2, VNNI], ids=["on AVX2", "on VNNI"])
def test_the_dialect_is_that_of_the_named_cpu(
    target: str, cpu: Host, saturates: bool, here: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "host", lambda: here)
    dialect = targets.find(TargetSpec(kind=target)).dialect(cpu)
    assert dialect.int8_sums_saturate == saturates
    assert (dialect.int8_attention is not None) == (target == "openvino" and cpu is VNNI)
    assert targets.find(TargetSpec(kind=target)).dialect().int8_sums_saturate == (here is AVX2)


@pytest.mark.parametrize(
    ("here", "there", "portable", "saturates", "attention"),
    [
        (VNNI, None, False, False, True),
        (VNNI, AVX2, False, True, False),
        (AVX2, VNNI, False, True, True),  # calibrated and judged here, where sums saturate
        (VNNI, ARM, False, False, False),
        (VNNI, None, True, True, True),  # another CPU may run it
    ],
)
def test_an_order_knows_both_machines(
    here: Host, there: Host | None, portable: bool, saturates: bool, attention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(environment, "host", lambda: here)
    recipe = recipes.compose(
        "demo:digits", target="openvino", precision=None if portable else "int8", portable=portable
    )
    order = complete(recipe, None if there is None else Elsewhere("another machine", there))
    assert order.dialect.int8_sums_saturate == saturates
    assert (order.dialect.int8_attention is not None) == attention


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
@pytest.mark.parametrize(("there", "bits"), [(AVX2, 7), (VNNI, 8)], ids=["AVX2", "VNNI"])
def test_the_weights_have_the_range_of_the_other_cpu(
    precision: str, there: Host, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "host", lambda: VNNI)
    recipe = recipes.compose("demo:digits", target="onnxruntime", precision=precision)
    elsewhere = Elsewhere("another machine", there)
    artifact = export(recipe, tmp_path / "out", Silent(), cache=GraphCache(), elsewhere=elsewhere).artifact
    assert artifact.manifest.quantized is not None
    assert artifact.manifest.quantized.weight_bits == bits
    assert largest_code(artifact.file("graph.onnx")) == (HALF_RANGE if bits == 7 else 127)


def largest_code(path: Path) -> int:
    """Return the largest absolute value among the INT8 weights of a graph."""
    values = [array(value) for value in load(path).model.graph.initializers.values()]
    return max(int(np.abs(v.astype(int)).max()) for v in values if v.dtype == np.int8 and v.ndim > 1)


def test_sensitivity_is_that_of_the_weights_of_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "host", lambda: VNNI)
    recipe, cache, sqnr_db = recipes.compose("demo:digits", target="onnxruntime", precision="int8"), GraphCache(), []
    recipe = replace(recipe, precision=replace(recipe.precision, smooth_alpha="off"))
    for there in (AVX2, VNNI):
        elsewhere = Elsewhere("another machine", there)
        artifact = export(recipe, tmp_path / "out", Silent(), cache=cache, elsewhere=elsewhere, force=True).artifact
        layers = measure_sensitivity(artifact, None, Silent(), cache=cache).layers
        sqnr_db.append(np.median([layer.sqnr_db for layer in layers]))
    assert sqnr_db[0] < sqnr_db[1] - 1
