"""Changed images and data sets: read, or refused in one line, within a bound of time and memory."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.shards import write_parquet, write_tar
from tests.robustness.cases import FINE, WRONG, Judged
from tests.robustness.mutations import mutate_bytes, mutate_json

_SIDE = 24
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "ICNS", "SGI", "DDS",
            "JPEG2000", "MPO", "IM", "SPIDER")  # fmt: skip
_MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F", "I")
_SIDES = (0, 1, 20_000, 65_535, 100_000, 2**31 - 1)


class Data:
    """Images of many formats, `.npz`, `.npy`, shards and COCO's JSON."""

    name = "data"
    seconds = 30.0
    mebibytes = 2560
    """64 million pixels at 30 bytes, as limits.MAX_PIXELS allows them, and some room."""

    def prepare(self, folder: Path) -> None:
        """Make small images in every format that Pillow writes, and small data sets."""
        pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        self._images: dict[str, bytes] = {}
        for form in _FORMATS:
            for mode in _MODES:
                try:
                    stream = io.BytesIO()
                    Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(stream, form)
                    self._images[f"{form}-{mode}"] = stream.getvalue()
                except (OSError, KeyError, ValueError):
                    continue  # this format has no such mode
        rows = [(f"{number}.png", self._images["PNG-RGB"], number) for number in range(3)]
        files = [(name, content) for name, content, _ in rows] + [(f"{n}.cls", b"%d" % n) for *_, n in rows]
        self._shards = {
            ".tar": write_tar(folder / "fuzzed.tar", sorted(files)).read_bytes(),
            ".parquet": write_parquet(
                folder / "fuzzed.parquet",
                [{"image": {"bytes": content, "path": name}, "label": label} for name, content, label in rows],
                {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}},
            ).read_bytes(),
        }
        self._coco = json.dumps(
            {
                "images": [{"id": n, "file_name": f"{n}.png", "width": _SIDE, "height": _SIDE} for n in range(2)],
                "annotations": [
                    {"id": n, "image_id": n % 2, "category_id": 1, "bbox": [2, 3, 8, 9], "area": 72, "iscrowd": 0}
                    for n in range(3)
                ],
                "categories": [{"id": 1, "name": "cat"}],
            }
        ).encode()
        self._judges: tuple[Callable[[random.Random, Path], Judged], ...] = (
            self._judge_image, self._judge_image, self._judge_folder, self._judge_npz, self._judge_depth,
            self._judge_coco, self._judge_shard, self._judge_shard,
        )  # fmt: skip

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Judge one file or one data set."""
        return rng.choice(self._judges)(rng, folder)

    def _change_image(self, rng: random.Random) -> tuple[bytes, str]:
        name = rng.choice(sorted(self._images))
        kind = rng.random()
        if kind < 0.2:
            width, height = rng.choice(_SIDES), rng.choice(_SIDES)
            return _png(width, height), f"a PNG of {width}x{height}"
        if kind < 0.3 and name.startswith("PNG"):
            at = rng.randrange(8, len(self._images[name]))
            return _fix_checksums(mutate_bytes(self._images[name][:at], rng)[0]), f"{name} with right checksums"
        content, what = mutate_bytes(self._images[name], rng)
        return content, f"{name}: {what}"

    def _judge_image(self, rng: random.Random, folder: Path) -> Judged:
        from vitdeploy.data.preprocess import apply, open_image

        content, what = self._change_image(rng)
        path = folder / f"image{rng.choice(['.jpg', '.png', '.tif', '.bmp', '.webp'])}"
        path.write_bytes(content)
        result = apply(open_image(path), _preprocess())
        right = result.shape == (3, _SIDE, _SIDE) and bool(np.isfinite(result).all())
        return Judged(FINE if right else WRONG, f"{what}: {result.dtype} {result.shape}")

    def _judge_folder(self, rng: random.Random, folder: Path) -> Judged:
        """Classes in sub-folders; one of three images was changed."""
        for label in ("a", "b"):
            (folder / label).mkdir()
            for number in range(2):
                (folder / label / f"{number}.png").write_bytes(self._images["PNG-RGB"])
        content, what = self._change_image(rng)
        (folder / "a" / "0.png").write_bytes(content)
        return self._judge_set(str(folder), "classes", what)

    def _judge_npz(self, rng: random.Random, folder: Path) -> Judged:
        rows = rng.choice([0, 1, 5])
        arrays: dict[str, Any] = {
            "images": rng.choice(
                [
                    np.zeros((rows, _SIDE, _SIDE, 3), np.uint8),
                    np.zeros((rows, 7, 9), np.uint8),
                    np.zeros((rows, 3, _SIDE, _SIDE), np.float32),
                    np.zeros((rows, 0, 4, 3), np.uint8),
                ]
            ),
            "labels": rng.choice(
                [
                    np.zeros(rows, np.int64),
                    np.zeros(rows, np.uint64) + np.uint64(2**63),
                    np.zeros((rows, 1), np.int64),
                    np.full(rows, -1),
                    np.array([None] * rows),
                ]
            ),
        }
        stream = io.BytesIO()
        rng.choice([np.savez, np.savez_compressed])(stream, **arrays)
        content, what = stream.getvalue(), "arrays"
        kind = rng.random()
        if kind < 0.4:
            content, what = mutate_bytes(content, rng)
        elif kind < 0.8:
            content, what = _change_header(content, rng)
        path = folder / "data.npz"
        path.write_bytes(content)
        return self._judge_set(str(path), "classes", f"npz: {what}")

    def _judge_depth(self, rng: random.Random, folder: Path) -> Judged:
        for name in ("images", "depth"):
            (folder / name).mkdir()
        (folder / "images" / "0.png").write_bytes(self._images["PNG-RGB"])
        stream = io.BytesIO()
        np.save(stream, np.ones((_SIDE, _SIDE), np.float32))
        content, what = mutate_bytes(stream.getvalue(), rng)
        if rng.random() < 0.4:
            content, what = _npy_header(rng) + bytes(64), "the header of an .npy"
        (folder / "depth" / "0.npy").write_bytes(content)
        return self._judge_set(str(folder), "depth", what)

    def _judge_shard(self, rng: random.Random, folder: Path) -> Judged:
        suffix = rng.choice(sorted(self._shards))
        content, what = mutate_bytes(self._shards[suffix], rng)
        path = folder / f"shard{suffix}"
        path.write_bytes(content)
        return self._judge_set(str(path), "classes", f"{suffix}: {what}")

    def _judge_coco(self, rng: random.Random, folder: Path) -> Judged:
        (folder / "images").mkdir()
        for number in range(2):
            (folder / "images" / f"{number}.png").write_bytes(self._images["PNG-RGB"])
        content, what = mutate_json(self._coco, rng)
        (folder / "annotations.json").write_bytes(content)
        return self._judge_set(str(folder), "boxes", f"COCO: {what}")

    def _judge_set(self, spec: str, form: Any, what: str) -> Judged:
        """Open and read a data set. Every sample has the model's size."""
        from vitdeploy.data.dataset import batches
        from vitdeploy.data.opening import open_dataset

        data = open_dataset(spec, _preprocess(), labels=None, need_labels=True, split="evaluation", form=form)
        count = 0
        for images, labels in batches(data, 2):
            count += len(labels)
            if images.dtype != np.uint8 or images.shape[1:] != (3, _SIDE, _SIDE) or len(images) != len(labels):
                return Judged(WRONG, f"{what}: {images.dtype} {images.shape}, {len(labels)} labels")
        return Judged(FINE, f"{what}: {count} samples")


