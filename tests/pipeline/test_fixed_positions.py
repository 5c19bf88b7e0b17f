"""`--drop-tokens`: which positions are dropped, and what an artifact with them computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import listing, run, small_cnn
from tests.toys import merging, vits
from vitdeploy.artifact import load
from vitdeploy.artifact.layout import EXAMPLE
from vitdeploy.pipeline.fixed_positions import drop_most_alike
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.progress import Silent
from vitdeploy.recipe import Recipe, TokensSpec, compose

TOYS, MERGING = Path(vits.__file__), Path(merging.__file__)


def camera(folder: Path, *, still: bool = True) -> Path:
    """Pictures of a camera in which the left half never shows more than one colour, and the right half always does."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    if still:
        pictures[:, :, :16] = 90
    path = folder / "camera.npz"
    np.savez(path, images=pictures)
    return path


def export(spec: str, folder: Path, *words: object) -> dict[str, Any]:
    ended = run("export", spec, "-o", folder, "--json", *words)
    assert ended.code == 0, ended.err
    summary: dict[str, Any] = json.loads(ended.out)
    return summary


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_is_plain_in_every_picture_is_dropped(target: str, tmp_path: Path) -> None:
    """Without positions added, plain patches have one key, so they are most alike."""
    plain = tmp_path / "plain.py"
    plain.write_text(
        "from tests.toys.merging import vit\n"
        "def build():\n"
        "    model = vit(1, 'class', positions=False)\n"
        "    model.vitdeploy_preprocess = {'size': (32, 32), 'mean': (0.5,) * 3, 'std': (0.25,) * 3}\n"
        "    return model\n"
    )
    drop = ("--drop-tokens", "0:4,1:3", "--calibration", camera(tmp_path))
    summary = export(f"python:{plain}:build", tmp_path / "out", "--target", target, *drop)
    dropped = {
        int(block): {int(a): b for a, b in pairs.items()} for block, pairs in summary["tokens"]["dropped"].items()
    }
    left_half = {row * 4 + column for row in range(4) for column in (0, 1)}
    assert {block: len(pairs) for block, pairs in dropped.items()} == {0: 4, 1: 3}
    gone = [patch for pairs in dropped.values() for patch in pairs]
    assert set(gone) == left_half - {patch for pairs in (dropped[1],) for patch in pairs.values()}
    assert all(other in left_half for pairs in dropped.values() for other in pairs.values())
    assert summary["tokens"]["merged"] == {}
    assert any(
        "tokens dropped: 4 after block 0, 3 after block 1; positions chosen on 24 images" in note
        for note in summary["notes"]
    )
    audit = json.loads(run("inspect", tmp_path / "out", "--json").out)
    assert audit["tokens"] == [17, 13, 10, 10]
    assert (audit["attention"]["fused"], audit["attention"]["sites"]) == (4, 4)


