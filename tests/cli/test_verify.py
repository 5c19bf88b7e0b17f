"""A broken pass never ships: the last check refuses its numbers, and `--verify` names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.cli.conftest import listing, run, small_cnn
from vitdeploy.graph.model import Graph, array
from vitdeploy.graph.products import weight_of
from vitdeploy.passes import Pass, PassResult, order

Plant = Callable[[str], None]


class PlantedMistake(Pass):
    """Makes one weight ten percent larger."""

    def apply(self, graph: Graph) -> PassResult:
        """Change the last linear."""
        weight = [n for n in graph.nodes if weight_of(n) is not None][-1].inputs[1]
        assert weight is not None
        weight.const_value = ir.tensor(array(weight) * np.float32(1.1), name=weight.name)
        return PassResult(1)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plant:
    """Put the mistake behind one of the compiler's three lists."""
    small_cnn(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)

    def put(phase: str) -> None:
        own = getattr(order, phase)
        monkeypatch.setattr(order, phase, lambda *args, **options: [*own(*args, **options), PlantedMistake()])

    return put


def refused(*words: str) -> str:
    """The error line of an export, which leaves nothing behind."""
    found = run("export", "m.onnx", "--target", "onnxruntime", *words)
    assert (found.code, found.out) == (1, "")
    assert listing(Path.cwd()) == ["m.onnx"]
    return found.error


@pytest.mark.parametrize(
    ("phase", "precision"),
    [("raising", "fp32"), ("folding", "fp32"), ("lowering", "fp32"), ("folding", "int8-dynamic")],
)
def test_verify_names_the_first_pass_that_breaks_the_numbers(plant: Plant, phase: str, precision: str) -> None:
    plant(phase)
    line = refused("--verify", "--precision", precision)
    assert "pass planted-mistake breaks the model: the numbers differ from PyTorch's: cosine" in line
    assert line.endswith("Report it with the model's name.")


@pytest.mark.parametrize(
    ("phase", "precision"), [("folding", "fp32"), ("lowering", "fp32"), ("folding", "int8-dynamic")]
)
def test_without_verify_the_numbers_are_refused_all_the_same(plant: Plant, phase: str, precision: str) -> None:
    plant(phase)
    line = refused("--precision", precision)
    assert "the optimised graph is wrong: the numbers differ from PyTorch's" in line
    assert line.endswith("Run with --verify to find the pass.")


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_a_sound_compiler_passes(tmp_path: Path, precision: str) -> None:
    words: tuple[Any, ...] = ("--target", "onnxruntime", "--precision", precision, "--verify", "-o", tmp_path / "a")
    found = run("export", "demo:digits", *words)
    assert found.code == 0, found.err
    told = "--verify checked the passes before quantization; later passes change the numbers on purpose" in " ".join(
        found.out.split()
    )
    assert told is (precision != "fp32")
