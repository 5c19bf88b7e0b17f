"""The tiny ViT, exported once a session in every way that graphs come."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.fakes.fixtures import device, driver

if TYPE_CHECKING:
    from torch import nn

__all__ = ["device", "driver", "exported", "vit"]

# Two runtimes whose threads wait in a spin slow each other down twentyfold when the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The writers' arguments by name; a dynamic batch is traced at 2, because exporters specialise a batch of 1.
EXPORTS = {
    "dynamo": ("dynamo", {"opset": 23}),  # Attention as one operator
    "dynamo-20": ("dynamo", {"opset": 20}),  # scaled_dot_product_attention written out
    "legacy-20": ("legacy", {"opset": 20}),
    "legacy-17": ("legacy", {"opset": 17}),  # Gelu written out
    "dynamo-batch": ("dynamo", {"opset": 23, "dynamic": True}),
    "legacy-batch": ("legacy", {"opset": 17, "dynamic": True}),
}


@pytest.fixture(autouse=True)
def _not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that tests make are not those of the job that runs the tests."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """The tiny ViT with redrawn weights. Do not change it."""
    from tests import graphs

    return graphs.tiny_vit()


@pytest.fixture(scope="session")
def exported(vit: nn.Module) -> Callable[[str], bytes]:
    """The tiny ViT as ONNX, by the names of `EXPORTS`."""
    from tests import graphs

    @cache
    def write(kind: str) -> bytes:
        exporter, options = EXPORTS[kind]
        image = graphs.images(2 if options.get("dynamic") else 1)
        return getattr(graphs, exporter)(vit, image, **options)

    return write
