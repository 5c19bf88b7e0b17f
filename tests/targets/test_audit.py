"""Kernels are matched to the model by the names of its nodes."""

from __future__ import annotations

import pytest

from vitdeploy.targets._audit import is_named_after

NODE = "blocks.1/attn/MatMul"


@pytest.mark.parametrize(
    "kernel", [NODE, f"{NODE}/Fusion", f"{NODE}:0_nchwc", f"{NODE}_token_3", f"{NODE}_quant", f"{NODE}_quant_1"]
)
def test_a_kernel_with_a_nodes_name_or_one_made_from_it_is_the_nodes(kernel: str) -> None:
    assert is_named_after(kernel, NODE)


@pytest.mark.parametrize(
    "kernel",
    [
        f"{NODE}_1",  # the second product of the same module
        f"{NODE}s",
        f"{NODE}Add",
        "blocks.1/attn",
        f"blocks.1{NODE}",
        f"other/{NODE}",
        NODE.replace(".", "-") + "/Fusion",
        "",
    ],
)
def test_a_kernel_with_another_nodes_name_is_not_the_nodes(kernel: str) -> None:
    assert not is_named_after(kernel, NODE)
