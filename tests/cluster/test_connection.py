"""Clusters that cannot be used: each is refused with one line, within seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from vitdeploy import environment
from vitdeploy.cluster import Cluster, check_address, connect, connection
from vitdeploy.cluster import nodes as cluster_nodes
from vitdeploy.errors import RemoteError, UsageError
from vitdeploy.progress import Silent


def use(address: str) -> None:
    with connect(address, Silent()):
        pytest.fail("it must not connect")


def in_own_process(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Connect in a new process. One that is connected would use its connection."""
    code = (
        "import sys\nfrom vitdeploy.cluster import connect, connection\nfrom vitdeploy.progress import Silent\n"
        "connection._PATIENCE_S = 1.0\n"
        "try:\n    with connect(sys.argv[1], Silent()) as cluster: print(len(cluster.nodes))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    env = {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, **variables}
    return subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=300, check=True, env=env
    )


@pytest.mark.parametrize("address", ["", "head", "head:", "http://head:6379", "ray://head:10001", "a b:1", "local"])
def test_other_forms_of_addresses_are_wrong_usage(address: str) -> None:
    with pytest.raises(UsageError, match="address of a Ray"):
        check_address(address)
    for good in ("auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"):
        check_address(good)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(RemoteError, match=r"ray is not installed\. pip install 'vitdeploy\[sweep\]'"):
        use("auto")


def test_an_address_that_does_not_answer_is_refused_in_seconds() -> None:
    pytest.importorskip("ray", reason="pip install 'vitdeploy[sweep]'")
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # it accepts a connection, and then says nothing
        for one in (closed, silent):
            address = f"127.0.0.1:{one.getsockname()[1]}"
            began = time.monotonic()
            ended = in_own_process(address)
            assert ended.stdout.startswith(f"RemoteError no Ray cluster answers at {address}")
            assert ended.stderr == ""
            assert time.monotonic() - began < 30


@pytest.mark.parametrize("text", ["Version mismatch", "Version mismatch: Ray: 2.9", "Version mismatch: Ray: 2, Ray: 3"])
def test_other_versions_are_explained_in_any_form(text: str) -> None:
    error = connection._explain(RuntimeError(text), "auto")
    assert error.message.startswith("the Ray cluster auto has other versions: ")


def test_a_connection_prints_nothing_and_is_closed(ray_nodes: Any) -> None:
    ended = in_own_process(ray_nodes.address)
    assert (ended.stdout, ended.stderr) == ("3\n", "")


def test_a_program_that_is_connected_stays_connected(cluster: Cluster) -> None:
    import ray

    with connect("auto", Silent()) as second:
        assert {node.id for node in second.nodes} == {node.id for node in cluster.nodes}
    assert ray.is_initialized()


def test_other_versions_on_a_node_are_refused_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes report what they run. This process is of another version."""
    here = cluster_nodes.describe_versions()
    monkeypatch.setattr(cluster_nodes, "describe_versions", lambda: {**here, "vitdeploy": "0.0.1", "Ray": "1.0"})
    with pytest.raises(RemoteError, match="versions differ between nodes") as caught:
        use("auto")
    ours = environment.library_versions()["vitdeploy"]
    for node in cluster.nodes:
        expected = f"{node.name} has Ray {here['Ray']} (here 1.0), vitdeploy {ours} (here 0.0.1)"
        assert expected in caught.value.message


def test_nodes_with_other_code_of_the_same_version_are_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "digest_code", lambda folder: "0123456789abcdef")
    with pytest.raises(RemoteError, match=r"has code of vitdeploy [0-9a-f]{8} \(here 01234567\)"):
        use("auto")


def test_a_library_that_a_node_lacks_is_named() -> None:
    here = {"vitdeploy": "1", "torch": "2.9", "onnx": "1.2"}
    with pytest.raises(RemoteError) as caught:
        cluster_nodes.refuse_other_versions({"a": here, "b": {"vitdeploy": "1", "onnx": "1.2", "timm": "1"}}, here)
    assert caught.value.message == (
        "versions differ between nodes: b has torch not installed (here 2.9), timm 1 (here not installed)"
    )


def test_a_node_without_vitdeploy_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question travels as code, so that such a node can answer."""
    make = cluster_nodes._make_reporter

    def make_without() -> Any:
        report = make()

        def hide() -> Any:
            import sys

            sys.modules["vitdeploy.cluster.nodes"] = None  # type: ignore[assignment]
            try:
                return report()
            finally:
                del sys.modules["vitdeploy.cluster.nodes"]

        return hide

    monkeypatch.setattr(cluster_nodes, "_make_reporter", make_without)
    with pytest.raises(RemoteError, match="vitdeploy is not usable on ") as caught:
        use("auto")
    assert "Python 3" in caught.value.message
