"""Entries of a log, and a server that answers as MLflow's does, until it is told to stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vitdeploy.commands.log.entry import Entry, new_id, now


def entry(**facts: Any) -> Entry:
    usual: dict[str, Any] = {
        "kind": "gate", "id": new_id(), "name": "digits", "started": now(), "ended": now(), "verdict": "pass",
        "valid": True, "limits": {"max_drop_pp": 0.5}, "parameters": {"recipe.target.kind": "openvino", "samples": 600},
        "metrics": {"drop": 0.1, "drop.ci_low": -0.2, "drop.ci_high": 0.4},
    }  # fmt: skip
    return Entry(**{**usual, **facts}).sealed()


@dataclass
class Server:
    """A server with one experiment. From the request on that has the number `fails_from`, it answers with 500."""

    fails_from: int = 1_000_000
    status: int = 500
    silent_s: float = 0.0
    paths: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        self.paths.append(path.split("?")[0])
        time.sleep(self.silent_s)
        if len(self.paths) >= self.fails_from:
            return self.status, {"error_code": "INTERNAL_ERROR", "message": "the database is gone"}
        if "experiments/get-by-name" in path:
            return 200, {"experiment": {"experiment_id": "1", "name": "vitdeploy", "lifecycle_stage": "active"}}
        return 200, {}


@contextmanager
def serve(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.authorizations.append(self.headers.get("Authorization") or "")
            status, answer = server.answer(self.path)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # the client has stopped waiting
                return

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    server.address = f"127.0.0.1:{running.server_address[1]}"
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
