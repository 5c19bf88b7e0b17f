"""One connection of the system's ssh, multiplexed, and opened again when it drops.

The user's own configuration, agent and known hosts are honoured, and how strictly host keys are checked is left to
them; nothing is ever asked for (BatchMode). What users choose never reaches the shell over there: it travels as JSON
on stdin. The few words that do are quoted.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from vitdeploy.errors import RemoteError
from vitdeploy.progress import Progress
from vitdeploy.remote.near.hosts import Host

PATIENCE_S = 300.0
"""How long a dropped link is tried again: a device that reboots needs a minute or two."""
CONNECT_S = 15
_MAX_DROPS = 100
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_SSH_FAILED = 255  # ssh's own exit code, for whatever went wrong between here and there
_NOT_FOUND = (126, 127)

# Nothing that the user's configuration may add to a login is wanted here, and a dead link is noticed after 15 seconds.
_OPTIONS = (
    "-T", "-x", "-a",
    "-o", "BatchMode=yes",
    "-o", f"ConnectTimeout={CONNECT_S}",
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=3",
    "-o", "ClearAllForwardings=yes",
    "-o", "RemoteCommand=none",
    "-o", "PermitLocalCommand=no",
    "-o", "LogLevel=ERROR",
)  # fmt: skip
_LONGEST_FOLDER = 50
_PERSIST_S = 60  # a master whose client was killed goes away by itself

# A login without a terminal has a short PATH, and `~` means nothing in quotes.
_FIND = (
    "PATH=$PATH:$HOME/.local/bin:/opt/vitdeploy/bin; export PATH; c=$1; shift; "
    'case $c in "~/"*) c=$HOME/${c#??};; esac; exec "$c" "$@"'
)

T = TypeVar("T")


class LinkDropped(Exception):
    """The connection ended before the command did; `reason` is ssh's last line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Call:
    """A command that runs over there.

    Of two pipes that are read one after the other, the second can fill up and keep the command from ending, so each
    one that a caller does not read itself is read in the background.
    """

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes], pool: ThreadPoolExecutor) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.code = 0
        self.out: Future[bytes] | None = None
        self.said: Future[str] | None = None
        self._pool = pool

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Write all of stdin. A command that ends before it has read everything says why itself."""
        with suppress(BrokenPipeError), self.stdin:
            for piece in pieces:
                self.stdin.write(piece)

    def read_stdout(self) -> None:
        """Read all of stdout in the background, into `out`."""
        self.out = self._pool.submit(self.stdout.read)

    def read_stderr(self) -> None:
        """Read all of stderr in the background, into `said`."""
        self.said = self._pool.submit(lambda: self.stderr.read().decode(errors="replace"))


class Link:
    """The way to a host. Use it in a `with` block."""

    def __init__(self, host: Host, progress: Progress) -> None:
        self.host = host
        self._progress = progress
        self._folder = Path()
        self._logs = 0

    def __enter__(self) -> Link:
        if shutil.which("ssh") is None:
            raise RemoteError("there is no ssh on this machine", fix="Install OpenSSH's client.")
        # 0700: who reaches the socket is logged in.
        self._folder = Path(tempfile.mkdtemp(prefix="vitdeploy-ssh-", dir=_short_folder()))
        try:
            self._connect()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control("exit")
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def calling(self, words: Sequence[str], *, timeout: float | None = None) -> Iterator[Call]:
        """`vitdeploy WORDS…` over there, its three streams open. When the block has ended, so has the command.

        Raises:
            LinkDropped: the connection ended first.
            RemoteError: there is no vitdeploy, or the host cannot be reached.
        """
        if not self._control("check"):
            self._connect()
        log = self._new_log()
        there = shlex.join(["sh", "-c", _FIND, "sh", self.host.command, *words])
        command = [*self._ssh("-o", "ControlMaster=no", "-E", str(log)), there]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process, ThreadPoolExecutor(2) as pool:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            call = Call(process.stdin, process.stdout, process.stderr, pool)
            try:
                yield call
                call.code = process.wait(timeout)
            except BaseException as error:
                process.kill()  # a signal may have reached this process alone
                if isinstance(error, subprocess.TimeoutExpired):
                    message = f"{self.host.name} does not answer for {timeout:.0f} s"
                    raise RemoteError(message, fix="Look what it does.") from None
                raise
        said = call.said.result() if call.said else ""
        self._check(call.code, log.read_text(errors="replace"), said)

    def _check(self, code: int, log: str, stderr: str) -> None:
        if code == _SSH_FAILED or code < 0:
            raise LinkDropped(_last_line(log) or "the connection ended")
        if code in _NOT_FOUND:
            raise RemoteError(
                f"{self.host.name} has no {self.host.command!r}: {_last_line(stderr)}",
                fix="Install it there (pip install vitdeploy), or say where it is: `command:` in the hosts file.",
            )

    def persistently(self, work: Callable[[], T]) -> T:
        """Do `work`, and again when the link drops meanwhile: `work` finds out itself what was reached before.

        Raises:
            RemoteError: the host cannot be reached again in time.
        """
        for _ in range(_MAX_DROPS):
            try:
                return work()
            except (LinkDropped, _Unreachable) as drop:
                reason = drop.reason if isinstance(drop, LinkDropped) else drop.message
                self._progress.warn(f"the link to {self.host.name} dropped ({reason}); connecting again")
                self._connect_again()
        raise RemoteError(
            f"the link to {self.host.name} dropped {_MAX_DROPS} times",
            fix="Use a steadier network; what is done stays.",
        )

    def _connect_again(self) -> None:
        deadline, pause = time.monotonic() + PATIENCE_S, _FIRST_PAUSE_S
        while True:
            try:
                self._control("exit")
                self._connect()
            except _Unreachable:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                return

    def _connect(self) -> None:
        log = self._new_log()
        command = self._ssh("-M", "-N", "-f", "-o", f"ControlPersist={_PERSIST_S}", "-E", str(log))
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                check=False, timeout=4 * CONNECT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise _Unreachable(f"{self.host.name} does not answer", fix="Is it on, and busy with something?") from None
        if done.returncode:
            raise _why(self.host, log.read_text(errors="replace"))

    def _control(self, verb: str) -> bool:
        done = subprocess.run(self._ssh("-O", verb), capture_output=True, check=False)
        return done.returncode == 0

    def _ssh(self, *options: str) -> list[str]:
        address = self.host.address.words
        return ["ssh", "-S", str(self._folder / "link"), *_OPTIONS, *options, *address]

    def _new_log(self) -> Path:
        self._logs += 1
        log = self._folder / f"log-{self._logs}"
        log.touch()
        return log


class _Unreachable(RemoteError):
    """Cannot be reached now; may be in a while."""


def _why(host: Host, log: str) -> RemoteError:
    """What ssh said, as an error with something to do about it."""
    said, name = _last_line(log), host.name
    look_up = host.address.host if host.address.port in (None, 22) else f"'[{host.address.host}]:{host.address.port}'"
    if "IDENTIFICATION HAS CHANGED" in log or "REVOKED HOST KEY" in log:
        return RemoteError(
            f"{name} shows another host key than before: it was set up anew, or somebody is in between",
            fix=f"If you know why, forget the old one (ssh-keygen -R {look_up}) and log in once by hand.",
        )
    if "Host key verification failed" in log:
        return RemoteError(
            f"{name} is not among your known hosts",
            fix=f"Log in once by hand and compare its key: ssh {_by_hand(host)}",
        )
    if "Permission denied" in log or "Too many authentication failures" in log:
        return RemoteError(
            f"{name} does not let you in: {said}",
            fix=f"Give it your public key (ssh-copy-id {_by_hand(host)}), and load the key into ssh-agent if it has a "
            "passphrase.",
        )
    return _Unreachable(
        f"{name} cannot be reached: {said or 'ssh does not say why'}", fix=f"Does `ssh {_by_hand(host)}` work?"
    )


def _by_hand(host: Host) -> str:
    user = f"{host.address.user}@" if host.address.user else ""
    port = f"-p {host.address.port} " if host.address.port else ""
    return f"{port}{user}{host.address.host}"


def _short_folder() -> str:
    """For a socket: the system takes about 100 characters of a path, and ssh adds some of its own."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < _LONGEST_FOLDER else "/tmp"  # noqa: S108  mkdtemp makes one that is nobody else's


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
