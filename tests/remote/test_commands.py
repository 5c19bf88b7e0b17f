"""The whole way: over a real sshd to a vitdeploy without torch, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import listing, run
from tests.cli.test_contract import answer
from tests.remote.conftest import Far, on
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Audit, Bench, Eval

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


def test_compile_brings_the_artifact_back_into_the_bundles_place(
    far: Far, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    here = copy(bundle)
    found = on(far, "compile", here)
    compiled = answer(found)
    assert (compiled["artifact"], compiled["stage"]) == (str(here), "artifact")
    assert any(note.startswith(f"compiled on {far.url}") for note in compiled["notes"])
    assert f"{far.url}: ✓ Compile with openvino" in found.err, "what is said there is shown here"
    loaded = artifacts.load(here)
    assert {"model.xml", "model.bin"} <= {entry.path for entry in loaded.manifest.files}
    audit, _ = loaded.read_evidence(Audit)
    assert audit is not None
    assert audit.attention.evidence == "compiled"
    assert audit.attention.fused == audit.attention.sites == 4
    assert "torch" not in loaded.manifest.target.model_dump_json()
    assert (here / "graph.onnx").read_bytes() == (bundle / "graph.onnx").read_bytes()


def test_export_is_done_here_and_compiled_there(far: Far, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    exported = answer(on(far, "export", "demo:digits", "--target", "onnxruntime", "-o", out))
    assert (exported["artifact"], exported["stage"]) == (str(out), "artifact")
    assert any(note.startswith("compiled on") for note in exported["notes"])
    assert artifacts.load(out).read_evidence(Audit)[0] is not None


def test_what_is_there_is_not_sent_again(far: Far, bundle: Path, tmp_path: Path) -> None:
    answer(on(far, "compile", bundle, "-o", tmp_path / "first"))
    again = on(far, "compile", bundle, "-o", tmp_path / "second")
    answer(again)
    assert "Send" not in again.err
    assert listing(tmp_path / "first") == listing(tmp_path / "second")


def test_a_target_that_is_not_there_is_refused_before_the_work(far: Far, tmp_path: Path) -> None:
    found = on(far, "export", "demo:digits", "--target", "tensorrt", "-o", tmp_path / "a")
    assert f'{far.url} cannot compile for tensorrt: it says "TensorRT is not installed here"' in found.error
    assert "Export to ONNX" not in found.err
    assert not (tmp_path / "a").exists()


def test_bench_there_has_no_speedup_and_says_why(far: Far, artifact: Path, copy: Callable[[Path], Path]) -> None:
    here = copy(artifact)
    found = answer(on(far, "bench", here, "--seconds", "0.3", "--threads", "1"))
    [timed] = found["runs"]
    assert (timed["name"], timed["speedup"], timed["threads"]) == ("onnxruntime-fp32", None, 1)
    assert timed["samples"] >= 30
    assert found["valid"] is False
    assert "no FP32 reference here, so no speed-up" in found["doubts"][0]
    stored, _ = artifacts.load(here).read_evidence(Bench)
    assert stored == Bench.model_validate(found)


def test_eval_there_is_eval_here(far: Far, artifact: Path, copy: Callable[[Path], Path]) -> None:
    """The reference answers here, the artifact there; the same runtime on the same CPU gives the same numbers."""
    here = copy(artifact)
    there = answer(on(far, "eval", here, "--limit", "150"))
    stored, _ = artifacts.load(here).read_evidence(Eval)
    assert stored == Eval.model_validate(there)
    local = answer(run("eval", copy(artifact.parent) / "artifact", "--limit", "150", "--json"))
    assert there["reference"] == "pytorch-fp32"
    assert there == local


def test_labelled_data_goes_there_whatever_it_is_called(
    far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Names with everything that a shell would act on are only names."""
    trap = tmp_path / "trap"
    data = tmp_path / f"a b;$(touch {trap.name})`touch trap`'\"&|\n*"
    rng = np.random.default_rng(0)
    for label in range(10):
        (data / str(label)).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(data / str(label) / "$(touch trap);'.png")
    here = Path(copy(artifact)).rename(tmp_path / "model; touch trap #")
    there = answer(on(far, "eval", here, "--data", data))
    assert there["n"] == 10
    assert there["data"] == str(data)
    assert there == answer(run("eval", here, "--data", data, "--json"))
    answer(on(far, "compile", here, "-o", tmp_path / "$(touch trap)"))
    left_behind = [*tmp_path.rglob("trap"), *far.folder.rglob("trap"), *Path.home().glob("trap"), *Path().glob("trap")]
    assert left_behind == []


def test_an_npz_goes_there_too(far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 255, (12, 32, 32), dtype=np.uint8), rng.integers(0, 10, 12)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    assert answer(on(far, "eval", copy(artifact), "--data", tmp_path / "data.npz"))["n"] == 12


def test_hosts_shows_what_a_host_is(far: Far, named: Callable[[str], None]) -> None:
    named(f"lab: {far.url}\ngone: ssh://127.0.0.1:1\n")
    found = {host["name"]: host for host in answer(run("hosts", "--json"))["hosts"]}
    assert (found["lab"]["state"], found["gone"]["state"]) == ("ready", "unreachable")
    assert "cannot be reached" in found["gone"]["why"]
    device = found["lab"]["device"]
    assert device["doctor"]["targets"]["openvino"]["available"]
    assert not device["doctor"]["export"]["available"]
    assert device["condition"]["memory_free_gib"] > 0
    missing = {name for name, value in device["condition"].items() if value is None} - {"jetpack"}
    assert missing == set(device["condition"]["unknown"]), "what is not known has a reason"
    text = run("hosts", "lab").out
    assert "ready" in text
    assert "onnxruntime, openvino" in text


def test_hosts_clean_frees_the_disk(far: Far, bundle: Path, named: Callable[[str], None], tmp_path: Path) -> None:
    named(f"lab: {{url: '{far.url}', cache: {tmp_path}/cache}}\n")
    answer(run("compile", bundle, "-o", tmp_path / "out", "--host", "lab", "--json"))
    files = [p for p in (tmp_path / "cache").rglob("*") if p.stat().st_size > 10_000 and p.is_file()]
    assert files
    answer(run("hosts", "lab", "--clean", "--json"))
    assert not any(p.exists() for p in files)


def test_without_hosts_the_file_is_named(near: Path) -> None:
    found = run("hosts")
    assert found.code == 0
    assert "hosts.yaml" in found.out.replace("\n", "")
    assert json.loads(run("hosts", "--json").out)["hosts"] == []
