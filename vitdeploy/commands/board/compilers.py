"""The work of a child process: ask a compiler about itself. Loading its libraries may already crash."""

from __future__ import annotations

import json

from vitdeploy import apart, targets
from vitdeploy.commands.board.models import PRECISIONS
from vitdeploy.precision import kind_of


def _work(task: bytes) -> bytes:
    target = targets.kind_of(task.decode())()  # type: ignore[call-arg]  # each has a default device
    recorder = target.recorder(kind_of(PRECISIONS[0]).numbers)
    return json.dumps({} if recorder is None else recorder.describe()).encode()


if __name__ == "__main__":
    apart.answer(_work)
