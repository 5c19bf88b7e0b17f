"""A device as the near side sees it: files go there by their sha256, jobs run there, results come back verified."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vitdeploy import __version__
from vitdeploy.artifact import file_digest
from vitdeploy.errors import DataError, RemoteError
from vitdeploy.progress import Progress
from vitdeploy.remote.messages import (
    INTERFACE,
    Blob,
    Ended,
    Gap,
    Header,
    Job,
    Message,
    Missing,
    Piece,
    Pieces,
    Placed,
    Probe,
    Results,
    Started,
    Wanted,
)
from vitdeploy.remote.near.hosts import Host
from vitdeploy.remote.near.ssh import Call, Link, LinkDropped

_CHUNK = 1 << 18
_KIB = 1024
_TIMEOUT_S = 600  # of an answer, which may hash all that is there; sending and following take as long as they take
_ROUNDS = 5  # of asking what is missing: more than one only when another client sends the same files

MessageT = TypeVar("MessageT", bound=Message)


class Device:
    """A host with vitdeploy on it, over an open link."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self._link = link
        self._progress = progress
        self.name = link.host.name

    def probe(self) -> Probe:
        """Its state.

        Raises:
            RemoteError: no vitdeploy there, or one that does not go with this one; the fix says how to update it.
        """
        raw = self._link.persistently(lambda: self._ask(["probe"]))
        if raw.get("interface") != INTERFACE or not _goes_with(str(raw.get("version"))):
            raise _mismatch(self._link.host, raw)
        found = _read(Probe, raw, self.name)
        for note in found.notes:
            self._progress.warn(f"{self.name}: {note}")
        return found

    def send(self, files: Iterable[tuple[Path, Placed]]) -> None:
        """Send what is not there yet; a cut transfer goes on where it was.

        Raises:
            RemoteError: there is not enough room.
        """
        here = {placed.sha256: path for path, placed in files}
        contents = {placed.sha256: _blob(placed) for _, placed in files}  # equal files are sent once
        wanted = Wanted(blobs=tuple(contents.values()))
        for _ in range(_ROUNDS):
            if self._link.persistently(lambda: self._send_missing(wanted, here)):
                return
        raise RemoteError(f"{self.name} does not keep what it is sent", fix="Look at its disk.")

    def start(self, job: Job) -> str:
        """Start the job, or find it running; its name."""
        started = _read(Started, self._link.persistently(lambda: self._ask(["start"], job)), self.name)
        if started.resumed:
            self._progress.warn(f"{self.name} is at this job already: following it")
        return started.job

    def follow(self, job: str) -> Ended:
        """Relay what the job says until it ends, however often the link drops; Ctrl-C ends the job too."""
        heard = 0

        def listen() -> Ended:
            nonlocal heard
            with self._link.calling(self._words(["follow", job, "--offset", str(heard)])) as call:
                call.read_stdout()
                for line in call.stderr:
                    if line.endswith(b"\n"):  # half a line will come again, whole
                        heard += len(line)
                        self._hear(line)
            return _read(Ended, self._answer(call), self.name)

        try:
            return self._link.persistently(listen)
        except KeyboardInterrupt:
            try:
                self._ask(["cancel", job])
            except (LinkDropped, RemoteError):
                self._progress.warn(f"{self.name} could not be told to stop: it goes on with job {job}")
            raise

    def fetch(self, job: str, below: str, into: Path, known: Iterable[Path] = ()) -> list[str]:
        """The files that the job left in its folder `below`, verified; what `known` files hold is copied from them.

        Raises:
            RemoteError: what arrived is not what was there.
        """
        found = _read(Results, self._link.persistently(lambda: self._ask(["results", job, below])), self.name)
        local = {file_digest(path): path for path in known}
        wanted = [file for file in found.files if file.sha256 not in local]
        for file in found.files:
            place = into / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.sha256 in local:
                shutil.copyfile(local[file.sha256], place)
            else:
                place.touch()
        kib = sum(file.bytes for file in wanted) // _KIB
        with self._progress.step(f"Fetch {kib:,} KiB from {self.name}", max(1, kib)) as advance:
            self._link.persistently(lambda: self._get(job, below, wanted, into, _counted(advance)))
        for file in wanted:
            if file_digest(into / file.path) != file.sha256:
                raise RemoteError(
                    f"{file.path} of {self.name} arrived damaged",
                    fix="Does a login there print something (`ssh HOST true` must print nothing)?",
                )
        return [file.path for file in found.files]

    def take(self, job: str) -> None:
        """Tell that the results are here."""
        self._link.persistently(lambda: self._ask(["take", job]))

    def clean(self) -> int:
        """Remove what nothing running there needs; the bytes that became free."""
        freed: int = self._link.persistently(lambda: self._ask(["clean"]))["freed_bytes"]
        return freed

    def _hear(self, line: bytes) -> None:
        """Pass on a line of the job. Its error comes as the result, too."""
        text = line.decode(errors="replace").rstrip()
        if not text.startswith("error:"):
            self._progress.relay(f"{self.name}: {text}")

    def _send_missing(self, wanted: Wanted, here: dict[str, Path]) -> bool:
        """Ask what is missing and send it; whether nothing is missing any more, each file hashed there."""
        missing = _read(Missing, self._ask(["missing"], wanted), self.name)
        if not missing.gaps:
            return True
        left = sum(gap.bytes - gap.have for gap in missing.gaps)
        if left > missing.free_bytes:
            raise RemoteError(
                f"the disk of {self.name} is full: {left // _KIB:,} KiB are to be sent, {missing.free_bytes // _KIB:,} "
                "are free",
                fix=f"Free some space: vitdeploy hosts {self.name} --clean.",
            )
        title = f"Send {left // _KIB:,} KiB to {self.name}"
        with (
            self._progress.step(title, max(1, left // _KIB)) as advance,
            self._link.calling(self._words(["put"])) as call,
        ):
            call.read_stdout()
            call.read_stderr()
            call.feed(_stream(missing.gaps, here, _counted(advance)))
        return self._answer(call).get("whole") == len(missing.gaps)

    def _get(self, job: str, below: str, wanted: Sequence[Placed], into: Path, arrived: Callable[[int], None]) -> None:
        """Fetch what is not here yet of each file; `arrived` counts bytes."""
        have = {file.path: (into / file.path).stat().st_size for file in wanted}
        rest = [file for file in wanted if have[file.path] < file.bytes]
        if not rest:
            return
        pieces = Pieces(pieces=tuple(Piece(path=file.path, offset=have[file.path]) for file in rest))
        with self._link.calling(self._words(["get", job, below])) as call:
            call.read_stderr()
            call.feed([pieces.model_dump_json().encode()])
            for file in rest:
                with (into / file.path).open("ab") as out:
                    left = file.bytes - have[file.path]
                    while left and (piece := call.stdout.read(min(left, _CHUNK))):
                        out.write(piece)
                        left -= len(piece)
                        arrived(len(piece))
            call.stdout.close()

    def _ask(self, words: Sequence[str], message: Message | None = None) -> dict[str, Any]:
        """One question, one JSON object as the answer."""
        with self._link.calling(self._words(words), timeout=_TIMEOUT_S) as call:
            call.read_stdout()
            call.read_stderr()
            call.feed([message.model_dump_json().encode()] if message else [])
        return self._answer(call)

    def _answer(self, call: Call) -> dict[str, Any]:
        """The JSON object, which what a login prints may stand before."""
        text = call.out.result().decode(errors="replace") if call.out else ""
        said = call.said.result() if call.said else ""
        start = 0 if text.startswith("{") else text.find("\n{") + 1
        try:
            found: dict[str, Any] = dict(json.loads(text[start:]))
        except (ValueError, TypeError):
            if "No such command" in said:
                raise _mismatch(self._link.host, {}) from None
            last = (said or text).strip().splitlines()[-1:] or [f"exit code {call.code}"]
            raise RemoteError(
                f"{self._link.host.command} on {self.name} does not answer in JSON: {last[0]}",
                fix="Run `vitdeploy doctor` there by hand.",
            ) from None
        if "error" in found:
            raise RemoteError(f"{self.name}: {found['error']['message']}", fix=found["error"]["fix"])
        return found

    def _words(self, words: Sequence[str]) -> list[str]:
        cache = ["--cache", self._link.host.cache] if self._link.host.cache else []
        return ["device", *words, *cache, "--json"]


def _stream(gaps: Iterable[Gap], here: dict[str, Path], sent: Callable[[int], None]) -> Iterator[bytes]:
    """For each file its header, and its bytes from where they are missing; `sent` counts bytes."""
    for gap in gaps:
        yield Header(sha256=gap.sha256, bytes=gap.bytes, offset=gap.have).model_dump_json().encode() + b"\n"
        with here[gap.sha256].open("rb") as file:
            file.seek(gap.have)
            while piece := file.read(_CHUNK):
                yield piece
                sent(len(piece))


def _counted(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Counts bytes for a bar that counts KiB."""
    done = 0

    def count(length: int) -> None:
        nonlocal done
        advance((done + length) // _KIB - done // _KIB)
        done += length

    return count


def placed(path: Path, name: str) -> tuple[Path, Placed]:
    """A file and its place in a job's folder.

    Raises:
        DataError: its name cannot be told in JSON.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r} cannot be sent: its name is not UTF-8", fix="Rename it.") from None
    return path, Placed(path=name, bytes=path.stat().st_size, sha256=file_digest(path))


def client_name(path: Path) -> str:
    """Who asks: equal commands of one client about one folder are one job."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        user = str(os.getuid())
    folder = os.fsencode(path.absolute()).decode(errors="backslashreplace")
    return f"{user}@{socket.gethostname()}:{folder}"


def _blob(found: Placed) -> Blob:
    return Blob(sha256=found.sha256, bytes=found.bytes)


def _goes_with(other: str) -> bool:
    """Before 1.0 a minor version may change anything."""
    return other.split(".")[:2] == __version__.split(".")[:2]


def _mismatch(host: Host, raw: dict[str, Any]) -> RemoteError:
    found = raw.get("version", "an older one")
    python = raw.get("python", "python3")
    return RemoteError(
        f"{host.name} has vitdeploy {found}, this is {__version__}: they do not go together",
        fix=f"Update it there: {python} -m pip install --upgrade 'vitdeploy=={__version__}'",
    )


def _read(kind: type[MessageT], raw: dict[str, Any], name: str) -> MessageT:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise RemoteError(
            f"{name} gives an answer that this vitdeploy does not understand ({kind.__name__}.{where})",
            fix="Use the same version on both sides.",
        ) from None
