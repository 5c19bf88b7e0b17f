"""The digest of a dataset, which is the same whatever files its samples are stored in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

MAX_HASHED_BYTES = 2 << 30
"""Beyond this, names and sizes stand for the contents: hashing ImageNet takes too long."""


class SampleDigest:
    """sha256 of the names, sizes, labels and contents of samples, in their order."""

    def __init__(self) -> None:
        self._full, self._short = hashlib.sha256(), hashlib.sha256()
        self._bytes = 0

    def add(self, name: str, size: int, label: object, contents: Iterable[bytes]) -> None:
        """Add a sample.

        Args:
            name: its name, such as `cat/1.png`.
            size: of its image, in bytes.
            label: its class index, or another text that stands for its label.
            contents: the bytes of its image and of a label that is a file, in pieces. They are not read if the samples
                are too large together.
        """
        head = f"{name}:{size}:{label};".encode(errors="surrogateescape")
        self._full.update(head)
        self._short.update(head)
        self._bytes += size
        if self._bytes < MAX_HASHED_BYTES:
            for piece in contents:
                self._full.update(piece)

    def hexdigest(self) -> str:
        """Return the digest. It has no contents if these are larger than `MAX_HASHED_BYTES`."""
        return (self._full if self._bytes < MAX_HASHED_BYTES else self._short).hexdigest()
