"""The place of an engine's error is found on the device: the block, and the group of operators in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.compiling import compiled, target
from tests.fakes.miscompile import Fault
from vitdeploy.artifact.layout import BLOCKS, EXAMPLE
from vitdeploy.errors import DataError
from vitdeploy.evidence import Located
from vitdeploy.pipeline.block_values import MOST_VALUES, BlockValues, load_block_values, sample, save_block_values
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.locate import locate
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import read_bundle

Find = Callable[..., Located]


@pytest.fixture
def find(device: Callable[..., Any], small_bundle: Any, tmp_path: Path) -> Find:
    """Build a model with planted faults, and locate them."""

    def build_and_locate(
        model: str, *faults: Fault, precision: str = "fp16", release: str = "10.3", **facts: Any
    ) -> Located:
        artifact = small_bundle(model, precision)
        trt = device(release)
        trt.planted = list(faults)
        for name, value in facts.items():
            setattr(trt, name, value)
        manifest = artifact.manifest
        bundle = read_bundle(artifact.path, manifest)
        values = load_block_values(artifact.path / BLOCKS)
        assert values is not None
        example = load_examples(artifact.path / EXAMPLE, manifest.preprocess, manifest.recipe.target.input)[0]
        engine = compiled(bundle, tmp_path / "engine")
        located = locate(target(), bundle, engine, values, example, tmp_path, Silent())
        assert len(trt.built) == 3, "the engine, one with block ends, one with the layers of a block"
        assert bool(trt.struck[0]) is bool(faults)
        return located

    return build_and_locate


@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8"])
def test_a_healthy_engine_has_no_fault(precision: str, find: Find) -> None:
    located = find("deit", precision=precision)
    assert (located.block, located.number, located.group, located.notes) == (None, None, None, ())
    assert located.evidence == "compiled"
    assert located.why.startswith("no block stands out")
    assert [row.name for row in located.blocks] == ["stem", *(f"blocks.{n}" for n in range(4)), "head"]
    assert all(row.graph_db is not None and row.sqnr_db is not None and row.note == "" for row in located.blocks)
    assert Located.model_validate_json(located.model_dump_json()) == located


FAULTS = [
    ("deit", Fault("mixed_heads", within="blocks.1"), "blocks.1", 1, "blocks.1.attn.qkv.v"),
    ("deit", Fault("overflow"), "blocks.0", 0, "blocks.0.attn"),
    ("rope", Fault("wrong_rotation", within="blocks.2"), "blocks.2", 2, "blocks.2.attn (sum 1)"),
    ("swin", Fault("block_off", within="layers.1.blocks.0"), "layers.1.blocks.0", 2, "layers.1.blocks.0 (sum 2)"),
    ("detector", Fault("shifted_memory", within="model.decoding.1.1"), None, 4, None),
]


@pytest.mark.parametrize(
    ("model", "fault", "block", "number", "group"), FAULTS, ids=[f"{f[0]}-{f[1].name}" for f in FAULTS]
)
def test_a_fault_is_found_in_its_block(
    model: str, fault: Fault, block: str | None, number: int, group: str | None, find: Find
) -> None:
    located = find(model, fault)
    assert located.number == number, located.why
    assert block in (None, located.block)
    assert group in (None, located.group)
    assert located.group is not None
    assert located.why.startswith(f"{located.block} is the first that is off"), located.why


def test_a_migrated_value_is_compared_with_the_graphs_own(find: Find) -> None:
    located = find("deit", Fault("mixed_heads", within="blocks.1"), precision="int8")
    assert (located.block, located.group) == ("blocks.1", "blocks.1.attn.qkv.v"), located.why
    changed = [row for row in located.groups if "on purpose" in row.note]
    assert changed
    assert all(row.sqnr_db is None and row.graph_db is not None for row in changed)


def test_int8_is_judged_by_how_far_codes_flip(find: Find, small_bundle: Any) -> None:
    """Its calibration is poor, and the wrong sign costs hardly more than that. It is found nevertheless."""
    values = load_block_values(small_bundle("rope", "int8").path / BLOCKS)
    assert values is not None
    assert set(values.moved) == {"int8"}
    located = find("rope", Fault("wrong_rotation", within="blocks.1"), precision="int8")
    assert located.block == "blocks.1", located.why
    row = located.blocks[2]
    assert row.graph_db is not None
    assert row.expected_db is not None
    assert row.graph_db > row.expected_db - 6, "within what rounding as large as the graph's own could cost"


def test_values_that_the_compiler_does_not_keep_are_named(find: Find) -> None:
    located = find("deit", Fault("block_off", within="blocks.1"), unmarkable={"blocks.1/Add_1:0"})
    assert located.block == "blocks.2", "the first that can be compared"
    assert any("does not keep the values at the end of blocks.1" in note for note in located.notes)
    rows = {row.name: row for row in located.blocks}
    assert rows["blocks.1"].graph_db is None
    assert rows["blocks.1"].note


def test_a_fault_that_goes_away_when_it_is_looked_at_is_said(find: Find) -> None:
    located = find("deit", Fault("mixed_heads", within="blocks.1", fragile=True))
    assert (located.block, located.group) == ("blocks.1", None)
    assert any("reading values inside an engine changes what is fused" in note for note in located.notes)


def test_not_a_number_is_named(find: Find) -> None:
    located = find("deit", Fault("block_off", within="blocks.1", size=float("inf")))
    assert (located.block, located.group) == ("blocks.1", "blocks.1 (sum 2)")
    assert located.why.startswith("blocks.1 gives NaN or infinity; the first such group is blocks.1 (sum 2)")


def test_samples_are_spread_bounded_and_the_same_everywhere() -> None:
    values = np.arange(197 * 768, dtype=np.float32)
    taken = sample(values.reshape(1, 197, 768), MOST_VALUES)
    assert 0.99 * MOST_VALUES < len(taken) <= MOST_VALUES
    assert len(np.unique(taken // 768)) == 197, "every token"
    assert len(np.unique(taken % 768)) > 760, "nearly every channel"
    assert [*taken[:3]] == [42.0, 84.0, 110.0]
    assert sample(values[:100], MOST_VALUES).tolist() == values[:100].tolist()


def test_the_file_is_bounded_and_reads_back(small_bundle: Any, tmp_path: Path) -> None:
    path = small_bundle("deit").path / BLOCKS
    values = load_block_values(path)
    assert values is not None
    assert set(values.emulated) == {"fp16"}
    assert values.moved == {}, "no integers, no codes that flip"
    assert save_block_values(tmp_path / "again.npz", values) == path.stat().st_size < 1 << 20
    assert load_block_values(tmp_path / "none.npz") is None
    assert all(array.size <= values.limit for array in values.float32.values())


@pytest.mark.parametrize("damage", ["cut", "parts", "number", "empty", "moved"])
def test_damage_is_refused(damage: str, small_bundle: Any, tmp_path: Path) -> None:
    path, source = tmp_path / "blocks.npz", small_bundle("deit").path / BLOCKS
    arrays = dict(np.load(source))
    if damage == "cut":
        path.write_bytes(source.read_bytes()[:-200])
    else:
        if damage == "parts":
            arrays["parts"] = np.frombuffer(json.dumps([{"name": 3}]).encode(), np.uint8)
        elif damage == "moved":
            arrays["moved.int8"] = np.zeros(3)
        elif damage == "number":
            arrays["float32.99999"] = arrays["float32.0"]
        else:
            arrays = {key: arrays[key] for key in ("limit", "indices")} | {"parts": np.frombuffer(b"[]", np.uint8)}
        np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"blocks\.npz") as error:
        load_block_values(path)
    assert error.value.fix == "Export the bundle again."
    assert BlockValues((), {}, {}).indices == ""
