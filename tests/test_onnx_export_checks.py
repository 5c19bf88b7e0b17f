"""Checks in a model's forward do not stop the dynamo exporter, and exporters are silent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tests.graphs import WIDTH, redrawn
from tests.test_onnx_export import exported_to
from vitdeploy import onnx_export
from vitdeploy.onnx_export._branches import record_branches


class Checked(nn.Module):
    """A linear behind a check of the image."""

    def __init__(self, check: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.linear, self.check = nn.Linear(WIDTH, 10), check

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check(x)
        return self.linear(x.flatten(1)[:, :WIDTH])


def as_transformers(x: torch.Tensor) -> None:
    """Check as transformers' torch_compilable_check does while it is traced."""
    from transformers.utils import torch_compilable_check

    torch_compilable_check(x.isfinite(), "the image has NaN or infinity")


HARMLESS: dict[str, Callable[[torch.Tensor], object]] = {
    "transformers": as_transformers,
    "_check_tensor_all": lambda x: torch._check_tensor_all(x < 1e9),
    "_is_all_true": lambda x: torch._check((x < 1e9)._is_all_true().item()),
    "_assert": lambda x: torch._assert((x < 1e9).all(), "too large"),
    "_assert_async": lambda x: torch._assert_async((x < 1e9).all()),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_check_without_effect_is_dropped(name: str, tmp_path: Path) -> None:
    record = exported_to(redrawn(Checked(HARMLESS[name])), tmp_path / "model.onnx")
    assert (record.exporter, record.fallbacks, record.doubts) == ("dynamo", (), ())


def refuse_large(x: torch.Tensor) -> None:
    if not (x < 1e9).all():
        raise ValueError("too large")


def refuse_any(x: torch.Tensor) -> None:
    if (x > 1e9)._is_any_true().item():
        raise ValueError("too large")


@pytest.mark.parametrize("check", [refuse_large, refuse_any])
def test_an_error_that_no_image_raises_is_a_doubt_and_no_other_exporter(
    check: Callable[[torch.Tensor], None], tmp_path: Path
) -> None:
    record = exported_to(redrawn(Checked(check)), tmp_path / "model.onnx")
    assert record.exporter == "dynamo"
    assert "data-dependent" in record.fallbacks[0].error
    (doubt,) = record.doubts
    assert f"test_onnx_export_checks.py, line {check.__code__.co_firstlineno + 1}, computes from the image" in doubt
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"If", "Less", "Greater"}  # nothing is left of it


class OnWeights(nn.Module):
    """A branch on weights, beside one on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)[:, :WIDTH]
        if self.linear.weight.sum() > 1e6 or x.clone().add_(1).mean().isnan():
            x = x * 2
        return self.linear(x)


def test_a_branch_on_weights_is_no_doubt(tmp_path: Path) -> None:
    module = redrawn(OnWeights())
    branches = record_branches(module, torch.zeros(1, 3, 32, 32))
    assert [(branch.value, branch.from_image) for branch in branches] == [(False, False), (False, True)]
    record = exported_to(module, tmp_path / "model.onnx")
    assert (record.exporter, len(record.doubts)) == ("dynamo", 1)


def talk(x: torch.Tensor) -> None:
    print("printed", tuple(x.shape))
    logging.getLogger("model").error("logged")
    if x.isnan().any():
        raise ValueError


def test_exporters_print_and_log_nothing_even_where_one_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module, talking = Checked(lambda x: None), Checked(talk)
    talking.load_state_dict(module.state_dict())
    x = torch.rand(1, 3, 32, 32)
    example = onnx_export.Example(x.numpy(), {"output": module(x).detach().numpy()})
    record = onnx_export.export(
        talking, [example], input_name="image", batch=onnx_export.Batch(), path=tmp_path / "model.onnx"
    )
    assert record.fallbacks  # the first way failed, and torch.export prints its graph then
    sys.stdout.flush()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    print("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "after\n"


class Wrapped(Exception):
    """An exporter's error around the one that matters."""


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (RuntimeError("\x1b[96mthe \x1b[1mcause\x1b[0m\nmore"), "the cause"),
        (KeyError("node"), "KeyError: 'node'"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("\n\n  after empty lines"), "after empty lines"),
    ],
)
def test_the_innermost_cause_is_one_line_without_escape_codes(
    cause: Exception, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise Wrapped("\x1b[31mstep 1/3\x1b[0m") from cause
        except Wrapped as error:
            raise Wrapped("failed to export") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(onnx_export.ExportError) as caught:
        exported_to(redrawn(Checked(lambda x: None)), tmp_path / "model.onnx")
    assert f"(dynamo: {line}; legacy: {line})" in caught.value.message
