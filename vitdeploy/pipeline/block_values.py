"""Values inside a model for one example: what a device compares its engine with, without onnx and torch.

`reference/blocks.npz` has the places (block ends, and the groups of operators inside blocks), and a sample of the
numbers there: of the float32 model, and of each target-ready graph as ONNX Runtime computes it operator by operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from vitdeploy.data.array_files import read_npz
from vitdeploy.errors import DataError
from vitdeploy.evidence import Fact
from vitdeploy.graph.row_matching import take_common_rows
from vitdeploy.graph.sqnr import Noise
from vitdeploy.session import Array

MOST_VALUES = 4096
"""Numbers that are stored of one tensor: with 130 places of a ViT-Base 2 MB for each graph."""
MOST_BYTES = 16 << 20
"""Of all numbers together. Where there are more places, fewer numbers of each are stored."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_FIX = "Export the bundle again."


class StoredSpot(Fact):
    """A tensor inside a part, the group of operators that computes it, and the tensors that it is computed from.

    `rows` is the axis of rows that the model selects by score; None if it selects none.
    """

    tensor: str
    layer: str
    kind: str
    reads: tuple[str, ...] = ()
    rows: int | None = None


class StoredPart(Fact):
    """A stretch of the model: stem, a block, what merges patches, or the head. Its last spot is its end."""

    name: str
    block: int | None
    start: str
    spots: tuple[StoredSpot, ...]

    @property
    def end(self) -> StoredSpot:
        """The spot at the end."""
        return self.spots[-1]


@dataclass(frozen=True)
class BlockValues:
    """The places inside a model, and the numbers there.

    Attributes:
        parts: in the order in which they are computed.
        float32: samples of float32's numbers, by tensor.
        emulated: samples of the numbers of each target-ready graph, by precision and tensor.
        indices: the tensor of the indices by which the model selects rows; empty if it does not select.
        chosen: by precision, what the graph has selected, (images, rows); "" is float32.
        moved: by precision and tensor, how far noise as small as float16's rounding in the image moves the values of a
            graph with integers: energy of the difference / energy of the values. Codes flip.
        limit: the most numbers of one tensor in a sample.
        outputs: the outputs of the model, without those whose rows are selected by score: they are compared as sets.
    """

    parts: tuple[StoredPart, ...]
    float32: Mapping[str, Array]
    emulated: Mapping[str, Mapping[str, Array]]
    indices: str = ""
    chosen: Mapping[str, Array] = field(default_factory=dict)
    moved: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    limit: int = MOST_VALUES
    outputs: tuple[StoredSpot, ...] = ()


def sample(values: Array, limit: int) -> Array:
    """Return up to `limit` numbers spread over a tensor, as float32: always the same places of one size.

    They follow multiples of the golden ratio, so no stride of theirs meets one channel or token only.
    """
    flat = values.reshape(-1)
    if flat.size > limit:
        places = np.unique(np.floor((np.arange(1, limit + 1) * _GOLDEN) % 1.0 * flat.size).astype(np.int64))
        flat = flat[places]
    with np.errstate(over="ignore"):
        return flat.astype(np.float32)


