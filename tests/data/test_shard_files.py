"""Shards by name: files, folders, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.shards import open_any
from vitdeploy.data.shard_files import find_shards
from vitdeploy.errors import DataError


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _names(spec: Path | str) -> list[str] | None:
    shards = find_shards(str(spec))
    return None if shards is None else [shard.name for shard in shards]


def test_a_file_a_folder_and_patterns(tmp_path: Path) -> None:
    _touch(tmp_path, "val-8.tar", "val-9.tar", "val-10.tar", "README.md", ".hidden.tar")
    assert _names(tmp_path / "val-9.tar") == ["val-9.tar"]
    assert _names(tmp_path) == _names(tmp_path / "val-*.tar") == ["val-8.tar", "val-9.tar", "val-10.tar"]
    assert _names(tmp_path / "val-{8..10}.tar") == ["val-8.tar", "val-9.tar", "val-10.tar"]
    assert _names(tmp_path / "val-{10,8}.tar") == ["val-10.tar", "val-8.tar"]


def test_braces_count_with_their_zeros(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"a-{number:06}.tar" for number in range(8, 12)), "b-8.tar", "b-9.tar")
    assert _names(tmp_path / "a-{000008..000011}.tar") == [f"a-{number:06}.tar" for number in range(8, 12)]
    both = ["a-000008.tar", "a-000009.tar", "b-8.tar", "b-9.tar"]
    assert _names(tmp_path / "{a-00000,b-}{8..9}.tar") == both


@pytest.mark.parametrize(
    "names",
    [("000.png",), ("cat/0.png", "backup.tar"), ("0.png", "backup.tar"), ("notes.txt",)],
)
def test_other_folders_stay_what_they_were(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_shards(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("val-{000..049}.tar", "no file matches"),
        ("test-*.parquet", "no file matches"),
        ("a-{0..3}.tar", r"there is no .*a-2\.tar, one of 4 files"),
        ("a-{3..0}.tar", "is no range of file numbers"),
        ("a-{x}.tar", "is no pattern"),
        ("a-{0..999999999999}.tar", "is no range of file numbers"),
        ("a-{0..9999}{0..9999}.tar", "stands for more than 100,000 files"),
        ("a-{0,1}.tar.gz", "is a compressed tar"),
        ("a-*.tgz", "is a compressed tar"),
        ("b.tar.gz", "is a compressed tar.*gunzip"),
        ("c.tar.zst", "is a compressed tar.*unzstd"),
    ],
)
def test_patterns_that_name_no_shards(tmp_path: Path, pattern: str, message: str) -> None:
    _touch(tmp_path, "a-0.tar", "a-1.tar", "a-3.tar", "b.tar.gz", "c.tar.zst")
    with pytest.raises(DataError, match=message):
        find_shards(str(tmp_path / pattern))


def test_a_folder_of_compressed_tars(tmp_path: Path) -> None:
    _touch(tmp_path, "a-0.tar.gz", "a-1.tar.gz")
    with pytest.raises(DataError, match=r"a-0\.tar\.gz is a compressed tar"):
        find_shards(str(tmp_path))


def test_kinds_and_parts_are_not_mixed(tmp_path: Path) -> None:
    _touch(tmp_path / "kinds", "a.tar", "a.parquet")
    with pytest.raises(DataError, match=r"both \.tar and \.parquet"):
        find_shards(str(tmp_path / "kinds"))
    _touch(tmp_path / "parts", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"shards of test, train, which are parts.*/train-\*\.parquet"):
        find_shards(str(tmp_path / "parts"))
    assert _names(tmp_path / "parts" / "test-*.parquet") == ["test-00000-of-00001.parquet"]


def test_what_is_not_there_is_said_with_all_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*x\.tar.*FILE\.tar or FILE\.parquet"):
        open_any(tmp_path / "x.tar")
