"""What a compiler gets of a range of image sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.graph.structure import Structure
from vitdeploy.recipe import Batch, SizeRange
from vitdeploy.targets import Bundle
from vitdeploy.targets._tensorrt.build import ShapeProfile
from vitdeploy.targets._tensorrt.engine import _make_profile
from vitdeploy.targets.openvino import OpenVINO

SIZES = SizeRange(min=(24, 32), opt=(32, 48), max=(64, 64))


def bundle(batch: Any, sizes: SizeRange | None) -> Bundle:
    count = Batch.model_validate(batch)
    structure = Structure(attention=(), linears=(), norms=(), unclassified=(), products=())
    return Bundle(Path("graph.onnx"), structure, FLOAT32, count, "image", (count.opt, 3, 32, 48), sizes)


@pytest.mark.parametrize(
    ("batch", "sizes", "profile"),
    [
        (2, None, {}),
        ("1:2:4", None, {"image": ((1, 3, 32, 48), (2, 3, 32, 48), (4, 3, 32, 48))}),
        (2, SIZES, {"image": ((2, 3, 24, 32), (2, 3, 32, 48), (2, 3, 64, 64))}),
        ("1:2:4", SIZES, {"image": ((1, 3, 24, 32), (2, 3, 32, 48), (4, 3, 64, 64))}),
    ],
)
def test_a_profile_has_the_ends_of_batch_and_size(batch: Any, sizes: SizeRange | None, profile: ShapeProfile) -> None:
    assert _make_profile(bundle(batch, sizes)) == profile
    assert bundle(batch, sizes).static == (not profile)


def test_an_npu_takes_one_size(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="NPUs take static shapes only, not images of 24x32:32x48:64x64"):
        OpenVINO(device="NPU").compile(bundle(1, SIZES), tmp_path)
