"""Small files that a user writes: lists and maps of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitdeploy import yaml12
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_JSON_BYTES
from vitdeploy.plain_files import read_plain


def read_text(path: Path, contents: str, *, absent: str, fix: str) -> str:
    """Return the text in a file.

    Args:
        path: the file.
        contents: its contents in a word, for messages: "labels".
        absent: what to do if there is no such file.
        fix: what to do if it is not a text.

    Raises:
        DataError: there is no such file, it is too large, or it is not in UTF-8.
    """
    try:
        return read_plain(path, MAX_JSON_BYTES.value).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no file {path} with {contents}", fix=absent) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix=MAX_JSON_BYTES.fix) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text in UTF-8", fix=fix) from None


def parse_text(path: Path, text: str, *, fix: str) -> Any:
    """Return the value that a text in JSON has, if the file is named `.json`, or else one in YAML.

    Raises:
        DataError: it is neither.
    """
    is_json = path.suffix.lower() == ".json"
    try:
        return json.loads(text) if is_json else yaml12.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not readable {'JSON' if is_json else 'YAML'}: {reason}", fix=fix) from None
