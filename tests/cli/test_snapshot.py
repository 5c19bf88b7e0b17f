"""The recorded contract still holds: names stay, more may be added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli import contract

KEPT: dict[str, Any] = json.loads(contract.SNAPSHOT.read_text(encoding="utf-8"))
NOW = contract.snapshot()


@pytest.mark.parametrize("command", KEPT["options"])
def test_no_option_was_lost_or_means_something_else(command: str) -> None:
    for name, option in KEPT["options"][command].items():
        now = NOW["options"][command][name]
        assert set(option["flags"]) <= set(now["flags"]), name
        assert set(option["choices"]) <= set(now["choices"]), name
        for said in ("argument", "takes_value", "several", "required"):
            assert now[said] == option[said], (name, said)


@pytest.mark.parametrize("kind", ["answers", "files"])
def test_no_json_key_was_lost(kind: str) -> None:
    lost = {name: sorted(set(paths) - set(NOW[kind][name])) for name, paths in KEPT[kind].items()}
    assert not any(lost.values()), lost


def test_the_python_api_takes_what_it_took() -> None:
    assert set(KEPT["names"]) <= set(NOW["names"])
    for name, parameters in KEPT["python"].items():
        assert set(parameters) <= set(NOW["python"][name])


def test_commands_end_and_print_as_they_did(
    openvino_int8: Path, copy: Callable[[Path], Path], tmp_path: Path, here: Path
) -> None:
    found = contract.run_all(tmp_path, copy(openvino_int8))
    codes = {line: code for line, (code, _) in found.items()}
    assert codes == contract.RUNS
    for line, keys in KEPT["printed"].items():
        lost = set(keys) - contract.keys_printed(found[line][1], KEPT)
        assert not lost, (line, lost)
