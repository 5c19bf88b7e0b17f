"""The FP32 session and the one rule that names outputs."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from vitdeploy.errors import SourceError
from vitdeploy.runtime.torch_session import TorchSession, named_outputs
from vitdeploy.session import Session

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (ONE, ["output"]),
        ((ONE, ONE), ["output_0", "output_1"]),
        ([None, ONE, (ONE,)], ["output_1"]),
        (OrderedDict(logits=ONE, attentions=None), ["logits"]),
    ],
)
def test_outputs_are_named_by_one_rule(result: object, names: list[str]) -> None:
    assert list(named_outputs(result)) == names


@pytest.mark.parametrize("result", [None, (), {"a": None}, "text"])
def test_no_tensor_at_all_is_an_error(result: object) -> None:
    with pytest.raises(SourceError, match="without a tensor"):
        named_outputs(result)


def test_session_runs_the_module() -> None:
    module = torch.nn.Flatten().eval()
    before = torch.get_num_threads()
    session: Session
    with TorchSession(module, threads=1) as session:
        assert (session.name, session.threads) == ("pytorch-fp32", 1)
        assert session.effective["engine"].startswith("torch ")
        images = np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2)
        outputs = session.run({"input": images})
        np.testing.assert_array_equal(outputs["output"], images.reshape(2, 6))
        with pytest.raises(ValueError, match="one input"):
            session.run({"a": images, "b": images})
    torch.set_num_threads(before)


class Failing(nn.Module):
    """A forward() that fails in the way that its argument says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear = way, nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if self.way == "assert":
            assert x.shape[-1] % 64 == 0
        if self.way == "shape":
            return self.linear(x)
        return more[0]


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        return x * pixel_mask


@pytest.mark.parametrize(
    ("module", "message", "fix"),
    [
        (Failing("assert"), "AssertionError in test_torch_session.py, line .*64", "--image-size"),
        (Failing("shape"), "RuntimeError in test_torch_session.py, line .*: mat1 and mat2 shapes", "--image-size"),
        (Failing("index"), "IndexError in test_torch_session.py, line .*: tuple index", "Correct the model there"),
        (TwoInputs(), "TypeError: .*forward.* missing 1 .*argument: 'pixel_mask'", "give its other arguments defaults"),
    ],
    ids=["assert", "shape", "index", "two inputs"],
)
def test_a_forward_that_fails_is_the_users_line(module: nn.Module, message: str, fix: str) -> None:
    images = np.zeros((1, 3, 8, 8), np.float32)
    with TorchSession(module) as session, pytest.raises(SourceError, match=message) as caught:
        session.run({"x": images})
    assert "images of [1, 3, 8, 8]" in str(caught.value)
    assert fix in caught.value.fix
