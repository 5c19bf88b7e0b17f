"""What a model computes is in its digest: methods, settings, helper functions, unregistered numbers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitdeploy import sources
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources._bound import Bound
from vitdeploy.sources._code_digest import code_digest

MODEL = """
import numpy as np
import torch
from torch import nn
import helpers

LIMIT = 3
TABLE = np.arange(4)

def activation(x):
    return torch.relu(x).clamp(max=LIMIT)

class Block(nn.Module):
    def __init__(self, width, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.settings = {"scale": scale, "shape": [1, 2]}
        self.offset = torch.zeros(4)
        self.mean = np.zeros(4)

    def forward(self, x):
        return activation(self.linear(x)) * self.settings["scale"] + helpers.shift(x)

    def again(self, x, shift=helpers.shift):
        return shift(x)

def build():
    torch.manual_seed(0)
    return nn.Sequential(Block(4), nn.Dropout(0.1), Block(4)).eval()
"""
HELPERS = "def shift(x):\n    return x + 1\n"


def write(folder: Path, model: str = MODEL, helpers: str = HELPERS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(model)
    (folder / "helpers.py").write_text(helpers)
    return folder


def digest_of(folder: Path) -> str:
    """The digest of the model in a folder; its modules are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            return code_digest(importlib.import_module("model").build())
        finally:
            for name in ("model", "helpers"):
                sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digest_of(write(tmp_path_factory.mktemp("code") / "first"))


def test_it_is_the_same_in_another_process_and_folder(digest: str, tmp_path: Path) -> None:
    code = "import model; from vitdeploy.sources._code_digest import code_digest; print(code_digest(model.build()))"
    folder, command = write(tmp_path / "second"), [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip() == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.relu(x)", "torch.tanh(x)"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("scale=1.0", "scale=2.0"),
        ("[1, 2]", "[1, 3]"),
        ("torch.zeros(4)", "torch.ones(4)"),
        ("np.zeros(4)", "np.ones(4)"),
        ("nn.Dropout(0.1)", "nn.Identity()"),
    ],
)
def test_a_change_of_the_model_changes_it(old: str, new: str, digest: str, tmp_path: Path) -> None:
    assert digest_of(write(tmp_path / "changed", MODEL.replace(old, new))) != digest


def test_a_change_of_what_the_model_imports_changes_it(digest: str, tmp_path: Path) -> None:
    assert digest_of(write(tmp_path / "changed", helpers=HELPERS.replace("+ 1", "+ 2"))) != digest


def test_weights_are_not_in_it() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    assert code_digest(first) == code_digest(second)


def test_a_method_that_was_replaced_shows() -> None:
    plain, patched = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    patched.forward = lambda x: x  # type: ignore[method-assign, assignment]
    assert code_digest(plain) != code_digest(patched)


def test_models_of_libraries_have_one() -> None:
    digits = sources.load(ModelSpec(spec="demo:digits"))
    again = sources.load(ModelSpec(spec="demo:digits"))
    assert len(digits.code_digest) == 64
    assert digits.code_digest == again.code_digest
    options = {"spec": "timm:vit_tiny_patch16_224", "weights": "random"}
    timm = sources.load(ModelSpec.model_validate(options))
    other = sources.load(ModelSpec.model_validate(options | {"kwargs": {"act_layer": "relu"}}))
    assert timm.code_digest != other.code_digest


def test_the_class_around_a_model_with_fixed_inputs_is_no_code_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes with vitdeploy; and tools that measure coverage rewrite its code while it runs."""
    module = Bound(torch.nn.Linear(2, 2), {"scale": np.ones(1, np.float32)}, None)
    before = code_digest(module)
    monkeypatch.setattr(Bound, "forward", lambda self, pixel_values: pixel_values + 1)
    assert code_digest(module) == before
    module._names = ("shift",)
    assert code_digest(module) != before, "which inputs are fixed counts"


def test_hooks_count_in_their_order_and_not_by_their_numbers() -> None:
    """PyTorch numbers all hooks of a process; transformers collects the features of backbones with them."""

    def hooked(*hooks: Callable[..., None]) -> str:
        module = torch.nn.Linear(2, 2)
        for hook in hooks:
            module.register_forward_hook(hook)
        return code_digest(module)

    first = hooked(_keep, _drop)
    assert hooked(_keep, _drop) == first
    assert len({first, hooked(_drop, _keep), hooked(_keep), hooked()}) == 4


def _keep(module: torch.nn.Module, inputs: object, output: object) -> None:
    del module, inputs, output


def _drop(module: torch.nn.Module, inputs: object, output: object) -> None:
    del module, inputs
    del output
