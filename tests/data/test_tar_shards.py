"""Images in `.tar` shards: equal to the same folder, and every mistake in a shard."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.data.shards import fill_folder, list_samples, open_any, pack_tars, png, write_tar
from vitdeploy.data import _digest
from vitdeploy.data.dataset import Dataset
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_IMAGE_BYTES

GENUINE = Path(__file__).parents[1] / "fixtures" / "shards" / "webdataset.tar"


def assert_same(first: Dataset, second: Dataset, *, names: bool = True) -> None:
    """Assert that two datasets have the same samples in the same order."""
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a.label, a.place) == (b.label, b.place)
        assert a.name == b.name or not names
        np.testing.assert_array_equal(a.image, b.image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_folder(tmp_path_factory.mktemp("images") / "folder", ("ant", "bee", "cat"), 30)


def test_shards_are_the_same_data_as_their_folder(folder: Path, tmp_path: Path) -> None:
    shards = pack_tars(folder, tmp_path / "shards", each=40)
    assert len(shards) == 3
    plain = open_any(folder)
    for spec in (tmp_path / "shards", tmp_path / "shards" / "val-{000..002}.tar", tmp_path / "shards" / "val-*.tar"):
        dataset = open_any(spec)
        assert (dataset.order, dataset.labelled, dataset.classes) == ("indices", True, None)
        assert_same(plain, dataset)
        assert dataset.digest == plain.digest


def test_the_digest_follows_labels_names_contents_and_order(folder: Path, tmp_path: Path) -> None:
    files = [(name, content) for name, content, _ in list_samples(folder)]

    def digest(change: dict[str, bytes], files: list[tuple[str, bytes]] = files[:2]) -> str:
        members = dict(files)
        members |= {f"{name.removesuffix('.png')}.cls": b"1" for name in members}
        return open_any(write_tar(tmp_path / "a.tar", sorted((members | change).items()))).digest

    digests = [
        digest({}), digest({"ant/000.cls": b"0"}), digest({"ant/000.png": files[5][1]}), digest({}, files[:3]),
    ]  # fmt: skip
    assert len(set(digests)) == 4
    assert digest({"ant/000.txt": b"a caption"}) == digests[0]  # it is not read
    renamed = write_tar(tmp_path / "b.tar", [("x.png", files[0][1]), ("x.cls", b"1")])
    again = write_tar(tmp_path / "c.tar", [("y.png", files[0][1]), ("y.cls", b"1")])
    assert open_any(renamed).digest != open_any(again).digest


def test_large_data_is_known_by_names_and_sizes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_tars(folder, tmp_path / "shards", each=90)
    full = open_any(folder).digest
    monkeypatch.setattr(_digest, "MAX_HASHED_BYTES", 1000)
    monkeypatch.setattr("vitdeploy.data._folder.MAX_HASHED_BYTES", 1000)
    assert full != open_any(folder).digest == open_any(tmp_path / "shards").digest


def test_a_shard_that_webdataset_wrote() -> None:
    dataset = open_any(GENUINE)
    assert sorted((sample.name, sample.label) for sample in dataset) == [
        (f"{name}/{number}.png", label) for label, name in enumerate(("ant", "bee")) for number in range(3)
    ]


def test_labels_in_json_and_other_files_beside(tmp_path: Path) -> None:
    files = [
        ("./a.JPG", png(1)), ("./a.json", b'{"label": 2, "text": "x"}'), ("./a.txt", b"a caption"),
        ("b.seg.png", png(9)), ("b.png", png(2)), ("b.json", b'{"cls": 1}'),
        ("c.json", b'{"label": 5}'), ("c.png", png(3)), ("c.cls", b" 3\n"),
        ("._c.png", b"resource fork"), ("dataset.json", b'{"license": null}'), ("docs/README.md", b"x"),
    ]  # fmt: skip
    dataset = open_any(write_tar(tmp_path / "a.tar", files))
    assert sorted((sample.name, sample.label) for sample in dataset) == [("a.JPG", 2), ("b.png", 1), ("c.png", 3)]


def test_long_names_and_both_formats(tmp_path: Path) -> None:
    name = "/".join(["deep" * 20] * 5)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for end, content in ((".png", png()), (".cls", b"0")):
                info = tarfile.TarInfo(name + end)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        assert [sample.name for sample in open_any(tmp_path / "a.tar")] == [f"{name}.png"]


def test_equal_keys_in_several_shards_get_the_names_of_these(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", [("0.png", png(number)), ("0.cls", b"0")])
    assert sorted(sample.name for sample in open_any(tmp_path)) == ["0.tar/0.png", "1.tar/0.png"]


def test_equal_names_in_several_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", [("0.png", png()), ("0.cls", b"0")])
    names = sorted(sample.name for sample in open_any(tmp_path / "{a,b}" / "0.tar"))
    assert names == ["a/0.tar/0.png", "b/0.tar/0.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("0.cls", b"cat"), ("0.json", b'{"label": "cat"}'), ("0.json", b"{"), ("0.json", b" " * (2 << 20))],
    ids=["cls", "text", "damaged", "large"],
)
def test_wrong_labels_do_not_matter_where_none_are_needed(tmp_path: Path, name: str, content: bytes) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", png()), (name, content), ("1.png", png(1)), ("1.cls", b"1")])
    dataset = open_any(tmp_path, need_labels=False)
    assert (len(dataset), dataset.labelled, {sample.label for sample in dataset}) == (2, False, {None})
    with pytest.raises(DataError, match=r"0\.(cls|json) (is|has)"):
        open_any(tmp_path)


def test_a_class_wins_over_a_json_of_any_form(tmp_path: Path) -> None:
    files = [("0.json", b'{"label": "cat"}'), ("0.png", png()), ("0.cls", b"3")]
    for ordered in (files, files[::-1]):
        assert [sample.label for sample in open_any(write_tar(tmp_path / "a.tar", ordered))] == [3]


def test_without_labels_they_calibrate(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("1.png", png()), ("1.cls", b"1")])
    dataset = open_any(tmp_path, need_labels=False)
    assert (len(dataset), dataset.labelled) == (2, False)
    assert all(sample.label is None for sample in dataset)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"a\.tar has no images in it"),
        ([("notes.txt", b"x")], r"a\.tar has no images in it"),
        ([("0.png", b""), ("0.txt", b"x")], r"a\.tar: the sample 0 has no label.*KEY\.cls"),
        ([("0.png", b""), ("0.cls", b"cat")], r"a\.tar: 0\.cls is 'cat', not a class index"),
        ([("0.png", b""), ("0.cls", b"-1")], r"a\.tar: 0\.cls is '-1', not a class index"),
        ([("0.png", b""), ("0.cls", b"9" * 40)], r"a\.tar: 0\.cls is '9+', not a class index"),
        ([("0.png", b""), ("0.cls", b"1" * (2 << 20))], r"a\.tar: 0\.cls has 2,097,152 bytes"),
        ([("0.png", b""), ("0.json", b"{")], r"a\.tar: 0\.json is not readable JSON"),
        ([("0.png", b""), ("0.json", b"[" * 100_000)], r"a\.tar: 0\.json is not readable JSON"),
        ([("0.png", b""), ("0.json", b'{"label": "cat"}')], r"0\.json has the label 'cat', not a class index"),
        ([("0.png", b""), ("0.json", b'{"label": true}')], r"0\.json has the label 'True', not a class index"),
        ([("0.png", b""), ("0.json", b'{"caption": "x"}')], r"the sample 0 has no label"),
        ([("0.cls", b"1"), ("0.npy", b"x")], r"the sample 0 has no image, but cls, npy"),
        ([("0.png", b""), ("0.jpg", b""), ("0.cls", b"1")], r"0\.jpg and 0\.png have the key 0"),
        ([("0.cls", b"1"), ("0.cls", b"2"), ("0.png", b"")], r"0\.cls and another \.cls have the key 0"),
        ([("0.png", b""), ("0.cls", b"1"), ("1.png", b""), ("1.cls", b"1"), ("0.txt", b"")],
         "two samples have the key 0"),
        ([("0.png", b""), ("0.cls", b"10")], "labels go up to 10, but the model has 10 classes"),
    ],
)  # fmt: skip
def test_mistakes_in_shards(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=message):
        open_any(tmp_path / "a.tar", classes=10)


def test_damaged_images_are_named_with_their_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        (f"{number}.{end}", png(number) if end == "png" else b"0") for number in range(5) for end in ("png", "cls")
    ]
    files[4] = ("2.png", b"\x89PNG\r\n\x1a\nbroken")
    dataset = open_any(write_tar(tmp_path / "a.tar", files))
    for _ in range(2):
        assert len(list(dataset)) == 4
    assert len(dataset.skipped) == 1
    assert f"{tmp_path / 'a.tar'}: 2.png is" in dataset.skipped[0]
    monkeypatch.setenv(MAX_IMAGE_BYTES.variable, "100")
    with pytest.raises(DataError, match=r"2 of 5 images cannot be read.*a\.tar: \d\.png has \d+ bytes"):
        list(dataset)


def test_a_truncated_shard_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    files = [(f"{n}.{end}", png(n) if end == "png" else b"0") for n in range(3) for end in ("png", "cls")]
    whole = write_tar(tmp_path / "a.tar", files).read_bytes()
    contents = 512 * sum(2 + (len(content) - 1) // 512 for _, content in files)
    assert whole[contents:].strip(b"\0") == b""
    for length in range(0, contents + 512, 256):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar is (damaged|truncated|empty)"):
            open_any(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole[: contents + 512])
    assert len(open_any(tmp_path / "a.tar")) == 3


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    files = [(f"{n}.{end}", png(n) if end == "png" else b"0") for n in range(3) for end in ("png", "cls")]
    content = bytearray(write_tar(tmp_path / "a.tar", files).read_bytes())
    place = content.index(b"2.png")
    content[place + 120] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is damaged after '1\.cls'"):
        open_any(tmp_path / "a.tar")


def test_joined_and_compressed_shards(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.cls", b"0")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    with pytest.raises(DataError, match=r"a\.tar goes on behind its end"):
        open_any(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(gzip.compress(one))
    with pytest.raises(DataError, match=r"a\.tar is compressed with gzip.*gzip -d"):
        open_any(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar: '0\.png' is not a plain file"):
        open_any(tmp_path / "a.tar")


def _header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108], header[124:136] = b"0000644\0", size
    header[148:156], header[156:157], header[257:265] = b" " * 8, kind, b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "content",
    [
        _header(b"0.png", b"\xff" * 12) + bytes(1024),  # -1 bytes
        _header(b"0.png", b"\xff" * 9 + b"\xfc\x00\x00") + bytes(1024),  # back to before the header
        _header(b"0.png", b"\x80" + b"\x7f" * 11) + bytes(1024),
        _header(b"0.png", b"77777777777\0") + bytes(1024),
        _header(b"long", b"00100000000\0", b"L") + b"a" * (16 << 20),  # a name of 16 MiB
        _header(b"long", b"00100000000\0", b"x") + b"1" * (16 << 20),
        _header(b"long", b"00000000001\0", b"L") * 3000 + bytes(1024),  # names of names
        _header(b"pax", b"00000000012\0", b"x") + b"10 size=-9" + bytes(502) + _header(b"0.png", b"0" * 11 + b"\0"),
    ],
    ids=["negative", "backwards", "enormous", "larger than the file", "long name", "long pax", "deep", "pax size"],
)
def test_hostile_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.tar"):
            open_any(tmp_path / "a.tar")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_parts_of_the_order(folder: Path, tmp_path: Path) -> None:
    pack_tars(folder, tmp_path / "shards", each=40)
    for spec in (folder, tmp_path / "shards"):
        dataset = open_any(spec)
        whole = [(sample.name, sample.place) for sample in dataset]
        parts = [(s.name, s.place) for start in range(0, 90, 16) for s in dataset.read(start, start + 16)]
        assert whole == parts
        assert [place for _, place in whole] == list(range(90))
