"""Parquet files of images in the form of Hugging Face datasets: their columns, rows and class names. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_DATA_BYTES
from vitdeploy.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

_METADATA = b"huggingface"
_IMAGE, _LABELS = "image", ("label", "labels")
_BYTES, _PATH = "bytes", "path"
_READ_AHEAD_BYTES = 1 << 20
_ROWS = 32
"""Rows that are decoded together. A row group of photographs may have a gigabyte."""
_FIX = (
    "Give a column `image` (encoded bytes, or a struct of `bytes` and `path`) and a column `label` of integers, as "
    "Hugging Face datasets write them."
)


@dataclass(frozen=True)
class Columns:
    """The columns of a file that make samples.

    Attributes:
        image: the column of images.
        nested: True if it is a struct of `bytes` and `path`.
        has_paths: True if the struct has paths.
        label: the column of class indices; None if there is none.
        classes: the names of the classes, if the file has them.
    """

    image: str
    nested: bool
    has_paths: bool
    label: str | None
    classes: tuple[str, ...] | None

    @property
    def contents(self) -> str:
        """The name of the column with encoded images."""
        return f"{self.image}.{_BYTES}" if self.nested else self.image


class ParquetShard:
    """A Parquet file, opened anew for each use; only its footer stays in memory."""

    def __init__(self, path: Path, *, need_labels: bool) -> None:
        """Read the footer.

        Args:
            path: the file.
            need_labels: True if labels that are no integers are an error; else such a column is left out.

        Raises:
            DataError: pyarrow is not installed, or the file is damaged, too large, or has no column of images.
        """
        self.path = path
        with self._open() as file:
            self.columns = _find_columns(path, file.schema_arrow, need_labels=need_labels)
            metadata = file.metadata
            self.groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            largest = max((metadata.row_group(n).total_byte_size for n in range(len(self.groups))), default=0)
        if largest > MAX_DATA_BYTES.value:
            raise DataError(f"{path} has a row group of {largest:,} bytes once unpacked", fix=MAX_DATA_BYTES.fix)

    def read_labels(self) -> tuple[list[int | None], list[str | None]]:
        """Return label and path of each row; None where there is none."""
        columns = self.columns
        names = [columns.label] if columns.label is not None else []
        names += [f"{columns.image}.{_PATH}"] if columns.has_paths else []
        labels: list[int | None] = []
        paths: list[str | None] = []
        count = sum(self.groups)
        with self._open() as file:
            for batch in file.iter_batches(batch_size=4096, columns=names) if names else ():
                if columns.label is not None:
                    labels += batch.column(columns.label).to_pylist()
                if columns.has_paths:
                    paths += batch.column(columns.image).field(_PATH).to_pylist()
        return labels or [None] * count, paths or [None] * count

    def read_images(self, group: int, rows: Sequence[int] | None = None) -> Iterator[tuple[int, bytes | None]]:
        """Yield the number of a row in its row group, and its encoded image; None if it has none.

        Args:
            group: the number of the row group.
            rows: the rows to read, in ascending order; None: all.
        """
        import pyarrow as pa

        columns = self.columns
        with self._open() as file:
            start = 0
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[columns.contents]):
                stop = start + len(batch)
                column = batch.column(columns.image)
                column = column.field(_BYTES) if columns.nested else column
                chosen = range(start, stop) if rows is None else [row for row in rows if start <= row < stop]
                if chosen:
                    values = column.take(pa.array([row - start for row in chosen], pa.int64()))
                    yield from zip(chosen, values.to_pylist(), strict=True)
                start = stop

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise DataError(
                f"{self.path}: Parquet is read with pyarrow, which is not installed",
                fix="pip install 'vitdeploy[data]'.",
            ) from None
        try:
            with (
                open_plain(self.path) as stream,
                parquet.ParquetFile(stream, buffer_size=_READ_AHEAD_BYTES, pre_buffer=False) as file,
            ):
                yield file
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{self.path} cannot be read as Parquet: {reason}", fix="Write the file again.") from None


def _find_columns(path: Path, schema: Any, *, need_labels: bool) -> Columns:
    """Return the columns of a file.

    Raises:
        DataError: there is no column of encoded images, or labels are no integers.
    """
    import pyarrow as pa

    features = _read_features(schema.metadata or {})
    image = _choose(schema.names, (_IMAGE,), features, "Image")
    if image is None:
        raise DataError(f"{path} has no column `image`, but {_list(schema.names)}", fix=_FIX)
    kind = schema.field(image).type
    nested = pa.types.is_struct(kind)
    fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)} if nested else {}
    if not _is_bytes(fields.get(_BYTES) if nested else kind):
        raise DataError(f"{path}: its column {image!r} is {str(kind)[:100]}, not encoded images", fix=_FIX)
    label = _choose(schema.names, _LABELS, features, "ClassLabel")
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        if need_labels:
            kind = str(schema.field(label).type)[:100]
            raise DataError(f"{path}: its column {label!r} is {kind}, not integers", fix=_FIX)
        label = None
    texts = (pa.string(), pa.large_string())  # Polars writes large ones
    has_paths = fields.get(_PATH) in texts
    return Columns(image, nested, has_paths, label, _read_classes(features.get(label)) if label else None)


def _choose(names: Sequence[str], usual: Sequence[str], features: dict[str, Any], kind: str) -> str | None:
    """Return the column with a usual name; else the only one that is of a kind of Hugging Face's; else None."""
    for name in usual:
        if name in names:
            return name
    of_kind = [n for n in names if isinstance(features.get(n), dict) and features[n].get("_type") == kind]
    return of_kind[0] if len(of_kind) == 1 else None


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return what Hugging Face datasets wrote about each column; an empty map if they wrote nothing."""
    try:
        features = json.loads(metadata[_METADATA])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _read_classes(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "no columns"