def _preprocess() -> Any:
    from vitdeploy.recipe import Preprocess

    return Preprocess(size=(_SIDE, _SIDE), mean=(0.5,) * 3, std=(0.5,) * 3, channels=3)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int) -> bytes:
    """A grey PNG that claims a size, with one line of zeros."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    line = zlib.compress(bytes(min(width, 1 << 20) + 1))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", line) + _chunk(b"IEND", b"")


def _fix_checksums(content: bytes) -> bytes:
    """Give each chunk of a PNG its right checksum, as far as there are chunks."""
    result, at = content[:8], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        if at + 12 + size > len(content):
            break
        result += _chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + size])
        at += 12 + size
    return result + content[at:]


def _npy_header(rng: random.Random) -> bytes:
    """A header that may promise more than there is, or other things than numbers."""
    shape = rng.choice(["(24, 24)", "(10**6, 10**6)", "(1000000, 1000000)", "(-1, 24)", "()", "(24,)", "(2**40,)", "x",
                        "(" * 300])  # fmt: skip
    kind = rng.choice(["<f4", "<f8", "|O", "|V8", "<c16", "<M8[s]", "|S5", ">f4", "nonsense"])
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _change_header(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Write an .npz anew, with another header for one array; its checksums are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            filler = bytes(rng.choice([0, 64, 1 << 20]))
            new.writestr(name, _npy_header(rng) + filler if name == chosen else old.read(name))
    return stream.getvalue(), f"the header of {chosen}"
