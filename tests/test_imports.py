"""Parsing, judging and reading evidence load no heavy library: `--help` is quick, and a Jetson needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitdeploy

HEAVY = (
    "torch", "torchvision", "timm", "transformers", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_libs", "pycocotools",
)  # fmt: skip
PACKAGE = Path(vitdeploy.__file__).parent
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.name != "__main__.py" and (file.parent / "__init__.py").exists()
}
"""All modules. A folder without __init__.py has none: what is in it is copied into packages, and runs on a server."""
GRAPH_ROOMS = ("vitdeploy.passes", "vitdeploy.quantize")
"""Every module in these packages works on ONNX graphs."""
GRAPH_MODULES = {
    f"vitdeploy.{name}"
    for name in (
        "calibrate.search", "commands.inspect.sensitivity", "graph.axes", "graph.blocks",
        "graph.casts", "graph.channel_moves", "graph.extra_outputs", "graph.flow", "graph.forced_selection",
        "graph.fresh_names", "graph.merge_ties", "graph.model", "graph.one_image", "graph.probabilities",
        "graph.products",
        "graph.query_decoder", "graph.recognize", "graph.regions", "graph.risky_forms", "graph.screening",
        "graph.selection", "graph.selection_edges", "graph.shared_weights", "graph.softmaxes", "graph.widening",
        "sources._bound",
        "sources._image_encoders", "sources._pixel_mask", "sources._promptable", "sources._prompted_detectors",
        "sources._siglip2", "sources._two_towers",
    )
}  # fmt: skip
"""Other modules that work on ONNX graphs, or define a module of PyTorch. All others are light."""


def loaded_by(code: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has after `code`."""
    tail = f"import sys; print('LOADED', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import onnx_ir") >= {"onnx_ir"}


@pytest.mark.parametrize(
    "words", [["--help"], ["export", "--help"], ["gate", "--help"], ["recipes"], ["--version"]], ids=" ".join
)
def test_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['vitdeploy', *{words!r}]\nfrom vitdeploy.cli import main\ntry: main()\n"
    code += "except SystemExit as end: assert not end.code"
    tail = f"print('LOADED', *sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1] == "LOADED", "and nothing after it"
    assert found.stdout.strip()


def test_only_modules_that_work_on_graphs_load_anything_heavy() -> None:
    assert set(MODULES) >= GRAPH_MODULES, "the list names a module that is gone"
    light = [name for name in MODULES if not name.startswith(GRAPH_ROOMS) and name not in GRAPH_MODULES]
    assert loaded_by(f"import {', '.join(light)}") == set()


def test_the_public_names_come_when_they_are_asked_for() -> None:
    assert loaded_by("import vitdeploy\nfor name in vitdeploy.__all__: assert getattr(vitdeploy, name)") == set()


def test_doctor_asks_every_target_without_torch() -> None:
    assert "torch" not in loaded_by("from vitdeploy.commands.doctor import doctor\ndoctor()")


def test_no_two_public_classes_have_one_name() -> None:
    """Also where nobody imports both: a reader who looks for a class by its name finds one."""
    places: dict[str, list[str]] = {}
    for name, file in MODULES.items():
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert len(places) > 100
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
