"""Behind a selection, debug compares the rows that both sides have selected, and says how many these are."""

from __future__ import annotations

import numpy as np
import pytest

from tests import scenes
from tests.tasks.models import FIXTURES
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.debug import debug
from vitdeploy.commands.export import export
from vitdeploy.graph.row_matching import take_common_rows
from vitdeploy.progress import Silent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scenes.write(tmp_path_factory.mktemp("scenes") / "data", 16, first=300_000))


@pytest.fixture(scope="module")
def artifact(data: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    recipe = recipes.compose(f"hf:{FIXTURES / 'lw_detr'}", target="onnxruntime", precision="int8", calibration=data)
    return export(recipe, tmp_path_factory.mktemp("lw_detr") / "artifact", Silent()).artifact


def test_a_detector_in_int8_is_compared_row_by_row(artifact: Artifact, data: str) -> None:
    divergence = debug(artifact, data, Silent(), images=8)
    alike = divergence.selected_alike_pct
    assert alike is not None
    assert 60 < alike < 100, "nothing changes places, so this shows nothing"
    head = divergence.blocks[-1]
    assert head.sqnr_db is not None
    assert head.sqnr_db > 15, "rows of different tokens would be at 0 to 5 dB"


def test_common_rows_are_those_of_the_same_index() -> None:
    one, two = np.array([[7, 3, 5], [1, 2, 4]]), np.array([[3, 9, 7], [4, 2, 1]])
    reference, other = one[:, :, None] * 10.0, two[:, :, None] * 10.0
    assert [side.tolist() for side in take_common_rows(reference, other, 1, (one, two))] == [[70, 30, 10, 20, 40]] * 2
