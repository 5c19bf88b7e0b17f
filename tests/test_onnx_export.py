"""The first exporter whose graph gives PyTorch's numbers wins; a wrong graph never does."""

from __future__ import annotations

import gc
import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.graphs import WIDTH, images, redrawn, tiny_vit
from vitdeploy import onnx_export as exporting
from vitdeploy.errors import ExportError
from vitdeploy.onnx_export import Example, export
from vitdeploy.recipe import Batch
from vitdeploy.session import Array, named_outputs


def example(module: nn.Module, x: Array) -> Example:
    with torch.inference_mode():
        outputs = named_outputs(module(torch.from_numpy(x)))
    return Example(x, {name: value.numpy() for name, value in outputs.items()})


def exported_to(module: nn.Module, path: Path, *batches: int, batch: Any = 1) -> Any:
    examples = [example(module, images(size, seed)) for seed, size in enumerate(batches or (1,))]
    return export(module, examples, input_name="pixels", batch=Batch.model_validate(batch), path=path)


def test_the_first_exporter_keeps_attention_as_one_operator(vit: nn.Module, tmp_path: Path) -> None:
    record = exported_to(vit, tmp_path / "model.onnx")
    assert (record.exporter, record.opset, record.fallbacks) == ("dynamo", 23, ())
    assert record.parity.max_abs < 1e-5
    assert record.parity.batches == (1,)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("Attention") == 2
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_value) for i in graph.input] == [("pixels", 1)]


def test_a_dynamic_batch_is_checked_at_every_size(vit: nn.Module, tmp_path: Path) -> None:
    record = exported_to(vit, tmp_path / "model.onnx", 2, 1, 4, batch="1:2:4")
    assert record.parity.batches == (2, 1, 4)
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_an_export_keeps_no_weights(tmp_path: Path) -> None:
    module = tiny_vit()
    weights = [weakref.ref(parameter) for parameter in module.parameters()]
    exported_to(module, tmp_path / "model.onnx")
    del module
    gc.collect()
    assert [weight() for weight in weights if weight() is not None] == []


class Named(nn.Module):
    """Returns tensors by name, and other things, as Hugging Face models do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.model(x)
        return OrderedDict(logits=logits, loss=None, doubled=2 * logits)


def test_named_outputs_keep_their_names(vit: nn.Module, tmp_path: Path) -> None:
    exported_to(Named(vit), tmp_path / "model.onnx")
    assert [o.name for o in onnx.load(tmp_path / "model.onnx").graph.output] == ["logits", "doubled"]


class OneWay(nn.Module):
    """A model that computes other numbers while one of the `fooled` exporters traces it."""

    def __init__(self, *fooled: str) -> None:
        super().__init__()
        self.linear, self.fooled = nn.Linear(WIDTH, 10), fooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x.flatten(1)[:, :WIDTH])
        exporter = "legacy" if torch.jit.is_tracing() else "dynamo" if torch.compiler.is_exporting() else None
        return y + 1.0 if exporter in self.fooled else y


def test_wrong_numbers_are_no_export(tmp_path: Path) -> None:
    record = exported_to(redrawn(OneWay("dynamo")), tmp_path / "model.onnx")
    assert (record.exporter, record.opset) == ("legacy", 20)
    assert [a.exporter for a in record.fallbacks] == ["dynamo"]
    assert "the numbers differ from PyTorch's" in record.fallbacks[0].error
    assert record.parity.max_abs < 1e-5


def test_a_model_that_no_exporter_gets_right_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"dynamo: the numbers differ.*legacy: the numbers differ.*pass FILE\.onnx"):
        exported_to(redrawn(OneWay("dynamo", "legacy")), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class NoOperator(nn.Module):
    """A model that calls a function without an ONNX operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


def test_exporters_that_fail_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--json` owns stdout, and TorchScript's exporter prints its graph there when it fails."""
    with pytest.raises(ExportError, match=r"dynamo: \S+.*legacy: \S+"):
        exported_to(NoOperator(), tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    before = (logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled())
    exported_to(redrawn(OneWay("dynamo")), tmp_path / "model.onnx")
    after = (logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled())
    assert after == before


def test_the_worst_batch_decides(vit: nn.Module, tmp_path: Path) -> None:
    exported_to(vit, tmp_path / "model.onnx", 2, 1, batch="1:2:2")
    good, other = example(vit, images(2)), example(vit, images(1))
    bad = {name: value + np.float32(0.1) for name, value in other.outputs.items()}
    parity = exporting.check(tmp_path / "model.onnx", [good, Example(other.image, bad)], "pixels")
    assert parity.max_abs == pytest.approx(0.1, rel=1e-3)
    assert exporting.disagreement(parity) is not None
    assert exporting.disagreement(exporting.check(tmp_path / "model.onnx", [good], "pixels")) is None
