"""Every target compiles attention of every rank and form to its fused kernel, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitdeploy
from tests import attention_forms

MODEL = f"python:{attention_forms.__file__}:every_form"
SITES = len(attention_forms.FORMS)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt-rtx"])
def test_every_form_is_one_kernel(target: str, tmp_path: Path) -> None:
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
    artifact = vitdeploy.export(MODEL, target=target, output=tmp_path / "artifact", cache=False)
    attention = vitdeploy.inspect(artifact).attention
    assert attention.sites == SITES, "the tower that no image reaches is folded and no site"
    assert attention.fused == SITES, attention.unfused


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_both_maps_of_differential_attention_are_one_kernel_each(target: str, tmp_path: Path) -> None:
    model = f"python:{attention_forms.__file__}:differential_form"
    artifact = vitdeploy.export(model, target=target, output=tmp_path / "artifact", cache=False)
    attention = vitdeploy.inspect(artifact).attention
    assert (attention.sites, attention.fused) == (2, 2), attention.unfused
