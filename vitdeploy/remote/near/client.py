"""A device, seen from the near side: send files by their sha256, run jobs, fetch verified results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.artifact import file_digest
from vitdeploy.errors import DataError, RemoteError
from vitdeploy.progress import Progress
from vitdeploy.remote.messages import (
    INTERFACE,
    Blob,
    FileHeader,
    FilePart,
    FileParts,
    Job,
    JobEnd,
    JobFile,
    JobStart,
    Message,
    MissingBlob,
    MissingBlobs,
    NeededBlobs,
    Probe,
    ResultFiles,
)
from vitdeploy.remote.near.hosts import RemoteHost
from vitdeploy.remote.near.ssh import Call, Link, LinkDropped, ssh_arguments
from vitdeploy.version import __version__

_CHUNK = 1 << 18
_KIB = 1024
_TIMEOUT_S = 600  # for one answer, before which the device may hash all files; sending and following have no limit
_SAME_VERSION = "Install the same version of vitdeploy on both sides."
_MAX_ROUNDS = 5  # of asking what is missing; more than one only if another client sends the same files

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class ReportedError(BaseModel):
    """The error that a command on the host has printed with --json."""

    model_config = ConfigDict(frozen=True)
    message: str
    fix: str = "Log in there and run the same command."


class _Freed(BaseModel):
    """The answer to `clean`."""

    freed_bytes: int


class Device:
    """A host with vitdeploy on it, behind an open link."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self._link = link
        self._progress = progress
        self.name = link.host.name
        self._started: dict[str, str] = {}  # the id of an attempt -> the name of the job that it started

    def probe(self) -> Probe:
        """Ask for the device's state, and show its notes.

        Raises:
            RemoteError: there is no vitdeploy, or an incompatible version; the fix says how to update it.
        """
        raw = self._link.persistently(lambda: self._ask(["probe"]))
        if raw.get("interface") != INTERFACE or not _is_compatible(str(raw.get("version"))):
            raise _version_error(self._link.host, raw)
        probe = parse_answer(Probe, raw, self.name)
        for note in probe.notes:
            self._progress.warn(f"{self.name}: {note}")
        return probe

    def send(self, files: Iterable[tuple[Path, JobFile]]) -> None:
        """Send the files that the device does not have. An interrupted transfer is continued.

        Raises:
            RemoteError: the device's disk has not enough room.
        """
        paths = {file.sha256: path for path, file in files}
        contents = {file.sha256: Blob(sha256=file.sha256, bytes=file.bytes) for _, file in files}  # each only once
        needed = NeededBlobs(blobs=tuple(contents.values()))
        for _ in range(_MAX_ROUNDS):
            if self._link.persistently(lambda: self._send_missing(needed, paths)):
                return
        raise RemoteError(
            f"{self.name} received all files, but some of them are missing there again", fix="Check the device's disk."
        )

    @contextmanager
    def cancelling(self, job: Job) -> Iterator[None]:
        """Cancel the job if Ctrl-C ends the block, also while its start is on the way there."""
        try:
            yield
        except KeyboardInterrupt:
            name = self._started.get(job.attempt, job.name)
            try:
                self._ask(["cancel", name, "--attempt", job.attempt])
            except (LinkDropped, RemoteError):
                self._progress.warn(
                    f"{self.name} did not get the request to stop: the job goes on there. To end it, log in "
                    f"(ssh {ssh_arguments(self._link.host)}) and run: "
                    f"{shlex.join([self._link.host.command, *self._words(['cancel', name])])}"
                )
            raise

    def start(self, job: Job) -> str:
        """Start the job, or find the equal one that runs already. Return its name."""
        start = parse_answer(JobStart, self._link.persistently(lambda: self._ask(["start"], job)), self.name)
        self._started[job.attempt] = start.job
        if start.resumed:
            self._progress.warn(f"{self.name} already has this job from an earlier run: waiting for its result")
        return start.job

    def follow(self, job: str) -> JobEnd:
        """Show the job's output until it ends, however often the link drops."""
        offset = 0

        def listen() -> JobEnd:
            nonlocal offset
            with self._link.calling(self._words(["follow", job, "--offset", str(offset)])) as call:
                call.read_stdout()
                for line in call.lines():
                    if line.endswith(b"\n"):  # an incomplete line will be sent again
                        offset += len(line)
                        self._relay(line)
            return parse_answer(JobEnd, self._read_answer(call), self.name)

        return self._link.persistently(listen)

    def fetch(self, job: str, below: str, into: Path, known: Iterable[Path] = ()) -> list[str]:
        """Fetch and verify the files in the job's folder `below`. Return their names.

        Args:
            job: the job's name.
            below: a folder of the job.
            into: a local folder for the files.
            known: local files; a result with the same contents is copied from them.

        Raises:
            RemoteError: a file was damaged on the way.
        """
        results = parse_answer(
            ResultFiles, self._link.persistently(lambda: self._ask(["results", job, below])), self.name
        )
        local = {file_digest(path): path for path in known}
        remote = [file for file in results.files if file.sha256 not in local]
        for file in results.files:
            path = into / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.sha256 in local:
                shutil.copyfile(local[file.sha256], path)
            else:
                path.touch()
        kib = sum(file.bytes for file in remote) // _KIB
        with self._progress.step(f"Fetch {kib:,} KiB from {self.name}", max(1, kib)) as advance:
            self._link.persistently(lambda: self._get(job, below, remote, into, _in_kib(advance)))
        for file in remote:
            if file_digest(into / file.path) != file.sha256:
                raise RemoteError(
                    f"{file.path} was damaged on the way from {self.name}",
                    fix="Check that a login prints nothing: `ssh HOST true` must have no output.",
                )
        return [file.path for file in results.files]

    def take(self, job: str) -> None:
        """Tell the device that the results have arrived. They are here, so a failure is no error."""
        try:
            self._link.persistently(lambda: self._ask(["take", job]))
        except RemoteError as error:
            self._progress.warn(f"{self.name} was not told that its results have arrived: {error.message}")

    def clean(self) -> int:
        """Remove everything from the device that no running job needs. Return the bytes that became free."""
        return parse_answer(_Freed, self._link.persistently(lambda: self._ask(["clean"])), self.name).freed_bytes

    def _relay(self, line: bytes) -> None:
        """Show a line of the job, except its error: that comes with the result."""
        text = line.decode(errors="replace").rstrip()
        if not text.startswith("error:"):
            self._progress.relay(f"{self.name}: {text}")

    def _send_missing(self, needed: NeededBlobs, paths: dict[str, Path]) -> bool:
        """Ask which contents are missing and send them. Return True once the device has them all, verified."""
        missing = parse_answer(MissingBlobs, self._ask(["missing"], needed), self.name)
        if not missing.gaps:
            return True
        if not all(gap.sha256 in paths and gap.have <= gap.bytes for gap in missing.gaps):
            raise RemoteError(f"{self.name} asks for files that nobody has offered", fix=_SAME_VERSION)
        size = sum(gap.bytes - gap.have for gap in missing.gaps)
        if size > missing.free_bytes:
            raise RemoteError(
                f"the disk of {self.name} is full: the files to send have {size // _KIB:,} KiB, and "
                f"{missing.free_bytes // _KIB:,} KiB are free",
                fix=f"Free some space: vitdeploy hosts {self.name} --clean.",
            )
        title = f"Send {size // _KIB:,} KiB to {self.name}"
        with (
            self._progress.step(title, max(1, size // _KIB)) as advance,
            self._link.calling(self._words(["put"])) as call,
        ):
            call.read_stdout()
            call.read_stderr()
            call.feed(_stream(missing.gaps, paths, _in_kib(advance)))
        return self._read_answer(call).get("whole") == len(missing.gaps)

    def _get(self, job: str, below: str, files: Sequence[JobFile], into: Path, advance: Callable[[int], None]) -> None:
        """Fetch the rest of each file that is incomplete in `into`. Call `advance` with the bytes just received."""
        sizes = {file.path: (into / file.path).stat().st_size for file in files}
        incomplete = [file for file in files if sizes[file.path] < file.bytes]
        if not incomplete:
            return
        parts = FileParts(pieces=tuple(FilePart(path=file.path, offset=sizes[file.path]) for file in incomplete))
        with self._link.calling(self._words(["get", job, below])) as call:
            call.read_stderr()
            call.feed([parts.model_dump_json().encode()])
            for file in incomplete:
                with (into / file.path).open("ab") as out:
                    remaining = file.bytes - sizes[file.path]
                    while remaining and (chunk := call.stdout.read(min(remaining, _CHUNK))):
                        out.write(chunk)
                        remaining -= len(chunk)
                        advance(len(chunk))
            call.stdout.close()

    def _ask(self, words: Sequence[str], message: Message | None = None) -> dict[str, Any]:
        """Run one `vitdeploy device` command with `message` on stdin. Return its JSON object."""
        with self._link.calling(self._words(words), timeout=_TIMEOUT_S) as call:
            call.read_stdout()
            call.read_stderr()
            call.feed([message.model_dump_json().encode()] if message else [])
        return self._read_answer(call)

    def _read_answer(self, call: Call) -> dict[str, Any]:
        """Parse the JSON object on stdout. A login may have printed text before it."""
        text = call.out.result().decode(errors="replace") if call.out else ""
        errors = call.errors.result() if call.errors else ""
        start = 0 if text.startswith("{") else text.find("\n{") + 1
        try:
            answer: dict[str, Any] = dict(json.loads(text[start:]))
        except (ValueError, TypeError, RecursionError):
            if "No such command" in errors:
                raise _version_error(self._link.host, {}) from None
            last = (errors or text).strip().splitlines()[-1:] or [f"exit code {call.code}"]
            raise RemoteError(
                f"{self._link.host.command} on {self.name} does not answer in JSON: {last[0]}",
                fix="Log in there and run `vitdeploy doctor`.",
            ) from None
        if "error" in answer:
            error = parse_answer(ReportedError, answer["error"], self.name)
            raise RemoteError(f"{self.name}: {error.message}", fix=error.fix)
        return answer

    def _words(self, words: Sequence[str]) -> list[str]:
        cache = ["--cache", self._link.host.cache] if self._link.host.cache else []
        return ["device", *words, *cache, "--json"]


def _stream(gaps: Iterable[MissingBlob], paths: dict[str, Path], advance: Callable[[int], None]) -> Iterator[bytes]:
    """Yield for each file a header and the missing bytes. Call `advance` with the bytes just taken."""
    for gap in gaps:
        yield FileHeader(sha256=gap.sha256, bytes=gap.bytes, offset=gap.have).model_dump_json().encode() + b"\n"
        with paths[gap.sha256].open("rb") as file:
            file.seek(gap.have)
            while chunk := file.read(_CHUNK):
                yield chunk
                advance(len(chunk))


def _in_kib(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turn a progress bar's `advance` in KiB into one that takes bytes."""
    done = 0

    def advance_bytes(count: int) -> None:
        nonlocal done
        advance((done + count) // _KIB - done // _KIB)
        done += count

    return advance_bytes


def job_file(path: Path, name: str) -> tuple[Path, JobFile]:
    """Describe the local file `path` as the file `name` of a job. Return both.

    Raises:
        DataError: its name cannot be written in JSON.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r} cannot be sent: its name is not UTF-8", fix="Rename the file.") from None
    return path, JobFile(path=name, bytes=path.stat().st_size, sha256=file_digest(path))


def client_name(path: Path) -> str:
    """Name the client of a command about `path`. Equal commands of one client about one folder are one job."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = str(os.getuid())
    folder = os.fsencode(path.absolute()).decode(errors="backslashreplace")
    return f"{user}@{socket.gethostname()}:{folder}"


def _is_compatible(version: str) -> bool:
    """Before 1.0 a minor version may change anything."""
    return version.split(".")[:2] == __version__.split(".")[:2]


def _version_error(host: RemoteHost, probe: dict[str, Any]) -> RemoteError:
    version = f"vitdeploy {probe['version']}" if "version" in probe else "an older vitdeploy"
    python = probe.get("python", "python3")
    return RemoteError(
        f"{host.name} has {version}, which does not work together with {__version__} here",
        fix=f"Update it there: {python} -m pip install --upgrade 'vitdeploy=={__version__}'",
    )


def parse_answer(kind: type[AnswerT], raw: Any, name: str) -> AnswerT:
    """Parse what the host `name` has answered.

    Raises:
        RemoteError: it has another form.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise RemoteError(
            f"this vitdeploy does not understand an answer of {name} ({kind.__name__}.{where})",
            fix=_SAME_VERSION,
        ) from None
