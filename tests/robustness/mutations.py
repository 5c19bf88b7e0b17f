"""Changes to JSON values and to bytes. Each returns a description."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_NUMBERS = (0, 1, -1, 2, 10, 1e-9, 1e9, 1e308, -1e308, 2**31, 2**63, 2**64, 10**400, 0.5, float("nan"), float("inf"),
            float("-inf"), -0.0)  # fmt: skip
_TEXTS = ("", " ", "x", "0", "nan", "true", "\0", "\n", "\u202e", "\ud83d\ude00", "../../etc/passwd", "/dev/zero", "~",
          "$(id)", "\x1b[2J", "A" * 5000, "float", "pass", "compiled", "null", "--help", "é" * 100)  # fmt: skip
_DEEP = 2000

Path = tuple[Any, ...]


def mutate_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change one place of a JSON document, or its text."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    document = json.loads(content)
    path = rng.choice(list(list_paths(document)))
    return dump(*change_place(document, path, rng))


def dump(document: Any, what: str) -> tuple[bytes, str]:
    """Write a document as JSON; what cannot be written becomes its text."""
    try:
        return json.dumps(document, indent=1).encode("utf-8", "surrogatepass"), what
    except (RecursionError, ValueError):
        return b"[" * _DEEP + b"]" * _DEEP, what


def list_paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each place in a document, long lists by their first and last places only."""
    yield path
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
        items = items if len(items) <= 8 else [*items[:4], *items[-4:]]
    for key, inner in items:
        yield from list_paths(inner, (*path, key))


def get(document: Any, path: Path) -> Any:
    """Return the value at a path."""
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of the document with another value at a path."""
    if not path:
        return value
    document = copy.deepcopy(document)
    get(document, path[:-1])[path[-1]] = value
    return document


def change_place(document: Any, path: Path, rng: random.Random) -> tuple[Any, str]:
    """Change the value at a path: another value, another type, gone, doubled, nested."""
    old = get(document, path)
    where = ".".join(map(str, path)) or "the whole"
    if path and rng.random() < 0.15:
        return _remove(document, path), f"{where} removed"
    if isinstance(old, list) and old and rng.random() < 0.5:
        new = rng.choice([old * 2, old[:-1], old[::-1], [*old, old[0]], [old], []])
        return put(document, path, new), f"{where}: list of {len(old)} changed to {len(new)}"
    if isinstance(old, dict) and rng.random() < 0.5:
        new_key = rng.choice([*_TEXTS[:8], "extra", "__class__"])
        return put(document, path, {**old, new_key: change_value(None, rng)}), f"{where}.{new_key[:20]!r} added"
    new = change_value(old, rng)
    return put(document, path, new), f"{where}: {str(old)[:60]!r} to {str(new)[:60] if not _huge(new) else 'huge'!r}"


def change_value(old: Any, rng: random.Random) -> Any:
    """Return another value, often one near to the old."""
    if isinstance(old, bool):
        return rng.choice([not old, None, "yes", 1, 7])
    if isinstance(old, int | float) and rng.random() < 0.6:
        near = [old + 1, old - 1, old * 2, old / 2, -old, old * 1000, old * 1.001, old * 10]
        return rng.choice(near if isinstance(old, int) else [*near, float(int(old)) if abs(old) < 1e15 else old])
    if isinstance(old, str) and old and rng.random() < 0.4:
        return rng.choice([old[:-1], old.upper(), old + " ", old + "\n", old[::-1], f"{old}{old}"])
    return rng.choice(
        [rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_TEXTS), rng.choice(_TEXTS), None, True, [], {}, [None],
         {"a": 1}, _nest(rng.choice([3, 200]))]
    )  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Flip, cut, double, insert or overwrite bytes."""
    if not content:
        return b"\0", "a byte in an empty file"
    at = rng.randrange(len(content))
    kind = rng.choice(["flip", "flip", "flip", "cut", "insert", "overwrite", "double", "empty", "zeros"])
    if kind == "flip":
        changed = bytearray(content)
        count = rng.choice([1, 1, 1, 2, 16])
        for _ in range(count):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed), f"{count} bits flipped"
    size = min(len(content) - at, rng.choice([1, 4, 64]))
    noise = bytes(rng.randrange(256) for _ in range(size))
    new = {
        "cut": content[:at],
        "insert": content[:at] + noise + content[at:],
        "overwrite": content[:at] + noise + content[at + size :],
        "double": content + content[at:],
        "empty": b"",
        "zeros": content[:at] + bytes(len(content) - at),
    }[kind]
    return new, f"{kind} at byte {at} of {len(content)}"


def _remove(document: Any, path: Path) -> Any:
    document = copy.deepcopy(document)
    del get(document, path[:-1])[path[-1]]
    return document


def _nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 10**300
