"""A detector whose rows change places exports; one whose export moves a box does not."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitdeploy
from tests import two_stages
from vitdeploy.artifact.layout import EXAMPLE
from vitdeploy.errors import ExportError
from vitdeploy.pipeline.examples import load_examples


def export(factory: str, output: Path, target: str = "openvino") -> vitdeploy.Artifact:
    return vitdeploy.export(
        f"python:{two_stages.__file__}:{factory}", target=target, task="detection", output=output, cache=False
    )


def test_rows_that_are_nearly_tied_are_compared_as_a_set(tmp_path: Path) -> None:
    artifact = export("near_ties", tmp_path / "artifact")
    parity = artifact.manifest.graph_parity
    assert parity is not None
    assert {output.name for output in parity.outputs} == {"logits", "pred_boxes"}
    assert max(output.max_abs for output in parity.outputs) < 1e-4
    assert max(output.moved_rows for output in parity.outputs) > 1, "this detector shows nothing otherwise"


def test_a_bundle_takes_along_which_rows_are_a_set(tmp_path: Path) -> None:
    artifact = export("near_ties", tmp_path / "bundle", target="tensorrt")
    for example in load_examples(tmp_path / "bundle" / EXAMPLE, artifact.manifest.preprocess, "normalized"):
        assert example.selected == {"logits": 1, "pred_boxes": 1}


def test_a_wrong_box_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the numbers differ from PyTorch's.*in output 'pred_boxes'"):
        export("wrong", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
