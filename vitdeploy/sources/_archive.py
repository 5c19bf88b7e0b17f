"""Whether a zip archive is as it was written. PyTorch's reader does not compare checksums."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from pathlib import Path


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
