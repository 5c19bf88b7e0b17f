"""Names are recognisable and unique, and no metadata of the exporting machine is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.conftest import EXPORTS
from tests.graphs import parsed
from vitdeploy.passes.name_nodes import NameNodes

CHAIN = (
    '<ir_version: 10, opset_import: ["" : 20]> vit (float[2] x) => (float y) { a = Relu(x) b = Relu(a) y = Relu(b) }'
)


def named(*names: str, scopes: str | None = None) -> list[str | None]:
    graph = parsed(CHAIN)
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name
        if scopes is not None:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    NameNodes().apply(graph)
    assert [node.outputs[0].name for node in graph.nodes] == [*(f"{n.name}:0" for n in list(graph.nodes)[:2]), "y"]
    return [node.name for node in graph.nodes]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("/blocks.0/a", "/blocks.0/b", "c"), ["blocks.0/a", "blocks.0/b", "c"]),
        (("", "", ""), ["Relu", "Relu_1", "Relu_2"]),
        (("a", "a", "a_1"), ["a", "a_1", "a_1_1"]),
        (("a", "a_1", "a"), ["a", "a_1", "a_2"]),
    ],
)
def test_names_are_unique_and_stay_when_they_can(names: tuple[str, str, str], wanted: list[str]) -> None:
    assert named(*names) == wanted


def test_module_scopes_name_nodes() -> None:
    scopes = "['', 'blocks.0', 'blocks.0.mlp', 'relu_1']"
    assert named("x", "y", "z", scopes=scopes) == ["blocks.0.mlp/Relu", "blocks.0.mlp/Relu_1", "blocks.0.mlp/Relu_2"]
    assert named("x", "y", "z", scopes="['', 'relu_1']")[0] == "model/Relu"


def test_scopes_are_read_never_run(tmp_path: Path) -> None:
    file = tmp_path / "written"
    assert named("x", "y", "z", scopes=f"[open({str(file)!r}, 'w')]") == ["x", "y", "z"]
    assert not file.exists()


@pytest.mark.parametrize("kind", EXPORTS)
def test_nothing_of_the_exporting_machine_is_left(kind: str, exported: Callable[[str], bytes]) -> None:
    graph = parsed(exported(kind))
    NameNodes().apply(graph)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names) > 20
    text = ir.to_proto(graph.model).SerializeToString()
    assert b".py" not in text
    assert b"metadata" not in text
    assert b"site-packages" not in text


def test_the_exporter_does_leave_paths(exported: Callable[[str], bytes]) -> None:
    """The test above rests on this."""
    assert b".py" in exported("dynamo")
