"""Parsing, judging and reading evidence load no heavy library: `--help` is quick, and a Jetson needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "torchvision", "timm", "transformers", "safetensors", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_libs", "pycocotools",
)  # fmt: skip
LIGHT = (
    "artifact", "artifact.layout", "artifact.staging", "cli", "cli.views",
    "commands.bench.bench", "commands.bench.startup", "commands.compile", "commands.debug", "commands.doctor",
    "commands.evaluate.evaluate", "commands.evaluate.recorded_reference", "commands.export", "commands.gate",
    "commands.inspect.inspect", "commands.predict", "commands.report.attention_maps", "commands.report.report",
    "commands.run", "data.dataset", "data.opening", "data.preprocess", "environment", "errors", "evidence",
    "measure.accuracy", "measure.baseline", "measure.latency", "measure.resampling", "measure.statistics",
    "pipeline.finish", "recipe", "recipe.shipped", "remote.device.serve", "remote.near.commands",
    "remote.near.listing", "render.html", "render.html.page", "render.junit", "render.markdown", "render.summary",
    "render.tables", "runtime.artifact_session", "session", "targets", "targets.onnxruntime", "targets.openvino",
    "targets.tensorrt", "targets.tensorrt_rtx", "tasks.classification", "tasks.depth", "tasks.detection",
    "tasks.embedding", "tasks.segmentation", "verdict",
)  # fmt: skip


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


def test_light_modules_load_nothing_heavy() -> None:
    assert loaded_by("import vitdeploy, " + ", ".join(f"vitdeploy.{name}" for name in LIGHT)) == set()


def test_the_public_names_come_when_they_are_asked_for() -> None:
    assert loaded_by("import vitdeploy\nfor name in vitdeploy.__all__: assert getattr(vitdeploy, name)") == set()


def test_doctor_asks_every_target_without_torch() -> None:
    assert "torch" not in loaded_by("from vitdeploy.commands.doctor import doctor\ndoctor()")
