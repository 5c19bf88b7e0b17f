"""`--merge-tokens`: what is exported computes the merged model, and says what merging changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import listing, run, small_cnn
from tests.toys import vits
from vitdeploy.artifact import load
from vitdeploy.artifact.layout import EXAMPLE
from vitdeploy.recipe import Recipe, TokensSpec, compose

TOYS = Path(vits.__file__)
MERGE = "0:4,2:3"


def export(folder: Path, *words: str, toy: str = "deit") -> Path:
    ended = run("export", f"python:{TOYS}:{toy}", "-o", folder, "--json", *words)
    assert ended.code == 0, ended.err
    (folder.parent / "export.json").write_text(ended.out)
    return folder


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_every_attention_stays_fused_and_tokens_are_counted(target: str, tmp_path: Path) -> None:
    folder = export(tmp_path / target, "--target", target, "--merge-tokens", MERGE)
    summary = json.loads((tmp_path / "export.json").read_text())
    assert summary["tokens"]["merged"] == {"0": 4, "2": 3}
    assert summary["parity"]["max_abs"] <= 1e-4 * summary["parity"]["reference_max"]
    lost = summary["tokens"]["parity"]
    assert lost["max_abs"] > 1e-3 * lost["reference_max"]  # it is another model now, and the summary says so
    assert any("tokens merged: 4 after block 0, 3 after block 2" in note for note in summary["notes"])
    audit = json.loads(run("inspect", folder, "--json").out)
    assert audit["tokens"] == [17, 13, 13, 10]
    assert (audit["attention"]["fused"], audit["attention"]["sites"]) == (4, 4)


def test_the_model_itself_is_what_accuracy_is_compared_with(tmp_path: Path) -> None:
    """Stored examples have the answers of the merged graph, so that engines are compared with that and not with the
    model. The difference to the model is what the manifest records."""
    folder = export(tmp_path / "merged", "--target", "onnxruntime", "--merge-tokens", MERGE)
    manifest = load(folder).manifest
    with np.load(folder / EXAMPLE) as stored:
        image, answer = stored["input"], next(stored[name] for name in stored.files if name.startswith("output."))
    with torch.inference_mode():
        own = vits.deit()(torch.from_numpy(image)).numpy()
    difference = np.abs(answer - own).max()
    assert manifest.tokens is not None
    assert 0 < difference <= manifest.tokens.parity.max_abs * (1 + 1e-4)
    assert manifest.graph_parity is not None
    assert manifest.graph_parity.max_abs < difference / 100


def test_int8_is_calibrated_behind_the_merge(tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8))
    options = ("--target", "openvino", "--precision", "int8", "--calibration", str(images), "--merge-tokens", MERGE)
    folder = export(tmp_path / "int8", *options)
    audit = json.loads(run("inspect", folder, "--json").out)
    assert audit["tokens"] == [17, 13, 13, 10]
    assert audit["attention"]["fused"] == 4
    assert audit["linears"]["int8"] > 0


def test_off_changes_nothing(tmp_path: Path) -> None:
    plain = export(tmp_path / "plain", "--target", "onnxruntime")
    off = export(tmp_path / "off", "--target", "onnxruntime", "--merge-tokens", "off")
    assert (plain / "graph.onnx").read_bytes() == (off / "graph.onnx").read_bytes()
    assert load(off).manifest.tokens is None


BAD = {
    "too many": ("deit", "1:9", "after block 1: 9 tokens cannot be removed: 16 patches are there, at most 8 can"),
    "unknown block": ("deit", "4:2", "after block 4: there is no such block: the model has blocks 0 to 3"),
    "one token": ("deit", "3:1", "after block 3: only one token goes on behind its attention"),
    "windows": ("swin", "0:2", "after block 0: its attention works in windows, which cannot lose tokens"),
    "rotary positions": ("rope", "0:2", "as with rotary positions (RoPE)"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_merged_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy, blocks, words = BAD[case]
    spec = f"python:{TOYS}:{toy}"
    ended = run("export", spec, "--target", "onnxruntime", "--merge-tokens", blocks)
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.error
    assert "--merge-tokens off" in ended.error
    assert listing(tmp_path) == []


def test_a_cnn_has_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn = small_cnn(tmp_path / "cnn.onnx")
    monkeypatch.chdir(tmp_path)
    ended = run("export", cnn, "--target", "onnxruntime", "--merge-tokens", "0:2")
    assert ended.code == 1
    assert "the model has no attention, so it has no tokens to remove" in ended.error
    assert listing(tmp_path) == ["cnn.onnx"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("automatic", "is neither off nor auto nor BLOCK:REMOVED"), ("3", "is neither off nor auto nor BLOCK:REMOVED"),
        ("3:x", "is neither off nor auto nor BLOCK"), ("3:4,3:5", "a block is there twice"), ("-1:4", "is neither off"),
        ("", "is neither off"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_wrong_usage(value: str, words: str) -> None:
    ended = run("export", f"python:{TOYS}:deit", "--target", "onnxruntime", f"--merge-tokens={value}")
    assert ended.code == 2
    assert words in " ".join(ended.err.replace("│", " ").split())


@pytest.mark.parametrize("merge", ["3:40,6:60", {3: 40, 6: 60}, {"3": 40, "6": 60}])
def test_a_recipe_takes_text_and_mapping(merge: object) -> None:
    recipe = Recipe.model_validate({"model": "timm:x", "target": {"kind": "openvino"}, "tokens": {"merge": merge}})
    assert recipe.tokens == TokensSpec(merge={3: 40, 6: 60})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert compose(base=recipe, merge_tokens="off").tokens == TokensSpec()
