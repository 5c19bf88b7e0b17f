"""One multiplexed connection of the system's ssh, opened again when it drops.

The user's own ssh configuration, agent and known hosts apply, and decide how strictly host keys are checked. ssh never
prompts (BatchMode). Text that users choose never reaches the remote shell: it travels as JSON on stdin. The few words
on the remote command line are quoted.
"""

from __future__ import annotations

import os
import select
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

from vitdeploy.errors import HostUnreachable, RemoteError
from vitdeploy.progress import Progress
from vitdeploy.remote.near.hosts import RemoteHost

PATIENCE_S = 300.0
"""Seconds of trying to connect again after the link has dropped. A device that reboots needs a minute or two."""
CONNECT_S = 15
_MAX_DROPS = 100
_POLL_S = 1.0
_CHUNK = 1 << 16
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_SSH_FAILED = 255  # ssh's own exit code for every failure of the connection
_NOT_FOUND = (126, 127)

# These override what the user's configuration may add to a login, and detect a dead link after 15 seconds.
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
_PERSIST_S = 60  # a master whose client was killed ends by itself

# A login without a terminal has a short PATH, and a shell does not expand `~` inside quotes.
_FIND_AND_RUN = (
    "PATH=$PATH:$HOME/.local/bin:/opt/vitdeploy/bin; export PATH; c=$1; shift; "
    'case $c in "~/"*) c=$HOME/${c#??};; esac; exec "$c" "$@"'
)

T = TypeVar("T")


class LinkDropped(Exception):
    """The connection ended before the command did. `reason` is the last line of ssh's log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Call:
    """A command that runs on the device, with its three streams.

    If two pipes are read one after the other, the second can fill up and block the command. So a pipe that the caller
    does not read itself is read in the background.
    """

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes], pool: ThreadPoolExecutor) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.code = 0
        self.out: Future[bytes] | None = None
        self.errors: Future[str] | None = None
        self._pool = pool

    def feed(self, chunks: Iterable[bytes]) -> None:
        """Write all of stdin. If the command ends before it has read everything, its own output says why."""
        with suppress(BrokenPipeError), self.stdin:
            for chunk in chunks:
                self.stdin.write(chunk)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of stderr as they come, the last one also without its end.

        Between them it looks for an interrupt: one that is not a signal of the system ends no wait for a pipe.
        """
        rest, descriptor = b"", self.stderr.fileno()
        while True:
            ready, _, _ = select.select([descriptor], [], [], _POLL_S)
            if not ready:
                continue
            chunk = os.read(descriptor, _CHUNK)
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line + b"\n" for line in whole)
        if rest:
            yield rest

    def read_stdout(self) -> None:
        """Read all of stdout in the background, into `out`."""
        self.out = self._pool.submit(self.stdout.read)

    def read_stderr(self) -> None:
        """Read all of stderr in the background, into `errors`."""
        self.errors = self._pool.submit(lambda: self.stderr.read().decode(errors="replace"))


