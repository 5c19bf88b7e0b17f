"""Sweeps on three nodes: the same results as on one machine, also if a node dies, and no bench beside other work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.conftest import start
from tests.cluster.conftest import NODE, ROOT
from tests.commands.sweep.running import BASE, Steps, go, write
from vitdeploy import artifact as artifacts
from vitdeploy.cluster import Cluster, running
from vitdeploy.errors import NoNodeLeft, RemoteError, VitdeployError
from vitdeploy.evidence import Bench, Eval, Sweep, SweepRow, WorkPeriod

pytestmark = pytest.mark.slow

MATRIX = """
matrix:
  model: [demo:digits, {spec: demo:digits, weights: nowhere.safetensors}]
  target: [onnxruntime, openvino]
  precision: [int8]
limits: {max_drop_pp: 50}
cluster: {memory_gib: 1}
"""
CLUSTER = "cluster: {memory_gib: 1}\n"
PATIENCE_S = 300


def deterministic(row: SweepRow, result: Sweep) -> dict[str, object]:
    """What does not depend on time, with the digests of the files of the artifact."""
    own = row.model_dump(include={
        "name", "setting", "status", "step", "reason", "fix", "metric", "reference", "deployed", "drop", "drop_ci95",
        "agreement", "samples", "data_digest", "model_digest", "fused", "sites", "machine", "timing",
    })  # fmt: skip
    if row.artifact:  # OpenVINO numbers the nodes of model.xml by what its process has compiled before
        manifest = artifacts.load(Path(result.sweep) / row.artifact).manifest
        own["files"] = {file.path: file.sha256 for file in manifest.files if file.path != "model.xml"}
        own["quantized"] = manifest.quantized and manifest.quantized.model_dump()  # says where two graphs part
    return own


def overlap(first: WorkPeriod, second: WorkPeriod) -> bool:
    return first.boot == second.boot and first.began < second.ended and second.began < first.ended


def find_worker(node: Any, name: str) -> psutil.Process | None:
    """The process of a node that runs a function."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        try:
            if child.cmdline()[:1] == [f"ray::{name}"]:
                return child
        except psutil.Error:
            continue
    return None


