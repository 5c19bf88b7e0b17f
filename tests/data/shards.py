"""Images as folders, `.tar` shards and Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitdeploy.data.dataset import Dataset
from vitdeploy.data.opening import open_dataset
from vitdeploy.recipe import Preprocess

PREPROCESS = Preprocess(size=(8, 8))


def open_any(spec: Path | str, **options: object) -> Dataset:
    """Open data for evaluation, with labels."""
    arguments = {"labels": None, "need_labels": True, "split": "evaluation", **options}
    return open_dataset(str(spec), PREPROCESS, **arguments)  # type: ignore[arg-type]


def png(shade: int = 0) -> bytes:
    """A PNG of noise, another one for each shade."""
    pixels = np.random.default_rng(shade).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def fill_folder(folder: Path, classes: Sequence[str], count: int) -> Path:
    """Write `count` images of each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index:03}.png").write_bytes(png(100 * number + index))
    return folder


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write files into an uncompressed tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def list_samples(folder: Path) -> list[tuple[str, bytes, int]]:
    """Name, contents and class index of the images in a folder, in the order in which it is opened."""
    classes = sorted(path.name for path in folder.iterdir())
    files = [file for name in classes for file in sorted((folder / name).iterdir())]
    return [(f.relative_to(folder).as_posix(), f.read_bytes(), classes.index(f.parent.name)) for f in files]


def pack_tars(folder: Path, out: Path, each: int) -> list[Path]:
    """Write the images of a folder as shards of `each` images: `000.png` beside `000.cls`."""
    samples = list_samples(folder)
    shards = []
    for start in range(0, len(samples), each):
        files = []
        for name, content, label in samples[start : start + each]:
            files += [(name, content), (f"{name.rpartition('.')[0]}.cls", str(label).encode())]
        shards.append(write_tar(out / f"val-{len(shards):03}.tar", files))
    return shards


def write_parquet(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    features: Mapping[str, Any] | None = None,
    schema: Any = None,
    group: int = 16,
) -> Path:
    """Write rows as Parquet, with Hugging Face's metadata where `features` are given."""
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=schema)
    if features is not None:
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    parquet.write_table(table, path, row_group_size=group)
    return path


def pack_parquet(folder: Path, out: Path, each: int) -> list[Path]:
    """Write the images of a folder as Parquet files of `each` images, with paths and class names."""
    samples = list_samples(folder)
    classes = sorted(path.name for path in folder.iterdir())
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    rows = [{"image": {"bytes": content, "path": name}, "label": label} for name, content, label in samples]
    parts = [rows[start : start + each] for start in range(0, len(rows), each)]
    return [
        write_parquet(out / f"val-{n:05}-of-{len(parts):05}.parquet", part, features) for n, part in enumerate(parts)
    ]
