"""Streams of ONNX Runtime: the answers of one session, overlapping runs, and an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.errors import UsageError
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.recipe import TargetSpec
from vitdeploy.runtime.artifact_session import feed, read_compiled
from vitdeploy.session import Array, Closing, Feeds
from vitdeploy.targets._onnxruntime.pool import SessionPool


@pytest.mark.parametrize(("streams", "threads", "share"), [(2, 2, 1), (2, 4, 2), (3, 2, 1)])
def test_every_stream_gives_the_answers_of_one_session(
    streams: int, threads: int, share: int, demo: Callable[..., Artifact]
) -> None:
    artifact = demo(target="onnxruntime", batch="1:1:32")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32), np.uint8)
    queries = [feed(artifact, pixels[n : n + 1]) for n in range(8)]
    target, compiled = targets.find(artifact.manifest.recipe.target), read_compiled(artifact)
    with (
        target.open(compiled, FLOAT32, 1) as single,
        target.open_streams(compiled, FLOAT32, threads, streams) as pool,
        ThreadPoolExecutor(8) as callers,
    ):
        expected = [single.run(query) for query in queries]
        answers = list(callers.map(pool.run, queries))
        pool.run_all(queries)
        assert pool.threads == threads
        assert (pool.effective["streams"], pool.effective["threads_per_stream"]) == (str(streams), str(share))
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(answer[name], value, atol=1e-5)
    assert not np.allclose(expected[0]["output"], expected[1]["output"]), "the queries have different answers"


class _Meeting(Closing):
    """A session in which two runs meet: alone, one waits in vain."""

    name, device_ms, effective = "meeting", None, {}
    together = threading.Barrier(2)

    def __init__(self, threads: int) -> None:
        self.threads: int | None = threads

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self.together.wait(timeout=300)
        return dict(feeds)

    def run_all(self, feeds: object) -> None: ...

    def profile(self, feeds: Feeds) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("threads", "sessions"), [(2, 1), (4, 2), (5, 2)])
def test_runs_overlap_and_only_streams_of_several_threads_have_sessions_of_their_own(
    threads: int, sessions: int
) -> None:
    opened: list[int] = []

    def open_one(share: int) -> _Meeting:
        opened.append(share)
        return _Meeting(share)

    with SessionPool(open_one, streams=2, threads=threads) as pool:
        pool.run_all([{}] * 6)
    assert opened == [threads // 2] * sessions


def test_a_failure_while_opening_closes_what_was_open() -> None:
    closed: list[int] = []

    class Second(_Meeting):
        def close(self) -> None:
            closed.append(1)

    def open_one(share: int) -> Second:
        if opened:
            raise UsageError("no memory", fix="")
        opened.append(share)
        return Second(share)

    opened: list[int] = []
    with pytest.raises(UsageError, match="no memory"):
        SessionPool(open_one, streams=2, threads=4)
    assert closed == [1]


def test_a_closed_pool_says_so(demo: Callable[..., Artifact]) -> None:
    graph = demo(target="onnxruntime").file("graph.onnx")
    pool = SessionPool(lambda share: OnnxSession(Path(graph), threads=share, name="pool"), streams=2, threads=2)
    pool.close()
    pool.close()
    for run in (lambda: pool.run({}), lambda: pool.run_all([{}])):
        with pytest.raises(UsageError, match="the session pool is closed"):
            run()


@pytest.mark.parametrize(("kind", "device"), [("tensorrt", "sm86"), ("onnxruntime", "cuda")])
def test_gpus_run_one_inference_at_a_time(kind: str, device: str, demo: Callable[..., Artifact]) -> None:
    target = targets.find(TargetSpec(kind=kind, device=device))
    assert not target.runs_streams
    with pytest.raises(UsageError, match="one inference at a time"):
        target.open_streams(read_compiled(demo(target="onnxruntime")), FLOAT32, 2, 2)
