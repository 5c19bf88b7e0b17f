"""The first exporter whose graph gives PyTorch's numbers wins; a wrong graph never does."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
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


class AttentionOf(nn.Module):
    """scaled_dot_product_attention on as many axes as `shape` and `mask` say."""

    def __init__(self, shape: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.shape = shape
        self.mask = None if mask is None else nn.Parameter(torch.randn(mask))
        self.attend = nn.functional.scaled_dot_product_attention  # a name of its own

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.flatten(1)[:, : 16 * WIDTH].view(-1, WIDTH)
        q, k, v = (f(t).view(self.shape) for f in (self.q, self.k, nn.Identity()))
        return self.attend(q, k, v, attn_mask=self.mask).reshape(len(x), -1)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((16, WIDTH), None),
        ((16, WIDTH), (16, 16)),
        ((1, 16, WIDTH), None),
        ((1, 16, WIDTH), (1, 16, 16)),
        ((4, 4, WIDTH), (4, 1, 4)),
        ((2, 2, 1, 4, WIDTH), None),
        ((2, 2, 1, 4, WIDTH), (2, 1, 1, 4, 4)),
        ((1, 2, 2, 2, 2, WIDTH), (2, 2)),
    ],
)
def test_attention_of_any_rank_stays_one_operator(
    shape: tuple[int, ...], mask: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """The exporter itself asserts that there are four axes."""
    record = exported_to(redrawn(AttentionOf(shape, mask)), tmp_path / "model.onnx")
    assert (record.exporter, record.fallbacks) == ("dynamo", ())
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("Attention") == 1


class SharedHeads(nn.Module):
    """Keys and values of fewer heads, or of fewer images, than the queries."""

    def __init__(self, q: tuple[int, ...], kv: tuple[int, ...], *, grouped: bool) -> None:
        super().__init__()
        self.q, self.kv, self.grouped = q, kv, grouped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1)[:, : 32 * WIDTH].view(-1, WIDTH)
        q, kv = (rows[: math.prod(shape)].view(*shape, WIDTH) for shape in (self.q, self.kv))
        return nn.functional.scaled_dot_product_attention(q, kv, 2 * kv, enable_gqa=self.grouped).flatten(1)


@pytest.mark.parametrize(
    ("q", "kv", "grouped"),
    [
        ((1, 4, 8), (1, 1, 8), False),  # PyTorch broadcasts one head: MobileNetV5 in timm
        ((1, 4, 8), (1, 2, 8), True),
        ((1, 4, 8), (1, 4, 8), True),  # as many heads as the queries
        ((1, 2, 4), (2, 2, 4), False),  # learned queries
        ((2, 4, 4), (1, 1, 4), False),
        ((4, 8), (2, 8), True),  # no axis of images
        ((1, 1, 8), (1, 4, 8), False),
    ],
)
def test_heads_that_pytorch_shares_stay_one_operator(
    q: tuple[int, ...], kv: tuple[int, ...], *, grouped: bool, tmp_path: Path
) -> None:
    """The exporter asserts one head of keys for each of the queries, or fewer where it is told that they are shared."""
    record = exported_to(SharedHeads(q, kv, grouped=grouped), tmp_path / "model.onnx", 1)
    assert (record.exporter, record.fallbacks) == ("dynamo", ())
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node].count("Attention") == 1


class Pooled(nn.Module):
    """A pooling to cells of unequal sizes that a convolution reads, as in UPerNet's pyramid."""

    def __init__(self, cells: Any) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(cells), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.pool(x))


@pytest.mark.parametrize("cells", [3, (7, 3), (None, 5), (20, 6)])
def test_unequal_cells_are_pooled_by_two_products(cells: Any, tmp_path: Path) -> None:
    record = exported_to(redrawn(Pooled(cells)), tmp_path / "model.onnx")
    assert (record.exporter, record.fallbacks) == ("dynamo", ())
    types = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert types == ["MatMul", "MatMul", "Conv"]


def test_equal_cells_are_pooled_as_before(tmp_path: Path) -> None:
    exported_to(redrawn(Pooled(2)), tmp_path / "model.onnx")
    assert "MatMul" not in [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]


class ClampedTwice(nn.Module):
    """inverse_sigmoid of one tensor, twice, as in two-stage detectors. onnxscript's optimizer loses constants."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.linear(x.flatten(1)[:, :WIDTH]).sigmoid()
        one, two = (t.clamp(min=0, max=1) for _ in range(2))
        return torch.log(one.clamp(min=1e-5) / (1 - one).clamp(min=1e-5)) + 2 * torch.log(two.clamp(min=1e-5))


def test_the_optimizer_may_merge_clamps_twice(tmp_path: Path) -> None:
    record = exported_to(redrawn(ClampedTwice()), tmp_path / "model.onnx")
    assert (record.exporter, record.fallbacks) == ("dynamo", ())


class Guarded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A share of a sum, guarded by an epsilon, of any shape."""
        return x / (x.abs().sum(-1, keepdim=True) + 1e-12)


def test_an_epsilon_near_zero_is_exported(tmp_path: Path) -> None:
    exported_to(Guarded(), tmp_path / "m.onnx", 1)
    model = onnx.load(tmp_path / "m.onnx")
    assert [node.op_type for node in model.graph.node].count("Add") == 1


@pytest.mark.parametrize("way", ["fails", "breaks"])
def test_a_graph_that_the_optimizer_spoils_is_taken_as_it_was(
    way: str, vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(program: Any) -> None:
        if way == "fails":
            raise RuntimeError("a rule of the optimizer")
        initializers = program.model.graph.initializers
        weight = next(v for v in initializers.values() if v.const_value.dtype.numpy() == np.float32)
        weight.const_value = ir.tensor(np.zeros(weight.const_value.shape, np.float32))

    monkeypatch.setattr(torch.onnx.ONNXProgram, "optimize", spoil)
    record = exported_to(vit, tmp_path / "model.onnx")
    assert (record.exporter, record.opset) == ("dynamo", 23)
    (failure,) = record.fallbacks
    assert failure.exporter == "dynamo"
    assert ("a rule of the optimizer" in failure.error) if way == "fails" else ("numbers differ" in failure.error)


def test_the_worst_batch_decides(vit: nn.Module, tmp_path: Path) -> None:
    exported_to(vit, tmp_path / "model.onnx", 2, 1, batch="1:2:2")
    good, other = example(vit, images(2)), example(vit, images(1))
    bad = {name: value + np.float32(0.1) for name, value in other.outputs.items()}
    parity = exporting.check(tmp_path / "model.onnx", [good, Example(other.image, bad)], "pixels")
    assert parity.max_abs == pytest.approx(0.1, rel=1e-3)
    assert exporting.disagreement(parity) is not None
    assert exporting.disagreement(exporting.check(tmp_path / "model.onnx", [good], "pixels")) is None
