"""Streams, threads, hints and devices of OpenVINO: passed through, read back, and refused with a reason."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.graphs import images
from vitdeploy.errors import CompileError, RecipeError, TargetUnavailable
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.recipe import Batch, TargetSpec
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target, find

pytest.importorskip("openvino")

ROOT = Path(__file__).parents[2]


def target(**options: object) -> Target:
    return find(TargetSpec.model_validate({"kind": "openvino", **options}))


@pytest.fixture(scope="module")
def compiled(exported: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("openvino")
    (folder / "graph.onnx").write_bytes(exported("legacy-17"))
    return target().compile(bundle(folder / "graph.onnx"), folder)


def bundle(graph: Path, batch: object = 1) -> Bundle:
    from vitdeploy.graph.structure import Structure

    empty = Structure(attention=(), linears=(), norms=())
    return Bundle(graph, empty, FLOAT32, Batch.model_validate(batch), "input", (1, 3, 32, 32))


def opened(compiled: Compiled, **options: object) -> Session:
    return target(**options).open(compiled, FLOAT32, None)


def test_the_engine_says_what_it_uses(compiled: Compiled) -> None:
    """OpenVINO counts a process's cores once. A test worker has one, so a process of its own opens the engine."""
    script = f"from tests.targets.test_openvino_options import print_use; print_use(Path({str(compiled.folder)!r}))"
    run = [sys.executable, "-c", f"from pathlib import Path; {script}"]
    give_all_cores = (lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1))) if sys.platform == "linux" else None
    done = subprocess.run(run, cwd=ROOT, preexec_fn=give_all_cores, capture_output=True, text=True, check=True)
    one, two, hint = json.loads(done.stdout)
    assert one["session"] == 1
    assert one.items() >= {
        "device": "CPU", "devices": "CPU", "hint": "LATENCY", "streams": "1", "threads": "1",
        "inference_precision": "f32",
    }.items()  # fmt: skip
    cores = min(2, os.cpu_count() or 1)
    assert (two["streams"], two["session"]) == (str(cores), cores)
    assert hint["hint"] == "THROUGHPUT"


def print_use(folder: Path) -> None:
    """Print what engines with three sets of options say they use, and the threads of the session."""
    compiled = target().compile(bundle(folder / "graph.onnx"), folder)
    options: list[dict[str, object]] = [{"threads": 1}, {"threads": 2, "streams": 2}, {"hint": "throughput"}]
    use = []
    for each in options:
        with opened(compiled, **each) as session:
            use.append({**session.effective, "session": session.threads})
    print(json.dumps(use))


def test_streams_answer_many_at_once(compiled: Compiled) -> None:
    with opened(compiled, threads=2, streams=2) as session:
        before = session.run({"input": images()})
        session.run_all([{"input": images(seed=seed)} for seed in range(7)])
        after = session.run({"input": images()})
    assert all((before[name] == after[name]).all() for name in before)


def test_auto_picks_a_device(compiled: Compiled) -> None:
    with opened(compiled, device="AUTO") as session:
        assert session.effective["device"] == "AUTO"
        assert "CPU" in session.effective["devices"]
        assert session.run({"input": images()})


@pytest.mark.parametrize("device", ["GPU", "NPU", "AUTO:GPU,CPU", "GPU.1"])
def test_a_device_that_is_not_here_is_named_with_those_that_are(device: str) -> None:
    import openvino as ov

    if {"GPU", "NPU"} & set(ov.Core().available_devices):
        pytest.skip("this machine has one")
    with pytest.raises(TargetUnavailable, match=r"finds no device (GPU|NPU).* here \(it finds CPU, AUTO\)"):
        target(device=device).require()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "AUTO", "streams": 2}, "streams cannot be chosen on AUTO"),
        ({"device": "NPU", "threads": 2}, "threads can be chosen on CPUs only"),
        ({"streams": 0}, "streams"),
        ({"hint": "fastest"}, "hint"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        target(**options)


def test_an_npu_takes_one_batch_size(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="static shapes only, not a batch of 1:2:4"):
        target(device="NPU").compile(bundle(tmp_path / "graph.onnx", "1:2:4"), tmp_path)
