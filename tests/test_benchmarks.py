"""Benchmarks are run by hand, and by then what they import must still be there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
APART = {
    "peers": "it runs in an environment of its own",
    "train_digits": "it is started as a script",
    "train": "likewise",
}
MODULES = [".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in sorted(FOLDER.rglob("*.py"))]


@pytest.mark.parametrize("module", [m for m in MODULES if m.rpartition(".")[2] not in (*APART, "__init__")])
def test_it_imports(module: str) -> None:
    assert import_module(module).__doc__