def test_the_artifact_computes_the_model_without_these_positions(tmp_path: Path) -> None:
    dense = tmp_path / "dense.py"
    dense.write_text(
        "from tests.toys.merging import vit\n"
        "def build():\n"
        "    model = vit(1, 'dense')\n"
        "    model.vitdeploy_preprocess = {'size': (32, 32), 'mean': (0.5,) * 3, 'std': (0.25,) * 3}\n"
        "    return model\n"
    )
    drop = ("--drop-tokens", "0:5,2:3", "--calibration", camera(tmp_path, still=False), "--task", "raw")
    folder = tmp_path / "out"
    export(f"python:{dense}:build", folder, "--target", "openvino", *drop)
    manifest = load(folder).manifest
    assert manifest.tokens is not None
    with np.load(folder / EXAMPLE) as stored:
        image, answer = stored["input"], next(stored[name] for name in stored.files if name.startswith("output."))
    with torch.inference_mode():
        wanted = merging.vit(1, "dense").dropped(torch.from_numpy(image), manifest.tokens.dropped).numpy()
    assert np.abs(answer - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert manifest.device_parity is not None
    assert manifest.device_parity.max_abs <= 1e-3 * np.abs(wanted).max()


def test_the_graph_is_rebuilt_with_the_same_positions(tmp_path: Path) -> None:
    """On other images others would be chosen, and `debug` would compare two models."""
    folder, spec = tmp_path / "out", f"python:{TOYS}:deit"
    export(spec, folder, "--target", "onnxruntime", "--drop-tokens", "1:6", "--calibration", camera(tmp_path))
    artifact = load(folder)
    assert artifact.manifest.tokens is not None
    assert artifact.manifest.tokens.calibration is not None
    (tmp_path / "other").mkdir()
    (tmp_path / "work").mkdir()
    trusted = dataclasses.replace(artifact, model=artifact.manifest.recipe.model)
    other = str(camera(tmp_path / "other", still=False))
    prepared = rebuild_graph(trusted, tmp_path / "work", Silent(), calibration=other, cache=None)
    assert prepared.facts.tokens is not None
    assert prepared.facts.tokens.dropped == artifact.manifest.tokens.dropped


def test_int8_is_calibrated_behind_the_drop(tmp_path: Path) -> None:
    images = camera(tmp_path)
    options = ("--target", "openvino", "--precision", "int8", "--calibration", images, "--drop-tokens", "0:8")
    export(f"python:{TOYS}:deit", tmp_path / "int8", *options)
    audit = json.loads(run("inspect", tmp_path / "int8", "--json").out)
    assert audit["tokens"] == [17, 9, 9, 9]
    assert audit["linears"]["int8"] > 0


def test_most_alike_goes_first_and_the_nearest_stands_in() -> None:
    similarity = np.array(
        [[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.3, 0.8], [0.1, 0.3, 1.0, 0.4], [0.2, 0.8, 0.4, 1.0]]
    )  # fmt: skip
    assert drop_most_alike(similarity, 1) == {1: 0}  # of 0 and 1, 1 is more like the others
    assert drop_most_alike(similarity, 2) == {1: 0, 3: 2} or drop_most_alike(similarity, 2) == {1: 0, 2: 3}
    assert set(drop_most_alike(similarity, 3)) < {0, 1, 2, 3}


def test_each_step_takes_one_of_the_most_similar_pair() -> None:
    rng = np.random.default_rng(3)
    keys = rng.normal(size=(40, 6))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    similarity, left = keys @ keys.T, list(range(40))
    for gone in range(1, 30):
        pairs = similarity[np.ix_(left, left)] - 2 * np.eye(len(left))
        first, second = np.unravel_index(pairs.argmax(), pairs.shape)
        dropped = set(drop_most_alike(similarity, gone))
        (new,) = dropped - (set(range(40)) - set(left))
        assert new in (left[first], left[second])
        left.remove(new)


BAD = {
    "too many": ("deit", "1:16", "after block 1: 16 tokens cannot be removed: 16 patches are there, at most 15 can"),
    "unknown block": ("deit", "4:2", "after block 4: there is no such block: the model has blocks 0 to 3"),
    "one token": ("deit", "3:1", "after block 3: only one token goes on behind its attention"),
    "windows": ("swin", "0:2", "after block 0: its attention works in windows, which cannot lose tokens"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_dropped_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = camera(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    toy, blocks, words = BAD[case]
    options = ("--target", "onnxruntime", "--drop-tokens", blocks, "--calibration", images)
    ended = run("export", f"python:{TOYS}:{toy}", *options)
    assert (ended.code, ended.out) == (1, "")
    assert f"tokens cannot be dropped {words}" in ended.error
    assert "--drop-tokens off" in ended.error
    assert listing(tmp_path / "here") == []


def test_a_cnn_has_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cnn, images = small_cnn(tmp_path / "cnn.onnx"), camera(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = run("export", cnn, "--target", "onnxruntime", "--drop-tokens", "0:2", "--calibration", images)
    assert ended.code == 1
    assert "the model has no attention, so it has no tokens to remove" in ended.error


def test_without_images_nothing_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("export", f"python:{TOYS}:deit", "--target", "openvino", "--drop-tokens", "0:2")
    assert ended.code == 1
    assert "--drop-tokens needs calibration images" in ended.error
    assert "--calibration DATA" in ended.error
    assert listing(tmp_path) == []


def test_merging_and_dropping_exclude_each_other() -> None:
    words = (
        "export",
        f"python:{TOYS}:deit",
        "--target",
        "onnxruntime",
        "--merge-tokens",
        "0:2",
        "--drop-tokens",
        "1:2",
    )
    ended = run(*words)
    assert ended.code == 2
    assert "give either --merge-tokens or --drop-tokens" in " ".join(ended.err.replace("│", " ").split())
    base = Recipe.model_validate({"model": "timm:x", "target": {"kind": "openvino"}, "tokens": {"drop": "3:40"}})
    with pytest.raises(Exception, match="tokens are either merged or dropped"):
        compose(base=base, merge_tokens="2:4")
    assert compose(base=base, merge_tokens="2:4", drop_tokens="off").tokens == TokensSpec(merge={2: 4})


def test_a_value_that_cannot_be_is_wrong_usage() -> None:
    ended = run("export", f"python:{TOYS}:deit", "--target", "onnxruntime", "--drop-tokens=3")
    assert ended.code == 2
    assert "is neither off nor BLOCK:REMOVED" in " ".join(ended.err.replace("│", " ").split())
