"""Long names in narrow columns."""

import pytest

from vitdeploy.render.names import fold_name, shorten_paths


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("openvino-int8", ["openvino-int8"]),
        ("onnxruntime-int8-dynamic", ["onnxruntime-int8-", "dynamic"]),
        ("vit.encoder.layer.11.attention.query", ["vit.encoder.layer.", "11.attention.query"]),
        ("python:…/work/model.py:build", ["python:…/work/", "model.py:build"]),
        ("weights: …/fashion/v.pth", ["weights:", "…/fashion/v.pth"]),
        ("onnxruntime-fp32 (plain)", ["onnxruntime-fp32", "(plain)"]),
        ("x" * 30, ["x" * 30]),  # nothing to break at: the table folds it
        ("", [""]),
    ],
)
def test_names_break_after_their_separators(name: str, lines: list[str]) -> None:
    assert fold_name(name, 18).split("\n") == lines


@pytest.mark.parametrize(
    ("texts", "shorter"),
    [
        (["demo:digits", "timm:deit_tiny_patch16_224", "hf:google/vit-base"], {}),
        (
            ["python:/home/me/work/model.py:build"],
            {"python:/home/me/work/model.py:build": "python:…/work/model.py:build"},
        ),
        (
            ["{spec: 'python:/a/b/c/m.py:f', weights: /a/1/v.pth}"],
            {"{spec: 'python:/a/b/c/m.py:f', weights: /a/1/v.pth}": "{spec: 'python:…/c/m.py:f', weights: …/1/v.pth}"},
        ),
        (["runs/old/weights/best.pth"], {"runs/old/weights/best.pth": "…/weights/best.pth"}),
        (["/me/work/m.onnx", "/me/work/m.onnx"], {"/me/work/m.onnx": "…/work/m.onnx"}),
    ],
)
def test_the_first_folders_of_paths_are_left_out(texts: list[str], shorter: dict[str, str]) -> None:
    assert shorten_paths(texts) == shorter


def test_different_paths_stay_different() -> None:
    old, new = "/me/runs/old/weights/best.pth", "/me/runs/new/weights/best.pth"
    assert shorten_paths([old, new]) == {old: "…/old/weights/best.pth", new: "…/new/weights/best.pth"}
    deep = [f"/{n}/b/c/d/e/f/g/h/i/j.onnx" for n in range(2)]
    assert shorten_paths(deep) == {}
