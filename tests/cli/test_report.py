"""`vitdeploy report`: the page, its JSON, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import listing, run

SECTIONS = ["latency", "accuracy", "tradeoff", "fusion", "sensitivity", "attention", "environment", "recipe"]


def test_the_page_lies_in_the_folder_and_tells_its_gaps(openvino_int8: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(openvino_int8)
    found = run("report", artifact, "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    page = artifact / "report.html"
    assert told["report"] == str(page)
    assert told["bytes"] == page.stat().st_size < 2_000_000
    assert told["verdict"] == "not judged"
    sections = {section["name"]: section for section in told["sections"]}
    assert list(sections) == SECTIONS
    missing = {name: section["fix"] for name, section in sections.items() if section["state"] == "missing"}
    assert missing == {
        "latency": f"vitdeploy bench {artifact}",
        "accuracy": f"vitdeploy eval {artifact}",
        "tradeoff": f"vitdeploy bench {artifact}",
        "sensitivity": f"vitdeploy inspect --sensitivity {artifact}",
    }
    assert run("inspect", artifact).code == 0, "the page is no part of what the manifest vouches for"


def test_evidence_fills_the_page_and_it_is_the_same_each_time(
    openvino_int8: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    artifact = copy(openvino_int8)
    assert run("eval", artifact, "--limit", "100", "--quiet").code == 0
    assert run("bench", artifact, "--seconds", "0.5", "--quiet").code == 0
    assert run("gate", artifact, "--max-drop", "50", "--quiet").code in (0, 3)
    pages = [tmp_path / "1.html", tmp_path / "2.html"]
    for page in pages:
        found = run("report", artifact, "-o", page, "--images", "1", "--quiet")
        assert found.code == 0, found.err
    assert pages[0].read_bytes() == pages[1].read_bytes()
    text = pages[0].read_text(encoding="utf-8")
    assert "4 of 4 attention sites" in text
    assert "<svg" in text
    assert "data:image/png;base64," in text


def test_without_images_attention_is_left_out(onnxruntime_fp32: Path, tmp_path: Path) -> None:
    found = run("report", onnxruntime_fp32, "-o", tmp_path / "page.html", "--images", "0", "--json")
    states = {section["name"]: section["missing"] for section in json.loads(found.out)["sections"]}
    assert states["attention"] == "attention maps were left out (--images 0)"


def test_data_that_is_not_there_is_told_in_the_page(onnxruntime_fp32: Path, tmp_path: Path) -> None:
    found = run("report", onnxruntime_fp32, "-o", tmp_path / "page.html", "--data", "nowhere", "--json")
    states = {section["name"]: section["missing"] for section in json.loads(found.out)["sections"]}
    assert states["attention"] == "there is no nowhere"


def test_without_the_extra_it_says_what_to_install(
    onnxruntime_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    found = run("report", onnxruntime_fp32, "-o", tmp_path / "page.html")
    assert found.code == 1
    assert found.error == "error: jinja2 is not installed. pip install 'vitdeploy[report]'."
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["manifest.json", "graph.onnx", "bench.json"])
def test_it_never_writes_over_the_artifact(onnxruntime_fp32: Path, name: str) -> None:
    found = run("report", onnxruntime_fp32, "-o", onnxruntime_fp32 / name)
    assert found.code == 1
    assert "is a file of the artifact" in found.error


def test_places_that_cannot_be_written(onnxruntime_fp32: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    assert "is a folder" in run("report", onnxruntime_fp32, "-o", tmp_path).error
    assert "there is no folder" in run("report", onnxruntime_fp32, "-o", tmp_path / "no" / "page.html").error
    assert "it is not an artifact" in run("report", tmp_path).error
    assert listing(tmp_path) == before
