"""The outcome of every evaluated sample, kept beside `eval.json` so that its figures can be computed again.

The file is an `.npz` of plain arrays: `digest`, `agreement`, `finite`, `reference/NAME` and `deployed/NAME` for the
statistics of the two models, and `group/NUMBER` for groups of samples. Nothing in it is unpickled, and sizes are
checked before anything is read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vitdeploy.data.array_files import read_members
from vitdeploy.errors import DataError, MeasureError
from vitdeploy.measure.statistics import Array
from vitdeploy.tasks import Values

MAX_FILE_BYTES = 512 << 20
"""The most compressed bytes."""
MAX_BYTES = 1 << 30
"""The most bytes of all arrays: 5,000 images with 100 boxes take 16 MB, 50,000 classified images take 4 MB."""
_MAX_SAMPLES = 100_000_000
_REFERENCE, _DEPLOYED, _GROUP = "reference/", "deployed/", "group/"
_OWN = ("digest", "agreement", "finite")
_NUMBERS = frozenset("biuf")  # the kinds of dtype: bool, signed, unsigned, floating-point
_FIX = "Run vitdeploy eval again."


@dataclass(frozen=True)
class Outcomes:
    """The answers of two models to the same samples, as statistics. The first axis of every array is the sample.

    Attributes:
        digest: uint64, `data.dataset.digest_image` of each image.
        reference: statistics of the reference by name.
        deployed: the same statistics of the deployed model.
        agreement: how far the two answers agree, from 0 to 1.
        finite: bool, False if the deployed model gave NaN or infinity.
        groups: by number, True for the samples in it.
    """

    digest: Array
    reference: Values
    deployed: Values
    agreement: Array
    finite: Array
    groups: Mapping[str, Array] = field(default_factory=dict)


def count_once(outcomes: Outcomes) -> Outcomes:
    """Keep the first sample of each image. An image that is repeated says nothing new about the models."""
    return select(outcomes, find_distinct(outcomes))


def find_distinct(outcomes: Outcomes) -> Array:
    """Return the index of the first sample of each image, in the order of the samples."""
    _, first = np.unique(outcomes.digest, return_index=True)
    return np.sort(first)


def select(outcomes: Outcomes, chosen: Array) -> Outcomes:
    """Return the samples with these indices, or for which `chosen` is True."""
    return Outcomes(
        digest=outcomes.digest[chosen],
        reference={name: values[chosen] for name, values in outcomes.reference.items()},
        deployed={name: values[chosen] for name, values in outcomes.deployed.items()},
        agreement=outcomes.agreement[chosen],
        finite=outcomes.finite[chosen],
        groups={name: members[chosen] for name, members in outcomes.groups.items()},
    )


def pack(outcomes: Outcomes) -> bytes:
    """Return the compressed file. Equal outcomes give equal bytes."""
    arrays = {name: getattr(outcomes, name) for name in _OWN}
    arrays |= {f"{_REFERENCE}{name}": values for name, values in outcomes.reference.items()}
    arrays |= {f"{_DEPLOYED}{name}": values for name, values in outcomes.deployed.items()}
    arrays |= {f"{_GROUP}{name}": members for name, members in outcomes.groups.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(raw: bytes) -> Outcomes:
    """Read a file that `pack` wrote.

    Raises:
        MeasureError: it is damaged, too large, or has other arrays.
    """
    try:
        arrays = read_members("the file of the samples", io.BytesIO(raw), _FIX, MAX_BYTES)
        outcomes = Outcomes(
            digest=arrays.pop("digest"),
            agreement=arrays.pop("agreement"),
            finite=arrays.pop("finite"),
            reference=_take(arrays, _REFERENCE),
            deployed=_take(arrays, _DEPLOYED),
            groups=_take(arrays, _GROUP),
        )
    except KeyError as error:
        raise MeasureError(f"the samples have no {error}", fix=_FIX) from None
    except DataError as error:
        raise MeasureError(error.message, fix=_FIX) from None
    except OSError as error:
        raise MeasureError(f"the samples cannot be read: {error}", fix=_FIX) from None
    _check(outcomes, arrays)
    return outcomes


def _take(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}


def _check(outcomes: Outcomes, others: dict[str, Array]) -> None:
    """Check types and shapes."""
    values = (*outcomes.reference.values(), *outcomes.deployed.values())
    own = (outcomes.digest, outcomes.agreement, outcomes.finite, *outcomes.groups.values())
    kinds = {array.dtype.kind for array in (*own, *values)}
    if (
        others
        or not kinds <= _NUMBERS
        or any(array.ndim != 1 for array in own)
        or any(array.ndim < 1 for array in values)
    ):
        raise MeasureError("the samples have other arrays than eval writes", fix=_FIX)
    types = (outcomes.digest.dtype, outcomes.agreement.dtype, outcomes.finite.dtype)
    if types != (np.dtype(np.uint64), np.dtype(np.float64), np.dtype(bool)):
        raise MeasureError("the samples have arrays of other types than eval writes", fix=_FIX)
    if len({len(array) for array in (*own, *values)}) != 1 or not 0 < len(outcomes.digest) <= _MAX_SAMPLES:
        raise MeasureError("the arrays of the samples have different lengths, or none", fix=_FIX)
    if not np.all((outcomes.agreement >= 0) & (outcomes.agreement <= 1)):
        raise MeasureError("the samples have an agreement that is not from 0 to 1", fix=_FIX)