def kill_first_busy(ray_nodes: Any, killed: list[str]) -> None:
    """Kill the first node but the head that exports something."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and not killed:
        for node in list(ray_nodes.worker_nodes):
            if find_worker(node, "prepare") is not None:
                ray_nodes.remove_node(node, allow_graceful=False)
                killed.append(node.unique_id)
                return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep]:
    """The sweep on this machine alone: in a new process, as those of nodes are, where no test ran before."""
    folder = tmp_path_factory.mktemp("serial")
    file, answer = write(folder, BASE + MATRIX), folder / "answer.json"
    code = "import sys; from tests.cluster.calls import sweep_alone; sweep_alone(*sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", code, file, folder / "out", answer],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(NODE["num_cpus"])},
    )
    return file, Sweep.model_validate_json(answer.read_bytes())


@pytest.fixture(scope="module")
def killed_node(cluster: Cluster, ray_nodes: Any) -> Iterator[list[str]]:
    """The ids of nodes that died. Others take their places for the tests that follow."""
    killed: list[str] = []
    yield killed
    for _ in killed:
        ray_nodes.add_node(**NODE, resources={"edge": 1})


@pytest.fixture(scope="module")
def swept(
    serial: tuple[Path, Sweep], ray_nodes: Any, killed_node: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Sweep, Steps]:
    """The same sweep on three nodes, one of which is killed in the middle. Not to be changed: take a copy."""
    killer = threading.Thread(target=kill_first_busy, args=(ray_nodes, killed_node))
    killer.start()
    try:
        result, steps = go(serial[0], tmp_path_factory.mktemp("nodes") / "out", ray="auto")
    finally:
        killer.join()
    return serial[0], result, steps


def test_the_results_are_those_of_one_machine(
    serial: tuple[Path, Sweep], swept: tuple[Path, Sweep, Steps], killed_node: list[str]
) -> None:
    _, alone = serial
    _, result, steps = swept
    assert len(killed_node) == 1, "a node died in the middle"
    assert result.counts == {"done": 2, "failed": 2}
    for row, other in zip(result.trials, alone.trials, strict=True):
        assert deterministic(row, result) == deterministic(other, alone)
    failed = [row for row in result.trials if row.status == "failed"]
    assert [bool(row.repeats) for row in failed] == [False, True]
    assert sum(line.startswith("failed at export") for line in steps.lines) == 1
    names = [sorted(p.name for p in (Path(r.sweep) / "references").iterdir()) for r in (result, alone)]
    assert names[0] == names[1]
    assert len(names[0]) == 1
    for row in result.trials:
        bench = (
            None if row.status == "failed" else artifacts.load(Path(result.sweep) / row.artifact).read_evidence(Bench)
        )
        assert bench is None or (bench[0] is not None and bench[0].own is not None), row.name


def test_no_bench_overlaps_other_work_on_its_machine(swept: tuple[Path, Sweep, Steps]) -> None:
    _, result, _ = swept
    done = [row for row in result.trials if row.status == "done"]
    exports, benches = [row.exported for row in done], [row.timed for row in done]
    assert all(exports)
    assert all(benches)
    for (number, bench), (other_number, other) in product(enumerate(benches), enumerate(exports + benches)):
        assert bench is not None
        assert other is not None
        assert number == other_number - len(exports) or not overlap(bench, other)


def test_a_sweep_goes_on_elsewhere(swept: tuple[Path, Sweep, Steps], tmp_path: Path) -> None:
    """Begun on the cluster, it has nothing left to do here; what is deleted here is done there, and timed longer."""
    file, result, _ = swept
    out = Path(shutil.copytree(result.sweep, tmp_path / "out"))
    again, steps = go(file, out)
    assert steps.titles == []
    assert all(row.reused for row in again.trials)
    (out / "trials" / result.trials[0].name / "trial.json").unlink()
    longer = write(
        tmp_path,
        (BASE + MATRIX).replace("seconds: 0.2", "seconds: 0.4"),
    )
    extended, steps = go(longer, out, ray="auto")
    done = [row for row in extended.trials if row.status == "done"]
    assert [row.reused for row in done] == [False, True]
    assert [row.bench_seconds for row in done] == [0.4, 0.4]
    assert [line.startswith("a longer bench, 0.4 s") for line in steps.lines].count(True) == 1
    for row in done:
        bench, _ = artifacts.load(out / row.artifact).read_evidence(Bench)
        assert isinstance(bench, Bench)
        assert bench.own is not None
        assert bench.own.p50_ms == row.p50_ms
    assert done[1].exported == again.trials[1].exported, "it was only timed again"


def kill_first_measuring(ray_nodes: Any) -> None:
    """Kill the first process that measures, on any node."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for node in (ray_nodes.head_node, *ray_nodes.worker_nodes):
            if (process := find_worker(node, "measure")) is not None:
                process.kill()
                return
        time.sleep(0.02)


