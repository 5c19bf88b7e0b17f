"""debug on a device: the engine against the values that its bundle brought, without onnx and torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from tests.fakes.fixtures import VITS
from tests.fakes.miscompile import Fault
from vitdeploy import artifact as artifacts
from vitdeploy.artifact.layout import BLOCKS
from vitdeploy.commands import debug_on_device
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.debug import debug
from vitdeploy.progress import Silent

Device = Callable[..., Any]


@pytest.fixture
def engine(device: Device, small_bundle: Any, tmp_path: Path) -> Callable[..., Path]:
    """A compiled DeiT, with faults."""

    def make(*faults: Fault, precision: str = "fp16") -> Path:
        bundle = small_bundle("deit", precision)
        device("10.16").planted = list(faults)
        compile_bundle(bundle, tmp_path / "out", Silent())
        return tmp_path / "out"

    return make


def test_the_fault_is_named_and_shown_as_on_a_cpu(engine: Callable[..., Path]) -> None:
    folder = engine(Fault("mixed_heads", within="blocks.1"))
    shown = answer(run("debug", folder, "--json"))
    assert (shown["block"], shown["layer"], shown["evidence"]) == ("blocks.1", "blocks.1.attn.qkv.v", "compiled")
    assert [row["name"] for row in shown["blocks"]] == ["stem", *(f"blocks.{n}" for n in range(4)), "head"]
    assert shown["blocks"][1]["graph_db"] > 60 > 20 > shown["blocks"][2]["graph_db"]
    assert "built again" in shown["how"]
    text = run("debug", folder, "--quiet").out
    assert "▶ blocks.1 " in text
    assert "Inside blocks.1" in text
    assert "graph dB" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_sound_engine_does_not_diverge(engine: Callable[..., Path]) -> None:
    shown = debug(artifacts.load(engine()), None, Silent())
    assert (shown.block, shown.layer, shown.notes) == (None, None, ())
    assert (shown.data, shown.images) == ("the stored example", 1)


def test_named_images_are_compared_where_fp32_can_run(engine: Callable[..., Path]) -> None:
    """With PyTorch on the device, the engine itself is watched on the images that the user names."""
    folder = engine(Fault("block_off", within="blocks.2", size=0.4))
    images = ["--data", "demo:digits", "--images", "2"]
    shown = answer(run("debug", folder, *images, "--model", f"{VITS}:deit", "--json"))
    assert (shown["block"], shown["data"], shown["images"]) == ("blocks.2", "demo:digits", 2)
    assert shown["evidence"] == "compiled"
    assert all(row["graph_db"] is None for row in shown["blocks"])


def test_named_images_are_not_used_without_pytorch(
    engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listener(Silent):
        warnings: list[str] = []  # noqa: RUF012

        def warn(self, message: str) -> None:
            self.warnings.append(message)

    artifact = artifacts.load(engine())
    monkeypatch.setattr(debug_on_device, "_NEEDED", ("a_library_that_is_not_here",))
    assert debug(artifact, "demo:digits", Listener()).data == "the stored example"
    assert any("demo:digits is not used" in warning for warning in Listener.warnings)


def test_stored_values_that_are_damaged_end_in_one_line(engine: Callable[..., Path]) -> None:
    folder = engine()
    artifact = artifacts.load(folder)
    np.savez(folder / BLOCKS, parts=np.zeros(3, np.uint8))
    artifacts.seal(folder, artifact.manifest)
    result = run("debug", folder)
    assert result.code == 1
    assert "blocks.npz is damaged" in result.error
    assert "Export the bundle again." in result.error
