"""demo:digits works from the package alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import load


def test_digits_are_pretrained_and_in_eval_mode() -> None:
    model = load(ModelSpec(spec="demo:digits"))
    assert model.weights == "pretrained"
    assert model.labels == tuple("0123456789")
    assert (model.preprocess.size, model.preprocess.channels, model.preprocess.mean) == ((32, 32), 1, (0.5,))
    assert model.module is not None
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.parameters == sum(p.numel() for p in model.module.parameters())
    assert model.module(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_random_weights_are_reproducible_and_marked() -> None:
    first, second = (load(ModelSpec(spec="demo:digits", weights="random")) for _ in range(2))
    assert first.weights == "random"
    assert first.digest == second.digest != load(ModelSpec(spec="demo:digits")).digest


def test_a_file_of_weights(tmp_path: Path) -> None:
    pretrained = load(ModelSpec(spec="demo:digits"))
    assert pretrained.module is not None
    save_file(pretrained.module.state_dict(), tmp_path / "w.safetensors")
    model = load(ModelSpec(spec="demo:digits", weights=str(tmp_path / "w.safetensors")))
    assert (model.weights, model.digest) == ("file", pretrained.digest)


def test_other_demos_sizes_and_options_are_refused() -> None:
    with pytest.raises(SourceError, match="demo:digits"):
        load(ModelSpec(spec="demo:letters"))
    with pytest.raises(SourceError, match="32x32"):
        load(ModelSpec(spec="demo:digits"), size=(64, 64))