def test_a_bench_whose_process_dies_keeps_what_was_exported(
    cluster: Cluster, ray_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MAX_RETRIES", 0)
    file = write(tmp_path, BASE + "matrix: {target: [onnxruntime]}\ncluster: {memory_gib: 1}\n")
    killer = threading.Thread(target=kill_first_measuring, args=(ray_nodes,))
    killer.start()
    result, _ = go(file, tmp_path / "out", ray="auto")
    killer.join()
    (row,) = result.trials
    assert (row.status, row.step) == ("failed", "bench")
    assert row.reason.startswith("the work failed 1 times with its node or process")
    assert row.exported is not None
    artifact = artifacts.load(tmp_path / "out" / "trials" / row.name / "artifact")
    evaluation, _ = artifact.read_evidence(Eval)
    assert evaluation is not None


@pytest.mark.parametrize("function", ["prepare", "measure"])
def test_a_sweep_that_loses_its_only_large_node_blames_no_trial(
    cluster: Cluster, ray_nodes: Any, tmp_path: Path, function: str
) -> None:
    """A bench needs the large node. It dies while a trial is exported on any node, or timed on this one."""
    large = ray_nodes.add_node(**{**NODE, "num_cpus": 2})
    file, out = write(tmp_path, BASE + "matrix: {target: [onnxruntime]}\n" + CLUSTER), tmp_path / "out"

    def kill_large() -> None:
        nodes = (ray_nodes.head_node, *ray_nodes.worker_nodes)
        wait_until(lambda: any(find_worker(node, function) for node in nodes))
        ray_nodes.remove_node(large, allow_graceful=False)

    killer = threading.Thread(target=kill_large)
    killer.start()
    with pytest.raises(NoNodeLeft, match=r"no node has the 2 CPUs and 1 GiB of memory that the work needs"):
        go(file, out, ray="auto")
    killer.join()
    assert list((out / "trials").glob("*/trial.json")) == []
    assert ",pending," in (out / "results.csv").read_text()
    result, _ = go(file, out, ray="auto")
    assert result.counts == {"done": 1}


def is_exporting(ray_nodes: Any) -> bool:
    return any(find_worker(node, "prepare") for node in (ray_nodes.head_node, *ray_nodes.worker_nodes))


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ctrl_c_ends_what_runs_on_nodes(cluster: Cluster, ray_nodes: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path, BASE + "matrix: {target: [onnxruntime]}\ncluster: {memory_gib: 1}\n"), tmp_path / "out"
    process = start("sweep", file, "-o", out, "--quiet", "--ray", ray_nodes.address)
    wait_until(lambda: is_exporting(ray_nodes) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert list((out / "trials").glob("*")) == []
    wait_until(lambda: not is_exporting(ray_nodes))
    result, _ = go(file, out, ray="auto")
    assert result.counts == {"done": 1}


def test_a_full_disk_of_a_node_ends_the_sweep_and_keeps_what_is_done(cluster: Cluster, tmp_path: Path) -> None:
    body = "Path('/dev/full').write_text('weights')"  # the kernel says that there is no space
    (tmp_path / "full.py").write_text(f"from pathlib import Path\n\n\ndef make():\n    {body}\n")
    text = BASE + "matrix: {model: ['demo:digits'], target: [onnxruntime], precision: [fp32]}\n" + CLUSTER
    go(write(tmp_path, text, "first.yaml"), tmp_path / "out")
    file = write(tmp_path, text.replace("['demo:digits']", "['demo:digits', 'python:full.py:make']"))
    with pytest.raises(VitdeployError, match=r"^on .*No space left on device") as caught:
        go(file, tmp_path / "out", ray="auto")
    assert any(node.name in caught.value.message for node in cluster.nodes)
    records = list((tmp_path / "out" / "trials").glob("*/trial.json"))
    assert len(records) == 1
    assert (tmp_path / "out" / "results.csv").is_file()


def test_files_that_differ_on_a_node_fail_their_trial(cluster: Cluster, tmp_path: Path) -> None:
    """Here the file changes after it was read, as a copy on another machine may be another one."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(str(n) for n in range(10)))
    file = write(
        tmp_path, BASE.replace("model: demo:digits", f"model: {{spec: demo:digits, labels: {labels}}}") + MATRIX
    )

    class Changing(Steps):
        def relay(self, line: str) -> None:
            labels.write_text("changed")

    from vitdeploy.commands.sweep.sweep import sweep
    from vitdeploy.commands.sweep.work import SweepPlan

    text = file.read_text().replace("model: [demo:digits, {spec: demo:digits, weights: nowhere.safetensors}]\n  ", "")
    file.write_text(text.replace("[onnxruntime, openvino]", "[onnxruntime]"))
    result = sweep(file, tmp_path / "out", Changing(), SweepPlan(ray="auto"))
    (failure,) = result.failures
    assert failure.step == "export"
    assert "a file or folder that the recipe names is missing on " in failure.reason
    assert "rsync -a" in failure.fix


def test_what_no_node_can_hold_is_refused_before_anything_runs(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path, BASE + MATRIX.replace("memory_gib: 1", "memory_gib: 64"))
    with pytest.raises(RemoteError, match=r"no node has the 1 CPU and 64 GiB of memory that the work needs") as caught:
        go(file, tmp_path / "out", ray="auto")
    assert all(node.name in caught.value.message for node in cluster.nodes if node in cluster.alive())
    none, _ = go(write(tmp_path, BASE + MATRIX), tmp_path / "out", ray="auto", budget_s=1e-9)
    assert none.counts == {"pending": 4}
