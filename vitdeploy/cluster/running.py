"""Run functions on the nodes of a cluster, and get their results as they finish."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vitdeploy import errors
from vitdeploy.cluster.nodes import Node, list_alive
from vitdeploy.cluster.request import NodeRequest
from vitdeploy.errors import ArtifactError, RemoteError, VitdeployError

MAX_RETRIES = 3
"""Ray runs a call again, on another node, as often as its node or its process died."""
_SHOWN = 200
_LOOK_S = 5.0
"""The time between two looks if a node is left that can do the work."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class NodeCall(Generic[T]):
    """A call that waits for a node, or runs on one."""

    ref: Any
    request: NodeRequest


@dataclass
class Cluster:
    """A cluster that this process is connected to, with the nodes that had CPUs when it connected."""

    nodes: tuple[Node, ...]
    _dead: set[str] = field(default_factory=set)

    def alive(self) -> tuple[Node, ...]:
        """Return the nodes that live, of those that were there when this process connected."""
        living = {node["NodeID"] for node in list_alive()}
        self._dead |= {node.id for node in self.nodes if node.id not in living}
        return tuple(node for node in self.nodes if node.id not in self._dead)

    def count_slots(self, request: NodeRequest) -> int:
        """Return the number of such calls that can run at once on the nodes that live."""
        return sum(_count_slots(request, node) for node in self.alive())

    def share(self, value: object) -> Any:
        """Put a value into the object store. A function gets the value in the place of what is returned here.

        Raises:
            ArtifactError: the object store or the disk is full.
        """
        import ray

        with _explained_if_full():
            return ray.put(value)

    def start(self, function: Callable[..., T], *arguments: object, request: NodeRequest) -> NodeCall[T]:
        """Let a node run a function of a module. Arguments and result are pickled.

        Large arguments go through the object store, which may be full: see `share`.

        Raises:
            NoNodeLeft: no node can meet the request.
        """
        import ray

        request.refuse_too_large(self.alive())
        task = ray.remote(_call).options(max_retries=MAX_RETRIES, name=function.__name__, **request.options())
        with _explained_if_full():
            return NodeCall(task.remote(function, *arguments), request)

    def wait(self, calls: Sequence[NodeCall[Any]]) -> list[NodeCall[Any]]:
        """Wait until one or more of the calls have ended, and return those.

        Raises:
            NoNodeLeft: no node is left that can meet the request of one.
        """
        import ray

        refs = {call.ref: call for call in calls}
        while True:
            done, _ = ray.wait(list(refs), num_returns=1, timeout=_LOOK_S, fetch_local=False)
            if done:
                more, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
                return [refs[ref] for ref in more or done]
            living = self.alive()
            for call in calls:
                call.request.refuse_too_large(living)

    def collect(self, call: NodeCall[T]) -> T:
        """Return the result of a call that has ended.

        Raises:
            ArtifactError: the object store or the disk of a node is full.
            VitdeployError: the function raised it.
            RemoteError: its node or its process died each time, or its result is lost.
            NoNodeLeft: its node died, and no other can meet its request.
            Exception: the function raised it.
        """
        import ray

        try:
            with _explained_if_full():
                failed, result = ray.get(call.ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from None
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.TaskUnschedulableError):
                call.request.refuse_too_large(self.alive())
            raise _explain(error) from None
        if failed:
            name, message, fix = result
            raise getattr(errors, name, VitdeployError)(message, fix=fix)
        return result  # type: ignore[no-any-return]

    def interrupt(self, calls: Sequence[NodeCall[Any]], patience_s: float) -> None:
        """Raise KeyboardInterrupt in calls, and wait until they have ended, but not for ever: then end them."""
        import ray

        for call in calls:
            ray.cancel(call.ref, force=False)
        self.cancel(_list_running(calls, patience_s))

    def cancel(self, calls: Iterable[NodeCall[Any]]) -> None:
        """End calls, also in the middle.

        Those that have ended are left alone: Ray (2.60) aborts this process if a call is cancelled just when its result
        has arrived.
        """
        import ray

        for call in _list_running(list(calls)):
            ray.cancel(call.ref, force=True)

    def run(
        self, function: Callable[..., T], arguments: Iterable[tuple[object, ...]], request: NodeRequest
    ) -> Iterator[tuple[int, T]]:
        """Call a function on the nodes once for each tuple of arguments.

        No more calls are sent than can run at once and two more a node, so that arguments and results of a long list
        do not fill the memory. Large arguments that calls have in common: see `share`.

        Yields:
            The number of a call from 0 and its result, as calls finish.

        Raises:
            VitdeployError: see `start`, `wait` and `collect`. The other calls are ended.
        """
        most = self.count_slots(request) + 2 * len(self.nodes)
        waiting, running = enumerate(arguments), dict[NodeCall[T], int]()
        try:
            while True:
                while len(running) < most and (following := next(waiting, None)) is not None:
                    number, values = following
                    running[self.start(function, *values, request=request)] = number
                if not running:
                    return
                for call in self.wait(list(running)):
                    result = self.collect(call)
                    yield running.pop(call), result
        finally:
            self.cancel(running)


def _list_running(calls: Sequence[NodeCall[T]], patience_s: float = 0.0) -> list[NodeCall[T]]:
    """Return the calls that have not ended after some seconds; sooner if all have ended."""
    import ray

    if not calls:
        return []
    refs = {call.ref: call for call in calls}
    _, running = ray.wait(list(refs), num_returns=len(refs), timeout=patience_s, fetch_local=False)
    return [refs[ref] for ref in running]


def fetch(shared: Any) -> Any:
    """Return the value that `Cluster.share` put into the object store, on the node that needs it.

    Raises:
        ArtifactError: the object store or the disk of the node is full.
    """
    import ray

    with _explained_if_full():
        return ray.get(shared)


def this_node() -> str:
    """Return the id of the node that a function runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _count_slots(request: NodeRequest, node: Node) -> int:
    if not request.fits(node):
        return 0
    by_cpus = int(node.cpus // request.cpus)
    return min(by_cpus, node.memory_bytes // request.memory_bytes) if request.memory_bytes else by_cpus


def _call(function: Callable[..., T], *arguments: object) -> tuple[bool, Any]:
    """Run a function on a node. An error that a user can cause travels as data: others keep their traceback."""
    try:
        return False, function(*arguments)
    except VitdeployError as error:
        return True, (type(error).__name__, error.message, error.fix)


@contextmanager
def _explained_if_full() -> Iterator[None]:
    """Raise what Ray says about a full disk, or a full object store, as an error that comes from a full disk."""
    import ray

    try:
        yield
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        what = "disk" if isinstance(error, ray.exceptions.OutOfDiskError) else "object store"
        raise ArtifactError(
            f"the {what} of a node is full, so that Ray cannot pass data on",
            fix="Free some space there, or give Ray more: ray start --object-store-memory BYTES. Then run it again.",
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _explain(error: Exception) -> RemoteError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:_SHOWN] if lines else type(error).__name__
    return RemoteError(
        f"the work failed {MAX_RETRIES + 1} times with its node or process: {type(error).__name__}: {reason}",
        fix="It may need more memory than its node has. Look into the logs of Ray, by default in /tmp/ray.",
    )
