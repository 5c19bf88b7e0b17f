"""Data that goes to a host."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.data.shards import open_any, png, write_tar
from vitdeploy.remote.near.sending import data_files


def test_shards_of_a_pattern_go_there_in_its_order(tmp_path: Path) -> None:
    for number, name in enumerate(("b/x.tar", "a/x.tar")):
        write_tar(tmp_path / name, [("0.png", png(number)), ("0.cls", b"0")])
    pattern = f"{tmp_path}/{{b,a}}/x.tar"
    spec, files = data_files(pattern)
    assert (spec, [file.path for _, file in files]) == ("data", ["data/00000-x.tar", "data/00001-x.tar"])
    there = tmp_path / "there"
    for source, file in files:
        (there / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, there / file.path)
    assert open_any(there / spec).digest == open_any(pattern).digest
