"""The fake TensorRT miscompiles on purpose: by version and pattern, silently; and healthy engines are not exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.fakes.compiling import compiled, opened
from tests.fakes.miscompile import FLOAT, HALF, Fault
from tests.fakes.rounding import round_tf32
from vitdeploy.graph.parity import compare_session
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.runtime.artifact_session import read_bundle

Device = Callable[..., Any]
CASES = [
    ("rope", Fault("wrong_rotation"), 8),
    ("deit", Fault("mixed_heads"), 3),  # the last block computes one query only
    ("deit", Fault("mixed_heads", within="blocks.1"), 1),
    ("rope", Fault("packed_heads", within="blocks.2"), 1),
    ("deit", Fault("overflow", within="blocks.3"), 1),
    ("swin", Fault("block_off", within="layers.1.blocks.0"), 1),
    ("detector", Fault("shifted_memory"), 2),
]


def _cosine(trt: Any, artifact: Any, folder: Path) -> float:
    """Build the bundle, and return the cosine of the engine's outputs with FP32's."""
    bundle = read_bundle(artifact.path, artifact.manifest)
    examples = load_examples(
        artifact.path / "reference/example.npz", artifact.manifest.preprocess, artifact.manifest.recipe.target.input
    )
    with opened(compiled(bundle, folder)) as session:
        return compare_session(session, examples, bundle.input_name).cosine


@pytest.mark.parametrize(("model", "fault", "count"), CASES, ids=[f"{m}-{f.name}" for m, f, _ in CASES])
def test_a_fault_strikes_its_pattern_and_says_nothing(
    model: str, fault: Fault, count: int, device: Device, small_bundle: Any, tmp_path: Path
) -> None:
    trt = device("10.3")
    bundle = small_bundle(model)
    healthy = _cosine(trt, bundle, tmp_path / "healthy")
    assert trt.struck == [[]]
    assert 0.99999 < healthy < 1
    trt.planted = [fault]
    wrong = _cosine(trt, bundle, tmp_path / "wrong")
    assert len(trt.struck[-1]) == count
    assert wrong < 0.99995, (wrong, trt.struck)
    assert all(name.startswith(fault.within) for name in trt.struck[-1])


def test_versions_types_and_levels_decide_where_it_strikes(device: Device, small_bundle: Any, tmp_path: Path) -> None:
    fault = Fault("block_off", within="blocks.1", releases=frozenset({"10.3"}), types=frozenset({HALF}), least_level=3)
    for number, (release, level, precision, count) in enumerate(
        [("10.3", 3, "fp16", 1), ("10.16", 3, "fp16", 0), ("10.3", 2, "fp16", 0), ("10.3", 3, "fp32", 0)]
    ):
        trt = device(release)
        trt.planted = [fault]
        bundle = small_bundle("deit", precision)
        made = read_bundle(bundle.path, bundle.manifest)
        compiled(made, tmp_path / str(number), optimization_level=level)
        assert [len(names) for names in trt.struck] == [count], (release, level, precision)


def test_a_graph_without_the_pattern_is_compiled_rightly() -> None:
    """Three products that read one value are struck; three that read values of their own are not."""
    for apart in (False, True):
        model, struck = Fault("mixed_heads", types=frozenset({FLOAT})).plant(_three_products(apart=apart))
        assert bool(struck) is not apart
        assert (len(model.graph.node) == 6) is apart


def test_a_fragile_fault_goes_away_when_its_values_are_read() -> None:
    fault = Fault("mixed_heads", types=frozenset({FLOAT}), fragile=True)
    assert fault.plant(_three_products(apart=False))[1] == ["p2"]
    assert fault.plant(_three_products(apart=False), marked=["y1"])[1] == []


def _three_products(*, apart: bool) -> onnx.ModelProto:
    make = onnx.helper
    nodes = [make.make_node("Relu", ["x"], [f"x{n}"], name=f"r{n}") for n in range(3)]
    nodes += [make.make_node("MatMul", [f"x{n if apart else 0}", "w"], [f"y{n}"], name=f"p{n}") for n in range(3)]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    values = [make.make_tensor_value_info(name, FLOAT, [2, 4]) for name in ("x", "y0", "y1", "y2")]
    return make.make_model(make.make_graph(nodes, "three", values[:1], values[1:], [weight]))


def test_tf32_has_eleven_bits() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    rounded = round_tf32(values)
    assert ((rounded.view(np.uint32) & 0x1FFF) == 0).all()
    assert 0 < np.abs(rounded / values - 1).max() <= 2**-11
