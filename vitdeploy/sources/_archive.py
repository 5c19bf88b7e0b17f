"""Check that a zip archive is as it was written. PyTorch's reader does not compare checksums."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any


def refuse_damaged(path: Path) -> None:
    """Refuse an archive with a member whose checksum is wrong, or with two members of one name.

    Of two members of one name each reader takes another one. The archive must be known to be no larger once unpacked.

    Raises:
        ValueError: the first problem.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name, count = Counter(archive.namelist()).most_common(1)[0]
            if count > 1:
                raise ValueError(f"it has {count} members {name!r}")
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, IndexError, RuntimeError) as error:
        raise ValueError(f"its list of members is damaged: {error}") from None
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong!r} is wrong")


def refuse_packed(path: Path, reader: Any) -> None:
    """Refuse an archive that is larger once unpacked. PyTorch packs nothing, so a small file could fill the memory.

    Raises:
        ValueError: its members together have more bytes than the file.
    """
    size = sum(record_size(reader, name) for name in reader.get_all_records())
    if size > path.stat().st_size:
        raise ValueError(f"its members have {size:,} bytes, more than the file")


def record_size(reader: Any, name: str) -> int:
    """Return the bytes of a member in PyTorch's reader of archives. Older versions only tell by reading it."""
    return int(reader.get_record_size(name)) if hasattr(reader, "get_record_size") else len(reader.get_record(name))
