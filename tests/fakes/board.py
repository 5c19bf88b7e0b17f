"""A board: put the fake TensorRT and its driver into another virtual environment, such as that behind a real sshd.

There `tensorrt` is an importable package, as JetPack installs it, and `libcuda.so.1` is loaded when Python starts. The
fake needs onnx, which a board does not have: it is imported from this environment for the fake alone, and hidden again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from tests.fakes.miscompile import Fault
from tests.short import shorten

_ROOT = Path(__file__).parents[2]
_START = "fake_driver.pth"
_PACKAGE = """\
import ctypes, sys
before, path = set(sys.modules), [*sys.path]
sys.path[:0] = {found!r}
from tests.fakes import board, engine, guarded, miscompile, plans, rewriting, rounding, tensorrt
sys.path[:] = path
for name in set(sys.modules) - before:
    if name.partition(".")[0] in ("onnx", "vitdeploy") or name == "tests.fakes.fixtures":
        del sys.modules[name]
sys.modules["tensorrt"] = board.open_board({folder!r}, ctypes.CDLL({driver!r}))
"""


class Board:
    """A fake TensorRT in another environment's site-packages.

    Args:
        site: the site-packages folder.
        driver: the fake driver library.
    """

    def __init__(self, site: Path, driver: Path) -> None:
        self._site, self._package = site, site / "tensorrt"
        self._driver = driver

    def install(
        self, release: str = "10.3", planted: Sequence[Fault] = (), faults: Iterable[str] = (), seed: int = 0
    ) -> None:
        """Install a version with these faults, in place of an earlier one, whose records go too."""
        self.remove()
        self._package.mkdir()
        sources = [str(_ROOT), str(distribution("onnx").locate_file(""))]
        text = _PACKAGE.format(found=sources, folder=str(self._package), driver=str(self._driver))
        (self._package / "__init__.py").write_text(text)
        facts = {"release": release, "planted": [each.as_facts() for each in planted], "faults": sorted(faults)}
        facts |= {"seed": seed}
        (self._package / "board.json").write_text(json.dumps(facts))
        (self._site / _START).write_text(f"import ctypes; ctypes.CDLL({str(self._driver)!r})\n")

    def struck(self) -> list[list[str]]:
        """The nodes that each finished build there computes wrongly."""
        return self._read("struck")

    def begun(self) -> list[str]:
        """A digest of what each build there was asked for, also those that were killed."""
        return self._read("begun")

    def remove(self) -> None:
        """Take it out again."""
        shutil.rmtree(self._package, ignore_errors=True)
        (self._site / _START).unlink(missing_ok=True)

    def _read(self, name: str) -> list[Any]:
        path = self._package / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class _Logged(list[Any]):
    """A list that is on disk too, for the other side."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def append(self, entry: Any) -> None:
        super().append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            os.fsync(file.fileno())


def open_board(folder: str, cuda: Any) -> Any:
    """The module `tensorrt` of a board, as `Board.install` set it up. Whoever imports it measures for a moment."""
    from tests.fakes import miscompile, tensorrt

    facts = json.loads((Path(folder) / "board.json").read_text())
    trt = tensorrt.module(facts["release"], cuda)
    trt.planted = [miscompile.fault(**each) for each in facts["planted"]]
    trt.faults = set(facts["faults"])
    trt.seed = facts["seed"]
    trt.struck, trt.begun = (_Logged(Path(folder) / f"{name}.jsonl") for name in ("struck", "begun"))
    shorten(setattr, sys.modules)
    return trt
