"""Weights files: read as tensors only, and refused with the keys that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import _checkpoint, _weights


def _linear() -> torch.nn.Linear:
    with _weights.fixed_seed():
        return torch.nn.Linear(3, 2)


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_all_forms_of_a_state_dict_load_the_same(tmp_path: Path, suffix: str, key: str | None) -> None:
    state = {"weight": torch.full((2, 3), 2.0), "bias": torch.ones(2)}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({key: state, "epoch": 3} if key else state, path)
    module = _linear()
    _weights.load_file(module, path)
    assert torch.equal(module.weight, state["weight"])


def test_a_pickle_that_runs_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"weight": _Marker(marker)}, path)
    with pytest.raises(SourceError, match=r"not a plain state dict.*open.*safetensors"):
        _checkpoint.read_checkpoint(path).parts[""]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
        ({"weight": torch.ones(1), "lr": 0.1}, "'lr' is a float"),
        (torch.nn.Linear(1, 1), "Linear, which is not a tensor"),
    ],
)
def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    with pytest.raises(SourceError, match=message):
        _checkpoint.read_checkpoint(path).parts[""]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x02junk")
    with pytest.raises(SourceError, match="not a plain state dict"):
        _checkpoint.read_checkpoint(path).parts[""]


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.ones(5, 3), "extra": torch.ones(1)}, path)
    with pytest.raises(SourceError) as error:
        _weights.load_file(_linear(), path)
    text = str(error.value)
    assert "1 missing keys, first 'bias'" in text
    assert "1 unexpected keys, first 'extra'" in text
    assert "'weight' [5, 3] instead of [2, 3]" in text


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no weights file"):
        _weights.find_weights(ModelSpec(spec="x", weights=str(tmp_path / "no.pt")))
    with pytest.raises(SourceError, match="Give pretrained, random"):
        _weights.find_weights(ModelSpec(spec="x", weights="best.txt"))


def test_the_digest_sees_every_part() -> None:
    base = _weights.weights_digest(_linear())
    assert base == _weights.weights_digest(_linear())
    other = _linear()
    with torch.no_grad():
        other.bias[1] += 1e-6
    assert _weights.weights_digest(other) != base
    buffered = _linear()
    buffered.register_buffer("table", torch.arange(4).reshape(2, 2).t(), persistent=False)
    assert _weights.weights_digest(buffered) != base
    half = _linear().bfloat16()
    assert _weights.weights_digest(half) != base


def test_seeded_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _linear()
    assert torch.equal(torch.rand(1), expected)
