"""The commands whose file operations fail: what is there before, what runs, and what must be true afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.robustness import tiny

OUT = "out"
_OLD_PRECISION = "int8-dynamic"  # so that the old artifact differs from the new one
_OLD_IMAGES, _NEW_IMAGES = 12, tiny.IMAGES
_OLD_DROP, _NEW_DROP = 60, 50


@dataclass(frozen=True)
class Scenario:
    """One command in a folder.

    Attributes:
        name: for case ids.
        words: the command line.
        before: command lines that prepare the folder.
        check: returns what is wrong in the folder after an interrupted run; empty if the old or the new is whole.
    """

    name: str
    words: Sequence[str]
    before: Sequence[Sequence[str]]
    check: Callable[[Path], str]


def prepare(folder: Path, scenario: Scenario, run: Callable[[Sequence[str], Path], int]) -> None:
    """Fill `folder` with the inputs, and run what comes before."""
    tiny.write_inputs(folder)
    for words in scenario.before:
        code = run(words, folder)
        if code not in (0, 3):
            raise RuntimeError(f"vitdeploy {' '.join(words)} ended with {code} without any fault")


def restore(template: Path, folder: Path) -> None:
    """Make `folder` an exact copy of `template`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)


def _check_artifact(folder: Path, *, may_be_absent: bool = False) -> str:
    """Return what is wrong with the artifact and the evidence beside it."""
    from vitdeploy import artifact as artifacts
    from vitdeploy.errors import VitdeployError

    out = folder / OUT
    if may_be_absent and not out.exists():
        return ""
    try:
        artifact = artifacts.load(out)
    except VitdeployError as error:
        return f"the artifact does not load: {error}"
    for name in artifacts.EVIDENCE:
        if (out / name).exists():
            try:
                about = json.loads((out / name).read_bytes())["manifest"]
            except (ValueError, KeyError) as error:
                return f"{name} is not whole: {error}"
            if about != artifact.digest:
                return f"{name} is about another manifest"
    if artifact.manifest.stage == "artifact" and not (out / "audit.json").exists():
        return "the artifact has no audit"
    return ""


def _precision(folder: Path) -> str:
    return str(json.loads((folder / OUT / "manifest.json").read_bytes())["target"]["precision"])


def _check_new(folder: Path) -> str:
    return _check_artifact(folder, may_be_absent=True)


def _check_replaced(folder: Path) -> str:
    return _check_artifact(folder) or (
        "" if _precision(folder) in ("fp32", _OLD_PRECISION) else f"its precision is {_precision(folder)}"
    )


def _check_number(folder: Path, file: str, allowed: Sequence[object], path: Sequence[str | int]) -> str:
    value = json.loads((folder / OUT / file).read_bytes())
    for key in path:
        value = value[key]
    return "" if value in allowed else f"{file} has {value!r}, neither the old nor the new value"


def _check_eval(folder: Path) -> str:
    return _check_artifact(folder) or _check_number(folder, "eval.json", (_OLD_IMAGES, _NEW_IMAGES), ["n"])


def _says_what_it_could_not_read(folder: Path) -> bool:
    """Return True if the gate has judged that a piece of evidence cannot be read, which is a verdict of its own."""
    gate = json.loads((folder / OUT / "gate.json").read_bytes())
    first = gate["checks"][0]
    return (first["name"], first["status"]) == ("evidence readable", "invalid")


def _check_gate(folder: Path) -> str:
    problem = _check_artifact(folder)
    if not problem and not _says_what_it_could_not_read(folder):
        problem = _check_number(folder, "gate.json", (_OLD_DROP, _NEW_DROP), ["checks", 0, "limit"])
    readers: Mapping[str, Callable[[str], object]] = {
        "junit.xml": ElementTree.fromstring,
        "baseline.json": json.loads,
        "summary.md": lambda text: text.endswith("\n") or 1 / 0,
    }
    for name, read in readers.items():
        if not problem and (folder / name).exists():
            try:
                read((folder / name).read_text(encoding="utf-8"))
            except (ValueError, ElementTree.ParseError, ZeroDivisionError) as error:
                problem = f"{name} is not whole: {error}"
    return problem


_EXPORT = ("export", "tiny.onnx", "--target", "onnxruntime", "-o", OUT)
_OLD = (*_EXPORT, "--precision", _OLD_PRECISION)
_EVAL = ("eval", OUT, "--data", "images.npz")
_GATE = ("gate", OUT, "--max-drop")
_FILES = ("--junit", "junit.xml", "--markdown", "summary.md", "--save-baseline", "baseline.json")

SCENARIOS = (
    Scenario("export", _EXPORT, (), _check_new),
    Scenario("replace", (*_EXPORT, "--force"), (_OLD, _EVAL), _check_replaced),
    Scenario("openvino", (*_EXPORT[:3], "openvino", "-o", OUT, "--force"), (_OLD,), _check_replaced),
    Scenario("compile", ("compile", OUT), (_EXPORT,), _check_replaced),
    Scenario("eval", _EVAL, (_EXPORT, (*_EVAL, "--limit", str(_OLD_IMAGES))), _check_eval),
    Scenario(
        "gate", (*_GATE, str(_NEW_DROP), *_FILES), (_EXPORT, _EVAL, (*_GATE, str(_OLD_DROP), *_FILES)), _check_gate
    ),
    Scenario("run", ("run", "recipe.yaml", "-o", OUT, "--force"), (_OLD,), _check_replaced),
)
