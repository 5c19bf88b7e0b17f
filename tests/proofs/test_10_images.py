"""Point 10: images are bounded before they are decoded, and come in known formats only."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.images import FORMATS, open_image
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import DataError, UsageError
from vitdeploy.recipe import Preprocess

_SMALL = Preprocess(size=(32, 32))


def _png(width: int, height: int, kind: bytes = b"\x10\x00", rows: bytes = b"") -> bytes:
    """A PNG of this size with few bytes; kind: bits a channel, colour type."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">II", width, height) + kind + b"\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _encode(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, form)
    return buffer.getvalue()


def test_a_small_file_with_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """The case of the report: 312 bytes cost 7.3 GB."""
    path = tmp_path / "a.png"
    path.write_bytes(_png(13_000, 13_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"13000x13000 pixels, more than 67,108,864\. .*VITDEPLOY_MAX_PIXELS="):
        open_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def test_the_bound_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setenv("VITDEPLOY_MAX_PIXELS", "9999")
    with pytest.raises(DataError, match="100x100"):
        open_image(path)
    monkeypatch.setenv("VITDEPLOY_MAX_PIXELS", "10000")
    assert open_image(path).size == (100, 100)
    for text in ("0", "many", "-1", "1e9", "9" * 30, "²"):
        monkeypatch.setenv("VITDEPLOY_MAX_PIXELS", text)
        with pytest.raises(UsageError, match="VITDEPLOY_MAX_PIXELS is"):
            open_image(path)


@pytest.mark.parametrize("form", FORMATS)
def test_the_allowed_formats_are_read_whatever_the_name(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.jpg").write_bytes(_encode(form))
    assert open_image(tmp_path / "a.jpg").size == (8, 8)


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "ICNS"])
def test_other_formats_are_refused_whatever_the_name(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.jpg").write_bytes(_encode(form))
    with pytest.raises(DataError, match="is not an image"):
        open_image(tmp_path / "a.jpg")


def test_postscript_starts_no_program(tmp_path: Path) -> None:
    """The case of the report: Ghostscript ran."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    script = f"import pathlib, vitdeploy.data.images as i; i.open_image(pathlib.Path({str(tmp_path / 'a.jpg')!r}))"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "is not an image" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_of_an_animation_only_the_first_frame_is_decoded(tmp_path: Path) -> None:
    frames = [Image.new("P", (64, 64), index % 2) for index in range(50)]
    for name, form in (("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a.tif", "TIFF")):
        frames[0].save(tmp_path / name, form, save_all=True, append_images=frames[1:])
        assert open_image(tmp_path / name).size == (64, 64)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_one_line(tmp_path: Path, form: str, part: float) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    content = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=r"is damaged|is not an image"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_are_one_line_or_an_image(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    content = bytearray(_encode(FORMATS[seed % len(FORMATS)]))
    for place in generator.integers(0, len(content), 5):
        content[place] = generator.integers(0, 256)
    (tmp_path / "a.jpg").write_bytes(content)
    with contextlib.suppress(DataError):  # anything else is raw
        assert open_image(tmp_path / "a.jpg").size


def test_damaged_exif_is_one_line(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06\0\0\0")
    exif += struct.pack("<HHII", 0x829A, 5, 1, 0xFFFFFFF0) + b"\0\0\0\0"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    with contextlib.suppress(DataError):
        assert open_image(tmp_path / "a.jpg").size


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "folder", "device"]
)
def test_only_plain_files_are_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be read"):
        open_image(tmp_path / "a.png")


def test_a_link_to_an_image_is_followed(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert open_image(tmp_path / "b.png").size == (4, 4)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["fifo", "broken link", "circle"])
def test_a_folder_with_something_else_than_files_is_refused(tmp_path: Path, name: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    odd = tmp_path / "b.png"
    if name == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to("nowhere" if name == "broken link" else "b.png")
    with pytest.raises(DataError, match=r"b\.png"):
        open_dataset(str(tmp_path), _SMALL, labels=None, need_labels=False, split="calibration")


def test_a_folder_that_is_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "holiday.jpg" / "a.png")
    data = open_dataset(str(tmp_path), _SMALL, labels=None, need_labels=False, split="calibration")
    assert len(data) == 1
    assert len(list(data)) == 1
