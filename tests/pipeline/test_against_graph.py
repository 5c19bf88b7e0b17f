"""An INT8 engine is compared with the graph that it was made from, and not only with FP32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.compiling import compiled, target
from tests.fakes.miscompile import Fault
from vitdeploy.artifact.layout import BLOCKS, EXAMPLE
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.pipeline.against_graph import explain_other_codes
from vitdeploy.pipeline.block_values import BlockValues, load_block_values
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import read_bundle
from vitdeploy.session import Array
from vitdeploy.targets import Bundle

ROTATION = Fault("wrong_rotation", within="blocks.1")
Ran = tuple[Bundle, BlockValues, dict[str, Array]]


@pytest.fixture
def ran(device: Callable[..., Any], small_bundle: Any, tmp_path: Path) -> Callable[..., Ran]:
    """Build a model with planted faults. Return the graph, what its bundle has stored, and the engine's outputs."""

    def run(model: str, *faults: Fault, precision: str = "int8", seed: int = 0) -> Ran:
        artifact = small_bundle(model, precision)
        trt = device("10.3")
        trt.planted, trt.seed = [*faults], seed
        bundle = read_bundle(artifact.path, artifact.manifest)
        values = load_block_values(artifact.path / BLOCKS)
        assert values is not None
        form = artifact.manifest.recipe.target.input
        example = load_examples(artifact.path / EXAMPLE, artifact.manifest.preprocess, form)[0]
        with target().open(compiled(bundle, tmp_path / "engine"), bundle.numbers, 1) as session:
            return bundle, values, dict(session.run(example.feed(bundle.input_name)))

    return run


@pytest.mark.parametrize("model", ["deit", "rope", "swin", "detector"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_engine_gives_what_its_graph_gives(model: str, seed: int, ran: Callable[..., Ran]) -> None:
    bundle, values, outputs = ran(model, seed=seed)
    assert {spot.tensor for spot in values.outputs} == set(outputs), "nothing is compared of what is not stored"
    assert explain_other_codes(bundle, values, outputs, 1, on_gpu=True) == ""


def test_a_fault_that_costs_less_than_quantization_is_noticed(ran: Callable[..., Ran]) -> None:
    bundle, values, outputs = ran("rope", ROTATION)
    reason = explain_other_codes(bundle, values, outputs, 1, on_gpu=True)
    assert reason.startswith("output 'output' is "), reason
    assert reason.endswith(" dB or more")
    assert explain_other_codes(bundle, replace(values, outputs=()), outputs, 1, on_gpu=True) == "", "of an older bundle"
    assert explain_other_codes(bundle, replace(values, moved={}), outputs, 1, on_gpu=True) == "", "without integers"


def test_not_a_number_is_no_answer_of_a_sound_engine(ran: Callable[..., Ran]) -> None:
    bundle, values, outputs = ran("deit")
    outputs["output"][0, 3] = float("nan")
    assert "-200.0 dB" in explain_other_codes(bundle, values, outputs, 1, on_gpu=True)


def test_outputs_that_are_selected_by_score_are_not_stored(small_bundle: Any) -> None:
    """Their rows are a set: engines may order them otherwise."""
    values = load_block_values(small_bundle("selecting_detector", "int8").path / BLOCKS)
    assert values is not None
    assert values.outputs == ()


def test_compile_doubts_such_an_engine(device: Callable[..., Any], small_bundle: Any, tmp_path: Path) -> None:
    trt = device("10.3")
    sound = compile_bundle(small_bundle("rope", "int8"), tmp_path / "sound", Silent()).artifact.manifest
    assert not any("computes other numbers" in doubt for doubt in sound.doubts)
    trt.planted = [ROTATION]
    off = compile_bundle(small_bundle("rope", "int8"), tmp_path / "off", Silent()).artifact.manifest
    [doubt] = [doubt for doubt in off.doubts if "computes other numbers" in doubt]
    assert "which has the same integers" in doubt
