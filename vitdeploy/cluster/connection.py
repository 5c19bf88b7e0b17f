"""Connect to a running Ray cluster, within seconds or with one line that says why not."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec

from vitdeploy.cluster.nodes import list_nodes
from vitdeploy.cluster.running import MAX_RETRIES, Cluster
from vitdeploy.errors import RemoteError, UsageError
from vitdeploy.progress import Progress

AUTO = "auto"
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_MODULES = ("ray", "grpc")
_SHOWN = 200
_PATIENCE_S = 10.0
"""The time that the head of a cluster has to answer. Ray itself waits for 40 s, and then ends the process."""
_START = "Start one with ray start --head, and ray start --address HOST:PORT on the other machines."
SETTINGS = {
    "RAY_task_oom_retries": str(MAX_RETRIES),  # by default a task that needs too much memory is retried for ever
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray would print: dead nodes and retries, with pages of its logs
    "GRPC_VERBOSITY": "NONE",
}
"""Ray reads them when it is imported, or when it connects."""


def check_address(address: str) -> None:
    """Check the form of an address.

    Raises:
        UsageError: it is neither `auto` nor HOST:PORT.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"{address} is the address of a Ray Client server, which takes no work of vitdeploy",
            fix="Run the command on a node of the cluster, with auto or HOST:PORT of its head.",
        )
    if address != AUTO and _ADDRESS.fullmatch(address) is None:
        raise UsageError(f"{address!r} is not an address of a Ray cluster", fix="Give auto, or HOST:PORT of its head.")


@contextlib.contextmanager
def connect(address: str, progress: Progress) -> Iterator[Cluster]:
    """Connect to a running cluster, and check that its nodes compute the same as this process.

    A program that is connected already uses that connection, and stays connected.

    Args:
        address: `auto` for the cluster that this machine is a node of, or HOST:PORT of its head.
        progress: gets a step.

    Raises:
        UsageError: the address has another form.
        RemoteError: Ray is not installed; the cluster does not answer; this machine is not a node of it; versions of
            Python, Ray, vitdeploy or its libraries differ; or no node has CPUs.
    """
    check_address(address)
    _require_ray()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    ours = not ray.is_initialized()
    try:
        with progress.step(f"Connect to the Ray cluster {address}"):
            if ours:
                _initialize(address)
            cluster = Cluster(list_nodes())
        yield cluster
    finally:
        if ours:
            ray.shutdown()


def _require_ray() -> None:
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise RemoteError(f"{missing[0]} is not installed", fix="pip install 'vitdeploy[sweep]'.")


def _initialize(address: str) -> None:
    import ray

    place = _resolve(address)
    _await_answer(place, address)
    try:
        ray.init(place, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise _explain(error, address) from None


def _resolve(address: str) -> str:
    """Return HOST:PORT of the cluster that this machine is a node of, or the address itself."""
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die(address))
    except (ConnectionError, ValueError, OSError):
        where = "on this machine" if address == AUTO else f"at {address}"
        raise RemoteError(f"there is no Ray cluster {where}", fix=_START) from None


def _await_answer(place: str, address: str) -> None:
    """Wait until the head of the cluster answers.

    Raises:
        RemoteError: it does not.
    """
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=_PATIENCE_S)
        except grpc.FutureTimeoutError:
            ready.cancel()
            at = address if address == place else f"{address} ({place})"
            raise RemoteError(
                f"no Ray cluster answers at {at} within {_PATIENCE_S:g} s",
                fix=f"Check the address with ray status. {_START}",
            ) from None


def _explain(error: Exception, address: str) -> RemoteError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if "ersion mismatch" in text:
        versions = re.findall(r"(Ray|Python): ([0-9][\w.]*)", text)
        there, here = versions[: len(versions) // 2], versions[len(versions) // 2 :]
        differing = [f"{name} {one} there, {other} here" for (name, one), (_, other) in zip(there, here, strict=False)
                     if one != other]  # fmt: skip
        return RemoteError(
            f"the Ray cluster {address} has other versions: {', '.join(differing) or text[:_SHOWN]}",
            fix="Install the same versions of Python, Ray and vitdeploy on all nodes.",
        )
    if "raylet" in text.lower() or "node" in text.lower():
        fix = "Run the command on a node of the cluster, or make this machine one: ray start --address HOST:PORT."
        return RemoteError(f"this machine is not a node of the Ray cluster {address}: {text[:_SHOWN]}", fix=fix)
    return RemoteError(f"the Ray cluster {address} refuses the connection: {text[:_SHOWN]}", fix=_START)