def sample_rows(values: Array, axis: int, images: int, limit: int) -> Array:
    """Return up to `limit` numbers of a tensor whose rows are selected: all rows, (images, rows, numbers)."""
    place = next((a for a in range(values.ndim) if a != axis and values.shape[a] == images), None)
    moved = np.moveaxis(values, axis, 0)[None] if place is None else np.moveaxis(values, (place, axis), (0, 1))
    rows = moved.reshape(*moved.shape[:2], -1)
    numbers = max(1, limit // max(1, rows.shape[0] * rows.shape[1]))
    with np.errstate(over="ignore"):
        return rows[:, :, : min(numbers, rows.shape[2])].astype(np.float32)


def take_sample(spot: StoredSpot, values: Array, images: int, limit: int) -> Array:
    """Return the sample of a spot's tensor. See `sample` and `sample_rows`."""
    return sample(values, limit) if spot.rows is None else sample_rows(values, spot.rows, images, limit)


def measure_noise(
    spot: StoredSpot, reference: Array | None, other: Array | None, selected: tuple[Array | None, Array | None]
) -> Noise | None:
    """Compare two samples of a spot; None if one is missing, or has another shape.

    Args:
        spot: the place.
        reference: the sample to compare with. Where it is not finite, nothing is compared.
        other: the other sample.
        selected: what each side has selected, for a spot with rows: only those that both have are compared.
    """
    if reference is None or other is None or reference.shape != other.shape:
        return None
    one, two = selected
    if spot.rows is not None and one is not None and two is not None and one.shape == two.shape:
        reference, other = take_common_rows(reference, other, 1, (one, two))
    noise, usable = Noise(), np.isfinite(reference)  # float16 can overflow in the graph itself
    noise.add(reference[usable], other[usable])
    return noise


def save_block_values(path: Path, values: BlockValues) -> int:
    """Write the values. Return the size of the file in bytes."""
    path.parent.mkdir(exist_ok=True)
    parts = _PARTS.dump_json(values.parts)
    arrays: dict[str, Array] = {"parts": np.frombuffer(parts, np.uint8), "limit": np.array(values.limit)}
    arrays["outputs"] = np.frombuffer(_OUTPUTS.dump_json(values.outputs), np.uint8)
    arrays["indices"] = np.array(values.indices)
    numbers = {spot.tensor: n for n, spot in enumerate(_list_spots(values.parts, values.outputs))}
    arrays |= {f"float32.{numbers[name]}": array for name, array in values.float32.items()}
    for precision, tensors in values.emulated.items():
        arrays |= {f"{precision}.{numbers[name]}": array for name, array in tensors.items()}
    arrays |= {f"chosen.{precision}": array for precision, array in values.chosen.items()}
    for precision, shares in values.moved.items():
        arrays[f"moved.{precision}"] = np.array([[numbers[name], share] for name, share in shares.items()])
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path.stat().st_size


def load_block_values(path: Path) -> BlockValues | None:
    """Read a file of `save_block_values`; None if a bundle has none: older ones do not.

    Raises:
        DataError: it is damaged.
    """
    if not path.exists():
        return None
    arrays = read_npz(path, _FIX)
    try:
        parts = _PARTS.validate_json(arrays["parts"].tobytes())
        outputs = _OUTPUTS.validate_json(arrays["outputs"].tobytes()) if "outputs" in arrays else ()
        limit = int(arrays["limit"])
        spots = _list_spots(parts, outputs)
        samples: dict[str, dict[str, Array]] = {}
        for key, array in arrays.items():
            precision, _, number = key.rpartition(".")
            if precision and precision not in ("chosen", "moved"):
                samples.setdefault(precision, {})[spots[int(number)].tensor] = array
        moved = {
            key.removeprefix("moved."): {spots[int(number)].tensor: float(share) for number, share in array}
            for key, array in arrays.items()
            if key.startswith("moved.")
        }
    except (KeyError, IndexError, ValueError, TypeError, ValidationError):
        raise DataError(f"{path} is damaged: it does not fit its own list of places", fix=_FIX) from None
    if not parts or any(not part.spots for part in parts):
        raise DataError(f"{path} names no place in the model", fix=_FIX)
    chosen = {key.removeprefix("chosen."): array for key, array in arrays.items() if key.startswith("chosen.")}
    float32 = samples.pop("float32", {})
    return BlockValues(parts, float32, samples, str(arrays.get("indices", "")), chosen, moved, limit, outputs)


def _list_spots(parts: tuple[StoredPart, ...], outputs: tuple[StoredSpot, ...]) -> list[StoredSpot]:
    return [*(spot for part in parts for spot in part.spots), *outputs]


_PARTS = TypeAdapter(tuple[StoredPart, ...])
_OUTPUTS = TypeAdapter(tuple[StoredSpot, ...])
