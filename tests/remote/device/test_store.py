"""Files by their sha256: complete or missing, wherever a transfer is cut and whoever else sends."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from vitdeploy.errors import RemoteError
from vitdeploy.machine_lock import try_lock
from vitdeploy.remote.device.store import Store
from vitdeploy.remote.messages import Blob, FileHeader

CONTENT = bytes(range(256)) * 40


def blob(content: bytes = CONTENT) -> Blob:
    return Blob(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def sent(content: bytes, offset: int = 0, upto: int | None = None) -> io.BytesIO:
    """The stream of one file, cut after `upto` bytes."""
    header = FileHeader(**blob(content).model_dump(), offset=offset).model_dump_json().encode() + b"\n"
    return io.BytesIO((header + content[offset:])[: None if upto is None else len(header) + upto])


@pytest.mark.parametrize("cut", [0, 1, 5000, len(CONTENT) - 1])
def test_a_cut_transfer_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    store = Store(tmp_path)
    assert store.receive(sent(CONTENT, upto=cut)) == 0
    [gap] = store.find_missing([blob()]).gaps
    assert gap.have == cut
    assert store.receive(sent(CONTENT, offset=cut)) == 1
    assert store.find_missing([blob()]).gaps == ()
    assert store.blob(blob().sha256).read_bytes() == CONTENT
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_cut_header_is_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.receive(io.BytesIO(sent(CONTENT).getvalue()[:40])) == 0
    assert store.find_missing([blob()]).gaps[0].have == 0


def test_many_files_and_an_empty_one_in_one_stream(tmp_path: Path) -> None:
    store, contents = Store(tmp_path), [b"", b"a", b"\n{}\n", CONTENT]
    assert store.receive(io.BytesIO(b"".join(sent(content).getvalue() for content in contents))) == 4
    assert store.find_missing([blob(content) for content in contents]).gaps == ()


def test_other_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stream = sent(CONTENT).getvalue().replace(CONTENT, CONTENT[::-1])
    with pytest.raises(RemoteError, match="was damaged on the way"):
        store.receive(io.BytesIO(stream))
    assert store.find_missing([blob()]).gaps[0].have == 0


def test_what_a_disk_has_lost_is_missing_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.receive(sent(CONTENT))
    place = store.blob(blob().sha256)
    place.chmod(0o644)
    place.write_bytes(CONTENT[::-1])
    assert len(store.find_missing([blob()]).gaps) == 1


def test_two_who_send_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    """One hangs in the middle; the other starts at 0 with a part of its own."""
    store = Store(tmp_path)
    reading, writing = os.pipe()
    received: list[int] = []

    def receive() -> None:
        with os.fdopen(reading, "rb") as stream:
            received.append(store.receive(stream))

    other = threading.Thread(target=receive, daemon=True)  # a fork of a process with many threads may hang
    other.start()
    os.write(writing, sent(CONTENT, upto=3000).getvalue())
    deadline = time.monotonic() + 60
    while not (tmp_path / "partial" / blob().sha256).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [gap] = store.find_missing([blob()]).gaps
    assert gap.have == 0, "the other one's part is not this one's to go on with"
    assert store.prune(days=0) == 0, "nor is it to be cleaned away"
    assert (tmp_path / "partial" / blob().sha256).exists()
    assert store.receive(sent(CONTENT)) == 1
    os.write(writing, CONTENT[3000:])
    os.close(writing)
    other.join(timeout=60)
    assert received == [1]
    assert store.find_missing([blob()]).gaps == ()
    assert store.blob(blob().sha256).read_bytes() == CONTENT


def test_a_file_that_another_stores_before_the_lock_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    assert store.receive(sent(CONTENT, upto=5000)) == 0

    def lock_late(file: BinaryIO) -> bool:
        monkeypatch.setattr("vitdeploy.remote.device.store.try_lock", try_lock)
        assert store.receive(sent(CONTENT, offset=5000)) == 1  # the other client, between opening and locking
        return try_lock(file)

    monkeypatch.setattr("vitdeploy.remote.device.store.try_lock", lock_late)
    with pytest.raises(RemoteError, match="another client is sending"):
        store.receive(sent(CONTENT, offset=5000, upto=10))
    assert store.blob(blob().sha256).read_bytes() == CONTENT


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_takes_only_the_part_of_its_own_client(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.receive(sent(CONTENT, upto=3000)) == 0
    part = tmp_path / "partial" / blob().sha256
    with part.open("rb") as other:
        assert try_lock(other)
        with full_disk(5000), pytest.raises(RemoteError, match="is full"):
            store.receive(sent(CONTENT))
        assert list(part.parent.iterdir()) == [part]
        assert part.read_bytes() == CONTENT[:3000]
    with full_disk(5000), pytest.raises(RemoteError, match="is full"):
        store.receive(sent(CONTENT, offset=3000))
    assert not part.exists()


def test_cleaning_up_keeps_the_lock_until_a_part_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client could go on with the part just before it is removed."""
    store, removed = Store(tmp_path), []
    assert store.receive(sent(CONTENT, upto=3000)) == 0
    unlink = Path.unlink

    def watch(path: Path, *, missing_ok: bool = False) -> None:
        with path.open("rb") as other:
            assert not try_lock(other)
        removed.append(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watch)
    assert store.prune(days=0) == 3000
    assert removed == [tmp_path / "partial" / blob().sha256]


def test_what_nobody_used_for_long_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    for content in (b"old", b"new"):
        store.receive(sent(content))
    old = store.blob(blob(b"old").sha256)
    os.utime(old, (1, 1))
    assert store.prune() == 3
    assert [gap.sha256 for gap in store.find_missing([blob(b"old"), blob(b"new")]).gaps] == [old.name]


def test_a_job_gets_its_files_and_using_them_keeps_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    store.receive(sent(CONTENT))
    os.utime(store.blob(blob().sha256), (1, 1))
    store.place(blob(), tmp_path / "job" / "in" / "file")
    assert (tmp_path / "job" / "in" / "file").read_bytes() == CONTENT
    store.prune()
    assert store.find_missing([blob()]).gaps == ()
    with pytest.raises(RemoteError, match="is not on the device"):
        store.place(blob(b"never"), tmp_path / "job" / "other")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\0b"])
def test_a_path_that_leaves_the_job_is_refused(path: str) -> None:
    from pydantic import ValidationError

    from vitdeploy.remote.messages import FilePart, JobFile

    with pytest.raises(ValidationError):
        JobFile(path=path, **blob().model_dump())
    with pytest.raises(ValidationError):
        FilePart(path=path, offset=0)
    with pytest.raises(ValidationError):
        Blob(sha256="../../etc/passwd", bytes=1)


def test_a_job_that_begins_leaves_the_files_of_others_as_they_are(tmp_path: Path) -> None:
    """Others check that nobody changes what they have opened."""
    store = Store(tmp_path / "cache")
    store.receive(sent(CONTENT))
    os.utime(store.blob(blob().sha256), (1, 1))
    first = tmp_path / "one" / "file"
    store.place(blob(), first)
    before = first.stat()
    store.place(blob(), tmp_path / "two" / "file")
    after = first.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_nlink) == (before.st_mtime_ns, before.st_ino, 3)
    store.prune()
    assert store.blob(blob().sha256).exists(), "it was used just now"
