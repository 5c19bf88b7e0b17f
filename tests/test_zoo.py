"""A small cut of the zoo: every attention that the model itself computes is raised and fused, with its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo import models

CUT = ["textbook", "textbook, masked", "timm levit_128s", "hf segformer"]


@pytest.mark.parametrize("name", CUT)
def test_every_attention_of_the_model_fuses(name: str, tmp_path: Path) -> None:
    spec = f"python:{models.__name__}:build"
    sites = models.attention_calls(models.build(name), models.MODELS[name].size)
    assert sites > 0
    for target in ("openvino", "onnxruntime"):
        row = zoo._row(name, "module", spec, target, sites, tmp_path / target)
        assert (row.raised, row.fused) == (str(sites), str(sites)), row
        assert float(row.difference) <= zoo.LARGEST_RELATIVE_DIFFERENCE, row


def test_a_returned_map_is_refused_and_counted(tmp_path: Path) -> None:
    spec = f"python:{models.__name__}:build"
    row = zoo._row("textbook, returns its map", "module", spec, "onnxruntime", 2, tmp_path / "a")
    assert (row.raised, row.fused) == ("1", "1")
    assert "attention map is read by something else" in row.note
