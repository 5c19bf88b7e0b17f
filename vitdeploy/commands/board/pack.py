"""Write a recording: `recording.json`, a page that says what is in it, and an archive of all files.

The archive lies in the folder, beside the files that it contains. So there is one thing to make, to replace and to
remove, and everybody can read what will be sent.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from vitdeploy.commands.board.recording import BUILD_LOG, FILE, INSPECTED, Recording
from vitdeploy.commands.board.scrub import Scrubber

ARCHIVE, README = "recording.tar.gz", "README.txt"
_OWN_WORDS = ("target", "model", "precision", "status", "stage")
"""Keys whose values are vitdeploy's own words, which no name of a user may change."""


def write(folder: Path, recording: Recording, scrubber: Scrubber) -> tuple[str, ...]:
    """Write everything beside the logs that are there already. Return the names of all files but the archive."""
    raw = recording.model_dump(mode="json")
    content = scrubber.scrub_values(raw)
    for attempt, original in zip(content["attempts"], raw["attempts"], strict=True):
        attempt.update({key: original[key] for key in _OWN_WORDS if key in original})
    (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    readme = scrubber.scrub(_describe(recording, [README, *names]))
    (folder / README).write_text(readme, encoding="utf-8")
    files = (README, *names)
    _pack(folder, files)
    return files


def _pack(folder: Path, files: tuple[str, ...]) -> None:
    """Pack the files under one folder name, without the names of their owner."""
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name in files:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(f"recording/{name}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def _describe(recording: Recording, files: list[str]) -> str:
    state = "complete" if recording.complete else f"not complete ({recording.why})"
    attempts = [
        f"  {attempt.target} {attempt.model} {attempt.precision}: {attempt.status}"
        + (f" ({attempt.why})" if attempt.why else "")
        for attempt in recording.attempts
    ]
    return "\n".join([
        f"A recording of a board by vitdeploy {recording.vitdeploy}: {state}.",
        "",
        "Nothing was sent by itself. Read these files first; they are text:",
        "",
        *(f"  {name}" for name in files),
        "",
        f"{FILE}: versions, properties of the GPU and of TensorRT, clocks, temperatures, power rails, packages of the",
        "  system, and for each model what became of it: times, attention, differences to FP32.",
        f"{BUILD_LOG}: the messages of the compiler. {INSPECTED}: the layers of the engine.",
        "",
        "Names of users and hosts, network addresses, serial numbers, UUIDs, URLs and paths outside of the system's",
        "folders are replaced by <user>, <host>, <ip> and so on. The models are vitdeploy's own.",
        "",
        f"To send it, attach {ARCHIVE} to an issue of vitdeploy. To leave something out, change the files and pack the",
        "folder yourself: each file counts alone.",
        "",
        "Models:",
        *(attempts or ["  none: no TensorRT was found"]),
        "",
    ])  # fmt: skip
