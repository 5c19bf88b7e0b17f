"""Long names in narrow columns."""

import pytest

from vitdeploy.render.names import fold_name


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("openvino-int8", ["openvino-int8"]),
        ("onnxruntime-int8-dynamic", ["onnxruntime-int8-", "dynamic"]),
        ("vit.encoder.layer.11.attention.query", ["vit.encoder.layer.", "11.attention.query"]),
        ("onnxruntime-fp32 (plain)", ["onnxruntime-fp32", "(plain)"]),
        ("x" * 30, ["x" * 30]),  # nothing to break at: the table folds it
        ("", [""]),
    ],
)
def test_names_break_after_their_separators(name: str, lines: list[str]) -> None:
    assert fold_name(name, 18).split("\n") == lines
