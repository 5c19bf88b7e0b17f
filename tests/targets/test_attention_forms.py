"""Every target compiles attention of every rank and form to its fused kernel, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitdeploy
from tests import attention_forms

MODEL = f"python:{attention_forms.__file__}:every_form"
SITES = len(attention_forms.FORMS)
CHANNELS_FIRST = "OpenVINO does not fuse attention whose q or v is channels first"


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt-rtx"])
def test_every_form_is_one_kernel(target: str, tmp_path: Path) -> None:
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
    artifact = vitdeploy.export(MODEL, target=target, output=tmp_path / "artifact", cache=False)
    attention = vitdeploy.inspect(artifact).attention
    assert attention.sites == SITES, "the tower that no image reaches is folded and no site"
    left = {site.site: site.reason for site in attention.unfused}
    expected = [True] if target == "openvino" else []
    assert [CHANNELS_FIRST in reason for reason in left.values()] == expected, left
    assert attention.fused == SITES - len(left)
