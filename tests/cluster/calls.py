"""Functions that tests run on nodes."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

from tests.machine import use_own_lock
from tests.short import SHORT, shorten
from vitdeploy.errors import DataError
from vitdeploy.remote.near import ssh


def square(number: int) -> int:
    return number * number


def total(numbers: list[int], more: int) -> int:
    return sum(numbers) + more


def refuse() -> None:
    raise DataError("there is no image", fix="Add one.")


def stumble() -> None:
    raise ZeroDivisionError("of the model")


def kill_process_once(mark: Path) -> int:
    """End the process that it runs in, the first time."""
    if not mark.exists():
        mark.write_text("")
        os._exit(1)
    return os.getpid()


def wait_on_node(mark: Path) -> str:
    """Leave a mark with the node that it runs on, and take a second."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    mark.with_name(f"{mark.name}-{node}").write_text("")
    time.sleep(1.0)
    return str(node)


def measure_shortly() -> None:
    """Shorten measurements in a process of a node, which takes the lock of these tests."""
    use_own_lock()
    ssh.PATIENCE_S = 1.0
    for name in SHORT:
        importlib.import_module(name)
    shorten(setattr, sys.modules)


def sweep_alone(file: str, out: str, answer: str) -> None:
    """Run a sweep in this process, and write what it returns as JSON."""
    from tests.commands.sweep.running import go

    measure_shortly()
    result, _ = go(Path(file), Path(out))
    Path(answer).write_text(result.model_dump_json(), encoding="utf-8")
