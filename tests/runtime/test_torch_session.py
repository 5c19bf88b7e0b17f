"""The FP32 session and the one rule that names outputs."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

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
