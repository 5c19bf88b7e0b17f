"""Images in Parquet files: equal to the same folder, class names, and every mistake in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.data.shards import fill_folder, open_any, pack_parquet, png, write_parquet
from tests.data.test_tar_shards import assert_same
from vitdeploy.data import _parquet
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_DATA_BYTES, MAX_IMAGE_BYTES

GENUINE = Path(__file__).parents[1] / "fixtures" / "shards" / "huggingface.parquet"
NAMES = ("ant", "bee", "cat")


def _features(*names: str, image: str = "image", label: str = "label") -> dict[str, Any]:
    return {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}


def _row(label: int | None = 0, shade: int = 0, path: str | None = None) -> dict[str, Any]:
    return {"image": {"bytes": png(shade), "path": path}, "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_folder(tmp_path_factory.mktemp("images") / "folder", NAMES, 30)


def test_files_are_the_same_data_as_their_folder(folder: Path, tmp_path: Path) -> None:
    assert len(pack_parquet(folder, tmp_path / "files", each=40)) == 3
    for labels in (None, ("bee", "cat", "ant")):
        plain, dataset = open_any(folder, labels=labels), open_any(tmp_path / "files", labels=labels)
        assert_same(plain, dataset)
        assert dataset.digest == plain.digest
        assert dataset.classes == plain.classes
        assert dataset.order == ("labels" if labels else "indices")


def test_large_binaries_and_strings_are_the_same_data(tmp_path: Path) -> None:
    """Polars writes them."""
    rows = [_row(shade % 3, shade, path=f"{shade}.png") for shade in range(20)]
    images = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    large = pa.schema([("image", images), ("label", pa.int64())])
    one, other = (
        open_any(write_parquet(tmp_path / f"{schema is large}.parquet", rows, schema=schema))
        for schema in (None, large)
    )
    assert_same(one, other)
    assert one.digest == other.digest


def test_windows_read_each_row_group_once_and_keep_the_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_parquet(folder, tmp_path / "files", each=50)
    reads: list[int] = []
    read_images = _parquet.ParquetShard.read_images
    monkeypatch.setattr(
        _parquet.ParquetShard, "read_images",
        lambda shard, group, rows=None: (reads.append(group), read_images(shard, group, rows))[1],
    )  # fmt: skip
    dataset = open_any(tmp_path / "files")
    groups = 7  # 50 and 40 rows in groups of 16
    assert len(reads) == groups
    monkeypatch.setattr(_parquet, "_FIRST_WINDOW", 10)
    monkeypatch.setattr(_parquet, "_WINDOW_BYTES", 30 * len(png()))
    reads.clear()
    assert_same(open_any(folder), dataset)
    assert 3 * groups < len(reads) <= 4 * groups  # windows of 10, about 30, 30 and 20 images
    assert [s.place for s in dataset.read(20, 70)] == list(range(20, 70))


def test_a_file_that_hugging_face_datasets_wrote() -> None:
    dataset = open_any(GENUINE, labels=("wasp", "bee", "ant"))
    assert (dataset.order, dataset.classes) == ("labels", ("wasp", "bee", "ant"))
    assert sorted((s.name, s.label) for s in dataset) == [(f"row {n}", 2 if n < 3 else 1) for n in range(6)]
    assert [sample.label for sample in open_any(GENUINE)] == [
        2 - sample.label for sample in dataset if isinstance(sample.label, int)
    ]


def test_plain_bytes_other_columns_and_labels_without_names(tmp_path: Path) -> None:
    rows = [{"image": png(n), "labels": n % 3, "caption": "x" * n} for n in range(6)]
    dataset = open_any(write_parquet(tmp_path / "a.parquet", rows), labels=NAMES)
    assert (dataset.order, dataset.classes, len(dataset)) == ("indices", None, 6)
    assert sorted(sample.label for sample in dataset if isinstance(sample.label, int)) == [0, 0, 1, 1, 2, 2]


def test_columns_that_only_hugging_face_says_are_images_and_classes(tmp_path: Path) -> None:
    rows = [{"img": {"bytes": png(n), "path": None}, "fine_label": n % 2, "id": n} for n in range(4)]
    path = write_parquet(tmp_path / "a.parquet", rows, _features("bee", "ant", image="img", label="fine_label"))
    assert sorted(s.label for s in open_any(path, labels=NAMES) if isinstance(s.label, int)) == [0, 0, 1, 1]


def test_class_names_that_are_numbers_or_made_up_are_indices(tmp_path: Path) -> None:
    for own in (("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2")):
        path = write_parquet(tmp_path / "a.parquet", [_row(2)], _features(*own))
        dataset = open_any(path, labels=NAMES)
        assert (dataset.order, [sample.label for sample in dataset]) == ("indices", [2])


@pytest.mark.parametrize("labels", [None, tuple(f"LABEL_{n}" for n in range(12)), tuple("abcdefghijkl")])
def test_names_that_are_numbers_in_the_order_of_text(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    folder = fill_folder(tmp_path / "folder", [str(number) for number in range(12)], 2)
    pack_parquet(folder, tmp_path / "files", each=30)  # the stored label 2 is the folder 10
    plain, dataset = (open_any(tmp_path / name, labels=labels, classes=12) for name in ("folder", "files"))
    assert_same(plain, dataset)
    assert {s.name.partition("/")[0]: s.label for s in dataset} == {str(n): n for n in range(12)}
    assert (dataset.digest, dataset.classes, dataset.order) == (plain.digest, plain.classes, plain.order)
    for source in (folder, tmp_path / "files"):
        with pytest.raises(DataError, match=r"11.* but the model has 11 classes"):
            open_any(source, classes=11)


def test_names_that_are_numbers_and_the_models_own(tmp_path: Path) -> None:
    folder = fill_folder(tmp_path / "folder", ("0", "1", "2"), 2)
    pack_parquet(folder, tmp_path / "files", each=30)
    plain, dataset = (open_any(tmp_path / name, labels=("2", "1", "0")) for name in ("folder", "files"))
    assert_same(plain, dataset)
    assert dataset.order == plain.order == "labels"


def test_names_with_gaps_and_of_many_digits(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [_row(1)], _features("5", "7"))
    dataset = open_any(path)
    assert ([sample.label for sample in dataset], dataset.classes) == ([7], None)
    path = write_parquet(tmp_path / "a.parquet", [_row(1)], _features("ant", "9" * 5000))
    assert [sample.label for sample in open_any(path)] == [1]


def test_wrong_labels_do_not_matter_where_none_are_needed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "text" / "a.parquet", [{"image": png(), "label": "cat"}])
    write_parquet(tmp_path / "wrong" / "a.parquet", [_row(5), _row(-2)], _features(*NAMES))
    write_parquet(tmp_path / "names" / "0.parquet", [_row(0)], _features("ant"))
    write_parquet(tmp_path / "names" / "1.parquet", [_row(0)], _features("bee"))
    for folder in ("text", "wrong", "names"):
        with pytest.raises(DataError):
            open_any(tmp_path / folder)
        dataset = open_any(tmp_path / folder, need_labels=False)
        assert (dataset.labelled, dataset.classes, {s.label for s in dataset}) == (False, None, {None})


def test_without_labels_they_calibrate(tmp_path: Path) -> None:
    rows = [_row(None), _row(-1, 1), _row(0, 2)]
    dataset = open_any(write_parquet(tmp_path / "a.parquet", rows), need_labels=False)
    assert (len(dataset), dataset.labelled, [s.label for s in dataset]) == (3, False, [None] * 3)
    unlabelled = write_parquet(tmp_path / "b.parquet", [{"image": png()}])
    assert not open_any(unlabelled, need_labels=False).labelled
    with pytest.raises(DataError, match=r"b\.parquet has no labels"):
        open_any(unlabelled)


def _strings(folder: Path) -> Path:
    return write_parquet(folder / "a.parquet", [{"image": "0.png", "label": 0}])


def _paths_only(folder: Path) -> Path:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"image": {"bytes": None, "path": "0.png"}, "label": 0}]
    return write_parquet(folder / "a.parquet", rows, schema=pa.schema([("image", image), ("label", pa.int64())]))


def _nothing(folder: Path) -> Path:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    return write_parquet(folder / "a.parquet", [], schema=schema)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: write_parquet(f / "a.parquet", [{"picture": b"x", "label": 1}]),
         r"a\.parquet has no column `image`, but picture, label"),
        (_strings, r"a\.parquet: its column 'image' is string, not encoded images"),
        (_nothing, r"a\.parquet has no rows in it"),
        (lambda f: write_parquet(f / "a.parquet", [{"image": png(), "label": "cat"}]),
         r"a\.parquet: its column 'label' is string, not integers"),
        (lambda f: write_parquet(f / "a.parquet", [_row(), _row(None)]), r"a\.parquet: row 1 has no label"),
        (lambda f: write_parquet(f / "a.parquet", [_row(), _row(-1)]), r"a\.parquet: row 1 has no label"),
        (lambda f: write_parquet(f / "a.parquet", [_row(-2)]), r"a\.parquet: row 0 has the label -2"),
        (lambda f: write_parquet(f / "a.parquet", [_row(5)], _features(*NAMES)),
         "row 0 has the label 5, and 3 classes have names"),
        (lambda f: write_parquet(f / "a.parquet", [_row(3)]), "labels go up to 3, but the model has 3 classes"),
        (lambda f: write_parquet(f / "a.parquet", [_row(0)], _features("wasp")),
         "class 'wasp' is no label of the model; the nearest is '.*'.*--labels FILE"),
        (_paths_only, "has no images, only paths.*embed_table_storage"),
    ],
)  # fmt: skip
def test_mistakes_in_files(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_any(write(tmp_path), labels=NAMES, classes=3)


def test_a_later_shard_is_named_with_its_own_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [_row(0, n) for n in range(3)])
    write_parquet(tmp_path / "1.parquet", [_row(0, 9), _row(None, 8)])
    with pytest.raises(DataError, match=r"1\.parquet: row 1 has no label"):
        open_any(tmp_path)
    write_parquet(tmp_path / "1.parquet", [_row(0, 9)], _features(*NAMES))
    with pytest.raises(DataError, match=r"0\.parquet and .*1\.parquet name their classes differently"):
        open_any(tmp_path)


def test_damaged_images_are_named_with_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_row(0, n) for n in range(40)]
    rows[20]["image"]["bytes"] = None
    dataset = open_any(write_parquet(tmp_path / "a.parquet", rows))
    assert len(list(dataset)) == 39
    assert dataset.skipped == [f"{tmp_path / 'a.parquet'}: row 20 has no image"]
    monkeypatch.setenv(MAX_IMAGE_BYTES.variable, "100")
    with pytest.raises(DataError, match=r"2 of 40 images cannot be read.*a\.parquet: row \d+ has"):
        list(dataset)


def test_damaged_truncated_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [_row(0, n) for n in range(40)])
    content = path.read_bytes()
    monkeypatch.setenv(MAX_DATA_BYTES.variable, "1000")
    with pytest.raises(DataError, match=r"a\.parquet has a row group of [0-9,]+ bytes once unpacked"):
        open_any(path)
    monkeypatch.delenv(MAX_DATA_BYTES.variable)
    for length in (0, 3, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
            open_any(path)
    middle = len(content) // 3
    path.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(open_any(path))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [_row()])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pyarrow, which is not installed\. pip install 'vitdeploy\[data\]'"):
        open_any(path)
