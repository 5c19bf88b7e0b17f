"""Headless Chromium over its debugging pipe: the layout of a page, its requests, and the errors it logs.

The protocol (chromedevtools.github.io/devtools-protocol) is JSON between null bytes, on descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESK, PHONE = 1100, 390

Media = Literal["light", "dark", "print"]


def find() -> str | None:
    """Return the path of the browser, if there is one on PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser. `requests` has all addresses that it requested, `complaints` all that it logged."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._in, self._out = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._count, self._buffer = 0, b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Close the pipe."""
        self._in.close()
        self._out.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command to the page and return its result."""
        return self._send(method, session=self._session, **parameters)

    def open(self, path: Path, *, width: int, media: Media = "light") -> None:
        """Show a file, `width` CSS pixels wide, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if media == "dark" else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if media == "print" else "screen", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression and return its value, by way of JSON."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, *, top: float = 0, height: float | None = None) -> bytes:
        """Return a PNG of the page from `top` on, to its end unless a height is given."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        rest = size["height"] - top
        clip = {"x": 0, "y": top, "width": size["width"], "height": min(height or rest, rest), "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])

    def _send(self, method: str, *, session: str | None = None, **parameters: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._in.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self._in.flush()
        while (answer := self._read()).get("id") != self._count:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        """Read the next message; requests and errors among the events are recorded."""
        while b"\0" not in self._buffer:
            piece = os.read(self._out.fileno(), 1 << 16)
            assert piece, "the browser ended"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        event = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(event["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(event))
        return message


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser with its own profile, and end it.

    Raises:
        FileNotFoundError: there is none.
    """
    program = find()
    if program is None:
        raise FileNotFoundError("no Chromium on PATH: apt-get install chromium")
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()

    def wire() -> None:  # in the child: it reads from descriptor 3 and writes to 4
        inward, outward = os.dup(read_there), os.dup(write_there)
        os.dup2(inward, 3)
        os.dup2(outward, 4)

    with tempfile.TemporaryDirectory(prefix="vitdeploy-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox",
                "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "about:blank",
            ],
            close_fds=False, preexec_fn=wire, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        try:
            with closing(Browser(write_here, read_here)) as page:
                yield page
        finally:
            process.terminate()
            process.wait(10)
