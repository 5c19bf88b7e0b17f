"""An artifact that someone else made is data: nothing that it names runs, and nothing is downloaded for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy import sources
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.errors import SourceError
from vitdeploy.pipeline import float32_graph
from vitdeploy.progress import Silent
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import _hub

BRIEF = ("--seconds", "0.2", "--threads", "1", "--json")
OWN = """
from pathlib import Path
from timm.models.vision_transformer import VisionTransformer

Path(__file__).with_name("ran").touch()

class Model(VisionTransformer):
    def forward(self, x):
        return super().forward(x) * 2.0

def build():
    model = Model(img_size=32, patch_size=8, in_chans=1, num_classes=10, embed_dim=32, depth=1, num_heads=2)
    model.vitdeploy_preprocess = {"size": [32, 32], "mean": [0.5], "std": [0.5], "channels": 1}
    return model
"""


@pytest.fixture
def hostile(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], tmp_path: Path) -> tuple[Path, Path]:
    """An artifact that names code instead of its model, and the file that the code writes."""
    (tmp_path / "evil.py").write_text(OWN)
    return named(copy(demo(target="onnxruntime")), spec=f"python:{tmp_path / 'evil.py'}:build"), tmp_path / "ran"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The artifact of a user's own model, and its spec."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "model.py").write_text(OWN)
    spec = f"python:{folder / 'model.py'}:build"
    recipe = recipes.compose(spec, target="onnxruntime", calibration="demo:digits", evaluation="demo:digits")
    exported = export(recipe, folder / "artifact", Silent())
    assert exported.artifact.model == recipe.model, "who exports it in this process has given it"
    assert any(f"--model {spec}" in note for note in exported.summary.notes)
    return folder / "artifact", spec


def named(artifact: Artifact, **model: Any) -> Path:
    """Change the model that the manifest of an artifact names."""
    file = artifact.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["recipe"]["model"] |= model
    file.write_text(json.dumps(manifest))
    return artifact.path


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--limit", "10"),
        ("eval", "--limit", "10", "--save-reference", "answers.zip"),
        ("debug", "--images", "1"),
        ("inspect", "--sensitivity", "--calibration", "demo:digits"),
    ],
    ids=["eval", "save-reference", "debug", "sensitivity"],
)
def test_what_needs_the_model_says_so_and_runs_no_code(hostile: tuple[Path, Path], words: tuple[str, ...]) -> None:
    artifact, ran = hostile
    name, *flags = words
    ended = run(name, artifact, *flags)
    assert ended.code == 1
    assert "its code does not run unless you give --model or --trust-code" in ended.error
    assert not ran.exists()


def test_bench_has_no_reference_then_and_report_no_attention_maps(hostile: tuple[Path, Path]) -> None:
    artifact, ran = hostile
    timed = run("bench", artifact, *BRIEF)
    assert timed.code == 0, timed.err
    assert [run["role"] for run in json.loads(timed.out)["runs"]] == ["artifact"]
    assert "its code does not run unless" in json.loads(timed.out)["missing"]["pytorch-fp32"]
    assert run("report", artifact).code == 0
    assert "its code does not run unless" in (artifact / "report.html").read_text()
    assert not ran.exists()


def test_trusting_an_artifact_runs_its_code(hostile: tuple[Path, Path]) -> None:
    artifact, ran = hostile
    ended = run("debug", artifact, "--trust-code")
    assert "its weights differ" in ended.error
    assert ran.exists()


def test_a_model_that_is_given_again_is_the_reference(mine: tuple[Path, str]) -> None:
    artifact, spec = mine
    assert run("eval", artifact, "--limit", "10").code == 1
    assert run("eval", artifact, "--limit", "10", "--model", spec).code == 0
    timed = run("bench", artifact, "--model", spec, *BRIEF)
    assert [run["role"] for run in json.loads(timed.out)["runs"]] == ["reference", "artifact"]


def test_it_may_have_moved_but_not_changed(mine: tuple[Path, str], tmp_path: Path) -> None:
    artifact, _ = mine
    elsewhere = tmp_path / "model.py"
    elsewhere.write_text(OWN)
    assert run("eval", artifact, "--limit", "10", "--model", f"python:{elsewhere}:build").code == 0
    (tmp_path / "changed").mkdir()
    edited = tmp_path / "changed" / "model.py"
    edited.write_text(OWN.replace("* 2.0", "* 3.0"))  # the same weights
    ended = run("eval", artifact, "--limit", "10", "--model", f"python:{edited}:build")
    assert "is not the model that was exported: its code differs" in ended.error


def test_the_flags_are_for_what_loads_the_model_here(mine: tuple[Path, str]) -> None:
    artifact, spec = mine
    assert run("inspect", artifact, "--model", spec).code == 2
    assert run("bench", artifact, "--trust-code", "--host", "ssh://nobody@127.0.0.1:1").code == 2


@pytest.mark.parametrize(
    "kwargs",
    [
        {"config": "/etc/passwd"},
        {"nested": {"url": "http://example.com/x"}},
        {"attn_implementation": "someone/kernel"},
        {"files": ["~/x"]},
        {"a\\b": 1},
    ],
)
def test_arguments_that_may_name_files_or_addresses_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="may name a file or an address"):
        sources.load_received(ModelSpec(spec="timm:vit_tiny_patch16_224", weights="random", kwargs=kwargs))


def test_they_are_refused_for_a_model_that_is_given_again_too(
    hostile: tuple[Path, Path], mine: tuple[Path, str]
) -> None:
    artifact, _ = hostile
    named(artifacts.load(artifact), kwargs={"path": "/etc/passwd"})
    ended = run("debug", artifact, "--model", mine[1])
    assert "path='/etc/passwd', which may name a file or an address" in ended.error


@pytest.mark.parametrize(
    "spec", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16", "hf:facebook/deit-tiny-patch16-224"]
)
def test_nothing_is_downloaded_for_it(spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def connects(*_: object) -> None:
        raise AssertionError("it used the network")

    monkeypatch.setattr(_hub, "_answers", connects)
    monkeypatch.setattr(socket.socket, "connect", connects)
    monkeypatch.setattr(socket, "getaddrinfo", connects)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SourceError, match="local cache"):
        sources.load_received(ModelSpec(spec=spec))


def test_a_device_without_onnx_says_what_is_missing(
    demo: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepare(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")

    monkeypatch.setattr(float32_graph, "prepare", prepare)
    with pytest.raises(SourceError, match=r"onnx_ir is not installed\. pip install"):
        float32_graph.rebuild_graph(demo(target="onnxruntime"), tmp_path, Silent(), cache=None)
