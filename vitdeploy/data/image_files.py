"""Image files that a user names: files, folders and globs, in the order in which people number them."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.data._folder import SUFFIXES, filter_images
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".m2ts", ".3gp", ".ogv",
}  # fmt: skip
_WILDCARD = re.compile(r"[*?[]")
_DIGITS = re.compile(r"([0-9]+)")

_SortKey = tuple[tuple[int, int, str], ...]


def find_images(given: str | Path) -> list[Path]:
    """Return the image files that a file, a folder or a glob names.

    A folder stands for all images below it, a glob for the files and folders that it matches. `**` matches any number
    of folders. Hidden files and folders do not count, nor do links to folders below the given one. A file that exists
    is taken whatever its suffix, and even if its name has wildcards in it. The order is that of the numbers in the
    names: frame2 is before frame10.

    Raises:
        DataError: there is no such file, it is a video, or no image is in the folder or matches the glob.
    """
    path = expand_home(str(given))
    facts = _read_facts(path)
    if facts is not None:
        if not stat.S_ISDIR(facts.st_mode):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise _video_error(path)
            return [path]
        return _choose_images(
            _list_below(path), f"{path} has no images in it", f"Put images there: {_list_suffixes()}."
        )
    if not is_pattern(path):
        raise DataError(f"there is no image {path}", fix="Check the path.")
    below = (file for match in match_glob(path) for file in (_list_below(match) if match.is_dir() else [match]))
    return _choose_images(below, f"no image matches {path}", f"Check the pattern. Images are: {_list_suffixes()}.")


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in natural order. Hidden files do not count.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted(filter_images(folder.iterdir()), key=natural_key)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}", fix="Make the folder readable.") from None


def natural_key(path: Path) -> tuple[_SortKey, ...]:
    """Return a sort key of a path in which digits count as numbers: frame2 is before frame10, a/x before b/a."""
    return tuple(_split_numbers(part) for part in path.parts)


def _split_numbers(name: str) -> _SortKey:
    """Return the name in parts: (0, number, digits) or (1, 0, text). Equal numbers are ordered by their digits."""
    parts = (part for part in _DIGITS.split(name) if part)
    return tuple((0, int(part), part) if _DIGITS.fullmatch(part) else (1, 0, part) for part in parts)


def _read_facts(path: Path) -> os.stat_result | None:
    """Return what the system knows of a file or folder; None if there is none."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="Give a readable file.") from None


def _choose_images(files: Iterable[Path], message: str, fix: str) -> list[Path]:
    """Return the images among files, each once, in natural order."""
    distinct = list(dict.fromkeys(files))
    images = [file for file in distinct if file.suffix.lower() in SUFFIXES]
    if not images:
        videos = [file for file in distinct if file.suffix.lower() in VIDEO_SUFFIXES]
        raise _video_error(videos[0]) if videos else DataError(message, fix=fix)
    return sorted(images, key=natural_key)


def _list_below(folder: Path) -> list[Path]:
    """Return all files below a folder that are not hidden. Links to folders are not followed: they can lead back.

    Raises:
        DataError: a folder cannot be read.
    """
    files: list[Path] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            with os.scandir(current) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
                folders += [current / entry.name for entry in shown if entry.is_dir(follow_symlinks=False)]
                files += [current / entry.name for entry in shown if not entry.is_dir()]
        except OSError as error:
            raise DataError(f"{current} cannot be read: {error.strerror}", fix="Make the folder readable.") from None
    return files


def is_pattern(path: Path) -> bool:
    """Return True if a path has wildcards in it."""
    return _WILDCARD.search(str(path)) is not None


def match_glob(pattern: Path) -> list[Path]:
    """Return the files and folders that match a glob. A wildcard matches no leading dot.

    Raises:
        DataError: `**` is only a part of a name.
    """
    parts = pattern.parts
    first = next(place for place, part in enumerate(parts) if _WILDCARD.search(part))
    wild = parts[first:]
    base = Path(*parts[:first])
    hidden = any(part.startswith(".") for part in wild)
    try:
        matches = list(base.glob("/".join(wild)))
    except (ValueError, NotImplementedError) as error:
        raise DataError(
            f"{pattern} is not a pattern: {error}", fix="Use ** for whole folders only: a/**/*.png."
        ) from None
    except OSError as error:
        raise DataError(f"{pattern} cannot be read: {error.strerror}", fix="Make the folders readable.") from None
    return [m for m in matches if hidden or not any(part.startswith(".") for part in m.relative_to(base).parts)]


def _video_error(path: Path) -> DataError:
    return DataError(f"{path} is a video, not an image", fix=suggest_frames(path))


def suggest_frames(video: Path) -> str:
    """Return the command that makes images of a video, as advice."""
    command = f"mkdir frames && ffmpeg -i {shlex.quote(str(video))} frames/%05d.png"
    return f"Make frames of it, and give their folder: {command}"


def _list_suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
