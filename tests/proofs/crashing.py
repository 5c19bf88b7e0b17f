"""Children that end badly, for tests of `vitdeploy.apart`: the task says how."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

from vitdeploy import apart
from vitdeploy.errors import SourceError


def _work(task: bytes) -> bytes:
    how, _, argument = task.decode().partition(" ")
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "endless":
        Path(argument).write_text(str(os.getpid()), encoding="ascii")
        while True:
            time.sleep(1)
    elif how == "memory":
        bytearray(1 << 40)
    elif how == "refuse":
        raise SourceError("it is\nodd", fix="Make it even.")
    elif how == "raise":
        raise RuntimeError("unexpected")
    elif how == "print":
        print("an engine prints")
        subprocess.run(["echo", "so does its child"], check=True)
    elif how == "modules":
        return str(sys.modules.get("numpy")).encode()
    return b"answer"


if __name__ == "__main__":
    apart.answer(_work)
