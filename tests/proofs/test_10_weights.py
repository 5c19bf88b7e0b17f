"""Point 10: weights are as large as they say, and do not nest without end."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sources.test_pt2file import Members, _crafted, _export
from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import _checkpoint, _pt2_check, _weights, load

_WEIGHTS = "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("pt2") / "m.pt2")


def _load(path: Path) -> None:
    load(ModelSpec(spec=str(path)))


def _meta(name: str, **change: Any) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        config = json.loads(members[_WEIGHTS])
        config["config"][name]["tensor_meta"] |= change
        members[_WEIGHTS] = json.dumps(config).encode()

    return edit


def _member(name: str, content: bytes) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        members[f"data/weights/{name}"] = content

    return edit


def _ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def test_a_plain_archive_loads(archive: Path) -> None:
    _load(archive)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_member("weight_0", b""), "needs 768 bytes, and its file has 0"),  # it loaded as zeros
        (_member("weight_0", bytes(764)), "needs 768 bytes, and its file has 764"),
        (_member("weight_1", b""), "needs 16 bytes, and its file has 0"),
        (_meta("conv.weight", storage_offset={"as_int": 1}), "needs 772 bytes"),
        (_meta("conv.weight", sizes=_ints(1 << 20, 1 << 20, 4, 4), strides=_ints(0, 0, 4, 1)), "elements in 768 bytes"),
        (_meta("conv.weight", sizes=_ints(1 << 62, 3, 4, 4)), "bytes"),
        (_meta("conv.weight", strides=_ints(1 << 62, 16, 4, 1)), "needs"),
        (_meta("conv.weight", sizes=_ints(2, 3, 4, 4)), "traced with torch.float32 [4, 3, 4, 4]"),
        (_meta("conv.weight", dtype=4, requires_grad=False), "is torch.int32"),
        (_meta("conv.weight", sizes=[{"as_expr": {"expr_str": "s0"}}] * 4), "no fixed size"),
        (_meta("conv.weight", sizes=_ints(-4, 3, 4, 4)), "no fixed size"),
        (_meta("conv.weight", dtype=99), "damaged"),
    ],
)
def test_a_tensor_has_the_bytes_that_it_says(
    archive: Path, tmp_path: Path, change: Callable[[Members], None], message: str
) -> None:
    with pytest.raises(SourceError, match=re.escape(message)):
        _load(_crafted(archive, tmp_path / "m.pt2", change))


def test_a_packed_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    """PyTorch's own archives are not packed; a packed one of 1 MB could fill the memory."""
    for path, read in ((tmp_path / "m.pt2", _load), (tmp_path / "m.pt", _checkpoint.read_checkpoint)):
        original = archive
        if path.suffix == ".pt":
            original = tmp_path / "plain.pt"
            torch.save({"weight": torch.zeros(1 << 20)}, original)
        with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name) + bytes((1 << 20) * name.endswith("weight_0")))
        with pytest.raises(SourceError, match="more than the file"):
            read(path)


@pytest.mark.timeout(180)
def test_a_dict_that_contains_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(SourceError, match="not a plain state dict"):
        _checkpoint.read_checkpoint(tmp_path / "m.pt").parts[""]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["lists", "tuples", "dicts", "state dicts"])
def test_deep_nesting_is_one_line(tmp_path: Path, kind: str) -> None:
    """The pickle is written by hand: Python's own writer recurses."""
    depth = 50_000
    opcodes = {
        "lists": b"]" * depth + b"a" * (depth - 1),
        "tuples": b")" + b"\x85" * depth,
        "dicts": b"}" + b"X\x01\0\0\0a}" * depth + b"s" * depth,
        "state dicts": b"}" + b"X\x0a\0\0\0state_dict}" * depth + b"s" * depth,
    }
    program = b"\x80\x02" + opcodes[kind] + b"."
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "m.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(SourceError, match="not a plain state dict"):
        _checkpoint.read_checkpoint(tmp_path / "m.pt").parts[""]


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 3, device="meta"), "dense tensor with values"),
        (torch.ones(2, 3).to_sparse(), "dense tensor with values"),
        (torch.ones(2, 3, dtype=torch.complex64), "is torch.complex64 instead of torch.float32"),
    ],
    ids=["meta", "sparse", "complex"],
)
def test_odd_tensors_are_refused(tmp_path: Path, value: torch.Tensor, message: str) -> None:
    torch.save({"weight": value, "bias": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(SourceError, match=message):
        _weights.load_file(torch.nn.Linear(3, 2), tmp_path / "m.pt")


def test_an_old_archive_with_a_giant_storage_is_one_line(tmp_path: Path) -> None:
    content = pickle.dumps({"protocol_version": 1001}) + bytes(1000)
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(SourceError, match="not a plain state dict"):
        _checkpoint.read_checkpoint(tmp_path / "m.pt").parts[""]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("s0**2", True),
        ("2*s0 + 1", True),
        ("Pow(s0, 2)", True),
        ("9**9**9**9", False),
        ("((9**64)**64)**64", False),
        ("Pow(9, Pow(9, 9))", False),
        ("1 << (1 << 40)", False),
        ("LShift(1, 1000000000000)", False),
        ("s0**s1", False),
        ("(" * 500 + "s0" + ")" * 500, False),
    ],
)
def test_sizes_are_small_expressions(text: str, accepted: bool) -> None:
    """Torch lets sympy evaluate them, and `9**9**9**9` never ends."""
    assert _pt2_check._is_expression(text) == accepted
