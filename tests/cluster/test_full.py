"""A full disk or object store as Ray tells it. No node is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.cluster import Cluster, NodeCall, NodeRequest, fetch
from vitdeploy.commands.sweep.failures import raise_if_disk_is_full
from vitdeploy.errors import ArtifactError, RemoteError

ray = pytest.importorskip("ray", reason="pip install 'vitdeploy[sweep]'")

CALL = NodeCall[Any](None, NodeRequest())
USES: dict[str, tuple[str, Callable[[], Any]]] = {
    "share": ("put", lambda: Cluster(()).share(b"answers")),
    "collect": ("get", lambda: Cluster(()).collect(CALL)),
    "fetch": ("get", lambda: fetch(None)),
}


def refuse(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def on_node(error: Exception) -> Exception:
    """The error as `ray.get` raises it if a call on a node has met it."""
    wrapped: Exception = ray.exceptions.RayTaskError("prepare", "Traceback", error, ip="1.2.3.4").as_instanceof_cause()
    return wrapped


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("name", "what"), [("OutOfDiskError", "disk"), ("ObjectStoreFullError", "object store")])
def test_a_full_cluster_ends_the_sweep_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, name: str, what: str
) -> None:
    function, act = USES[use]
    full = getattr(ray.exceptions, name)("no space")
    for error in (full, on_node(full)):
        monkeypatch.setattr(ray, function, refuse(error))
        with pytest.raises(ArtifactError, match=f"^the {what} of a node is full") as caught:
            act()
        assert "\n" not in caught.value.message
        with pytest.raises(ArtifactError) as ended:  # a trial's other errors do not end a sweep
            raise_if_disk_is_full(caught.value, tmp_path)
        assert ended.value is caught.value


def test_another_error_of_ray_is_that_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", refuse(ray.exceptions.WorkerCrashedError()))
    with pytest.raises(RemoteError, match="WorkerCrashedError") as caught:
        Cluster(()).collect(CALL)
    raise_if_disk_is_full(caught.value, tmp_path)