class Link:
    """The connection to a host. Use it in a `with` block. A patient one tries for minutes to connect."""

    def __init__(self, host: RemoteHost, progress: Progress, *, patient: bool = False) -> None:
        self.host = host
        self._progress = progress
        self._patient = patient
        self._folder = Path()
        self._logs = 0

    def __enter__(self) -> Link:
        if shutil.which("ssh") is None:
            raise RemoteError("there is no `ssh` command on this machine", fix="Install OpenSSH's client.")
        # mkdtemp's mode is 0700: whoever reaches the socket in this folder is logged in.
        self._folder = Path(tempfile.mkdtemp(prefix="vitdeploy-ssh-", dir=_short_folder()))
        try:
            if self._patient:
                self._connect_again()
            else:
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
        """Run `vitdeploy WORDS…` on the host during the block, and wait for its end after it.

        Raises:
            LinkDropped: the connection ended first.
            RemoteError: there is no vitdeploy, it did not answer in time, or the host cannot be reached.
        """
        if not self._control("check"):
            self._connect()
        log = self._new_log()
        remote_command = shlex.join(["sh", "-c", _FIND_AND_RUN, "sh", self.host.command, *words])
        command = [*self._ssh("-o", "ControlMaster=no", "-E", str(log)), remote_command]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process, ThreadPoolExecutor(2) as pool:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            call = Call(process.stdin, process.stdout, process.stderr, pool)
            try:
                yield call
                call.code = process.wait(timeout)
            except BaseException as error:
                process.kill()  # a signal may have reached this process but not its child
                self._control("exit")  # the master has the pipes too, until the command there ends
                if isinstance(error, subprocess.TimeoutExpired):
                    message = f"{self.host.name} has not answered for {timeout:.0f} s"
                    raise RemoteError(message, fix="Check what is running there.") from None
                raise
        errors = call.errors.result() if call.errors else ""
        self._check(call.code, log.read_text(errors="replace"), errors)

    def _check(self, code: int, log: str, stderr: str) -> None:
        if code == _SSH_FAILED or code < 0:
            raise LinkDropped(_last_line(log) or "the connection ended")
        if code in _NOT_FOUND:
            raise RemoteError(
                f"{self.host.name} has no command {self.host.command!r}: {_last_line(stderr)}",
                fix="Install it there (pip install vitdeploy), or set `command:` of this host in hosts.yaml.",
            )

    def persistently(self, work: Callable[[], T]) -> T:
        """Call `work`, and call it again each time the link drops. It must continue where it stopped.

        Raises:
            RemoteError: the host cannot be reached again in time.
        """
        for _ in range(_MAX_DROPS):
            try:
                return work()
            except (LinkDropped, HostUnreachable) as drop:
                reason = drop.reason if isinstance(drop, LinkDropped) else drop.message
                self._progress.warn(f"the connection to {self.host.name} dropped ({reason}); connecting again")
                self._connect_again()
        raise HostUnreachable(
            f"the connection to {self.host.name} dropped {_MAX_DROPS} times",
            fix="Use a more stable network and run the command again. Files that were sent are kept there.",
        )

    def _connect_again(self) -> None:
        deadline, pause = time.monotonic() + PATIENCE_S, _FIRST_PAUSE_S
        while True:
            try:
                self._control("exit")
                self._connect()
            except HostUnreachable:
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
            process = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                check=False, timeout=4 * CONNECT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise HostUnreachable(
                f"{self.host.name} does not answer", fix="Check that it is switched on, and not overloaded."
            ) from None
        if process.returncode:
            raise _connect_error(self.host, log.read_text(errors="replace"))

    def _control(self, verb: str) -> bool:
        """Send a command to the master connection. Return True if it worked."""
        return subprocess.run(self._ssh("-O", verb), capture_output=True, check=False).returncode == 0

    def _ssh(self, *options: str) -> list[str]:
        address = self.host.address.words
        return ["ssh", "-S", str(self._folder / "link"), *_OPTIONS, *options, *address]

    def _new_log(self) -> Path:
        self._logs += 1
        log = self._folder / f"log-{self._logs}"
        log.touch()
        return log


def _connect_error(host: RemoteHost, log: str) -> RemoteError:
    """Turn ssh's log into an error with a fix."""
    reason, name = _last_line(log), host.name
    key_name = host.address.host if host.address.port in (None, 22) else f"'[{host.address.host}]:{host.address.port}'"
    if "IDENTIFICATION HAS CHANGED" in log or "REVOKED HOST KEY" in log:
        return RemoteError(
            f"{name} shows another host key than before: it was reinstalled, or somebody intercepts the connection",
            fix=f"If it was reinstalled, remove the old key (ssh-keygen -R {key_name}) and log in once by hand.",
        )
    if "Host key verification failed" in log:
        return RemoteError(
            f"the host key of {name} is not among your known hosts",
            fix=f"Log in once by hand and compare the key that ssh shows: ssh {ssh_arguments(host)}",
        )
    if "Permission denied" in log or "Too many authentication failures" in log:
        return RemoteError(
            f"{name} refuses the login: {reason}",
            fix=f"Install your public key there: ssh-copy-id {ssh_arguments(host)}. If the key has a passphrase, load "
            "it with ssh-add.",
        )
    return HostUnreachable(
        f"{name} cannot be reached: {reason or 'ssh gives no reason'}",
        fix=f"Check that the device is on, and that this command works: ssh {ssh_arguments(host)}",
    )


def ssh_arguments(host: RemoteHost) -> str:
    """Return the arguments that a user gives ssh or ssh-copy-id."""
    user = f"{host.address.user}@" if host.address.user else ""
    port = f"-p {host.address.port} " if host.address.port else ""
    return f"{port}{user}{host.address.host}"


def _short_folder() -> str:
    """A folder for the socket. The system allows paths of about 100 characters, and ssh adds some of its own."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < _LONGEST_FOLDER else "/tmp"  # noqa: S108  mkdtemp makes a private one in it


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
