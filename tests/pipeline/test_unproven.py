"""An export names the outputs for which parity proves nothing; debug compares where a part reads the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run

MODEL = '''
import torch
from torch import nn


class Small(nn.Module):
    """Without attention, so one part from the image to the outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 4)
        self.anchors = nn.Parameter(torch.rand(1, 5))

    def forward(self, image):
        x = self.head(self.stem(image).flatten(2).mean(-1))
        return {"logits": x, "anchors": self.anchors.expand(len(image), -1), "denormal": x * 1e-20 * 1e-20}


def build():
    torch.manual_seed(0)
    return Small().eval()
'''


@pytest.mark.slow
def test_denormal_outputs_are_doubts_and_blind_ones_a_note_beside_others(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(MODEL)
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8))
    out, spec = tmp_path / "out", f"python:{tmp_path / 'small.py'}:build"
    ended = run("export", spec, "--target", "openvino", "--image-size", "32x32", "-o", out, "--json", "--no-cache")
    assert ended.code == 0, ended.err
    manifest = json.loads((out / "manifest.json").read_text())
    audit = json.loads((out / "audit.json").read_text())
    assert manifest["export"]["blind_outputs"] == ["anchors"]
    for doubts in (manifest["doubts"], audit["doubts"]):
        assert all("'denormal'" in doubt for doubt in doubts), doubts  # whether an engine flushes is its own affair
    assert [n for n in json.loads(ended.out)["notes"] if n.startswith("the same for all example images: anchors.")]
    ended = run("debug", out, "--data", tmp_path / "data.npz", "--model", spec, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["block"] is None
    assert [row["name"] for row in found["blocks"]] == ["model"]
    assert {row["name"] for row in found["layers"] if row["sqnr_db"] is not None} >= {"model.stem", "model.head"}


def test_a_model_whose_answer_is_blind_passes_no_gate(tmp_path: Path) -> None:
    """Of a detector whose scores and boxes are constants, only a feature that nobody reads depends on the image."""
    constant = "self.anchors.expand(len(image), -1)[:, None]"
    returned = f'return {{"pred_boxes": {constant}[..., :4] * 1, "logits": {constant}, "feature": x'
    line = MODEL[MODEL.index("        return {") :].partition("\n")[0]
    (tmp_path / "blind.py").write_text(MODEL.replace(line, f"        {returned}}}"))
    out, spec = tmp_path / "out", f"python:{tmp_path / 'blind.py'}:build"
    words = ("export", spec, "--target", "onnxruntime", "--image-size", "32x32", "-o", out, "--no-cache", "--force")
    for more in ((), ("--all-outputs",)):
        ended = run(*words, "--task", "detection", *more)
        assert ended.code == 0, ended.err
        doubts = json.loads((out / "manifest.json").read_text())["doubts"]
        assert {doubt.split("'")[1] for doubt in doubts} == {"logits", "pred_boxes"}
        gated = run("gate", out, "--max-size", 100, "--json")
        assert gated.code == 3
        checks = {check["name"]: check for check in json.loads(gated.out)["checks"]}
        assert "is the same for all" in checks["audit without doubts"]["why"]
