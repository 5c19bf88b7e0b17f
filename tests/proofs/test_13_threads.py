"""Point 13: many threads use one session, and each gets the answers to its own feeds.

`VITDEPLOY_THREAD_CALLS` is the number of calls of each of the 8 threads; the figures in benchmarks/robustness.md are
those of 2000. A line `threads TARGET: N calls, W wrong` is printed for each target (`pytest -s`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.errors import UsageError
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.reference import rebuild_reference
from vitdeploy.session import Array, Session

THREADS = 8
CALLS = int(os.environ.get("VITDEPLOY_THREAD_CALLS", "100"))
IMAGES = 16
SIDES = ("openvino", "onnxruntime", "tensorrt", "pytorch")

Opened = Callable[[str], Any]


@pytest.fixture
def opened(demo: Callable[..., Artifact], device: Callable[..., Any], tmp_path: Path) -> Opened:
    """Open `demo:digits` on a target, or its reference in PyTorch. TensorRT and its GPU are the fake ones."""

    @contextmanager
    def open_side(side: str) -> Iterator[Session]:
        if side == "pytorch":
            session = rebuild_reference(demo(target="openvino"), 1)
        elif side == "tensorrt":
            device("10.3")
            bundle = demo(target="tensorrt")
            session = open_session(compile_bundle(bundle, tmp_path / "engine", Silent()).artifact, None)
        else:
            session = open_session(demo(target=side), 1)
        with session:
            yield session

    return open_side


def make_feeds(artifact: Artifact) -> list[dict[str, Array]]:
    """Different images for the model's only input."""
    (image,) = artifact.manifest.inputs
    shape = tuple(d if isinstance(d, int) else 1 for d in image.shape)
    generator = np.random.default_rng(0)
    return [{image.name: generator.standard_normal(shape, np.float32)} for _ in range(IMAGES)]


def run_threads(work: Callable[[int], int]) -> int:
    """Call `work(thread)` in all threads at the same time; return the sum of what they return."""
    together = threading.Barrier(THREADS)

    def start(thread: int) -> int:
        together.wait()
        return work(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(start, range(THREADS)))


def differs(outputs: dict[str, Array], expected: dict[str, Array]) -> bool:
    return set(outputs) != set(expected) or any(
        not np.allclose(outputs[name], value, rtol=1e-4, atol=1e-4 * float(np.abs(value).max()))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("side", SIDES)
def test_each_thread_gets_its_own_answers(side: str, opened: Opened, demo: Callable[..., Artifact]) -> None:
    feeds = make_feeds(demo(target="openvino"))
    with opened(side) as session:
        expected = [session.run(query) for query in feeds]
        assert all(differs(answer, other) for answer, other in pairwise(expected))

        def work(thread: int) -> int:
            picks = [(call * (thread + 1) + thread) % IMAGES for call in range(CALLS)]
            return sum(differs(session.run(feeds[pick]), expected[pick]) for pick in picks)

        wrong = run_threads(work)
    print(f"threads {side}: {THREADS * CALLS} calls, {wrong} wrong")
    assert wrong == 0


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_threads_may_predict_with_one_loaded_artifact(target: str, demo: Callable[..., Artifact]) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8) for seed in range(IMAGES)]
    with vitdeploy.load(demo(target=target).path, threads=1) as model:
        expected = [model.predict(image)[0] for image in images]

        def work(thread: int) -> int:
            picks = [(call + thread) % IMAGES for call in range(CALLS // 4)]
            return sum(model.predict(images[pick])[0].top[0] != expected[pick].top[0] for pick in picks)

        assert run_threads(work) == 0


@pytest.mark.parametrize("side", SIDES)
def test_threads_may_run_streams_and_single_queries(side: str, opened: Opened, demo: Callable[..., Artifact]) -> None:
    feeds = make_feeds(demo(target="openvino"))
    with opened(side) as session:
        expected = [session.run(query) for query in feeds]

        def work(thread: int) -> int:
            wrong = 0
            for pick in range(IMAGES):
                if thread % 2:
                    session.run_all(feeds[:4])
                else:
                    wrong += differs(session.run(feeds[pick]), expected[pick])
            return wrong

        assert run_threads(work) == 0


@pytest.mark.parametrize("side", SIDES)
def test_a_closed_session_says_so(side: str, opened: Opened, demo: Callable[..., Artifact]) -> None:
    feeds = make_feeds(demo(target="openvino"))
    with opened(side) as session:
        session.run(feeds[0])
        session.close()
        calls = [lambda: session.run(feeds[0]), lambda: session.run_all(feeds[:2])]
        if side != "pytorch":  # it has no profile, open or closed
            calls.append(lambda: session.profile(feeds[0]))
        for call in calls:
            with pytest.raises(UsageError, match=r"^the session \S+ is closed\.") as caught:
                call()
            assert "Open it again" in caught.value.fix
        session.close()


@pytest.mark.parametrize("side", SIDES)
def test_closing_while_others_run_gives_answers_or_that_line(
    side: str, opened: Opened, demo: Callable[..., Artifact]
) -> None:
    feeds = make_feeds(demo(target="openvino"))
    is_running = threading.Event()
    with opened(side) as session:
        expected = [session.run(query) for query in feeds]

        def work(thread: int) -> int:
            if thread == 0:
                is_running.wait()
                session.close()
                return 0
            wrong = 0
            for call in range(1_000_000):
                if call == 5:
                    is_running.set()
                try:
                    outputs = session.run(feeds[call % IMAGES])
                except UsageError as error:
                    return wrong if "is closed" in error.message else wrong + 1
                wrong += differs(outputs, expected[call % IMAGES])
            raise AssertionError("it was never said that the session is closed")

        assert run_threads(work) == 0


def test_a_closed_artifact_says_so(demo: Callable[..., Artifact]) -> None:
    with vitdeploy.load(demo(target="openvino").path, threads=1) as model:
        pass
    with pytest.raises(UsageError, match="is closed"):
        model.predict(np.zeros((8, 8), np.uint8))
