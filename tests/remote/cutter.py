"""A wire that can be cut: a TCP proxy on the loopback."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType


class Wire:
    """Forwards connections to `port` on the loopback.

    `cut()` ends all open connections. `cut_after(n)` ends later ones after n bytes to the port, or from it (`back`).
    `cuts` counts the ends.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._limit: int | None = None
        self._limit_is_back = False
        self._cuts_left = 0
        self._then_to: int | None = None
        self.bytes_per_second: float | None = None
        self.cuts = 0
        self.carried = 0
        self.carried_back = 0
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()

    def cut_after(self, count: int, *, times: int = 1, then_to: int | None = None, back: bool = False) -> None:
        """Cut the next connections after `count` bytes to the port (or from it). Lead later ones to another port."""
        self._limit, self._cuts_left, self._then_to, self._limit_is_back = count, times, then_to, back

    def then_to(self, port: int) -> None:
        """Lead later connections elsewhere."""
        self._to = port

    def cut(self) -> None:
        """Cut all open connections."""
        for end in list(self._open):
            self._close(end)
        self.cuts += 1

    def _close(self, end: socket.socket) -> None:
        self._open.discard(end)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # nobody is there now
                near.close()
                continue
            self._open |= {near, far}
            threading.Thread(target=self._copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, False), daemon=True).start()

    def _spent(self, passed: int) -> bool:
        """Decide if a connection ends now, after `passed` bytes."""
        if self._limit is None or not self._cuts_left or passed <= self._limit:
            return False
        self._cuts_left -= 1
        self.cuts += 1
        self._to = self._then_to or self._to
        return True

    def _copy(self, source: socket.socket, sink: socket.socket, there: bool) -> None:
        passed = 0
        try:
            while piece := source.recv(1 << 14):
                passed += len(piece)
                if there is not self._limit_is_back and self._spent(passed):
                    break
                if there:
                    self.carried += len(piece)
                else:
                    self.carried_back += len(piece)
                if self.bytes_per_second is not None:
                    time.sleep(len(piece) / self.bytes_per_second)
                sink.sendall(piece)
        except OSError:
            pass
        self._close(source)
        self._close(sink)
