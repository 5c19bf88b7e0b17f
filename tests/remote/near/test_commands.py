"""Every command with --host: over a real sshd to a vitdeploy without torch, and back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import listing, run
from tests.cli.test_contract import answer
from tests.remote.conftest import on, when
from tests.remote.cutter import Wire
from tests.remote.far import Far
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.progress import Silent
from vitdeploy.remote.near import hosts
from vitdeploy.remote.near.client import Device, job_file
from vitdeploy.remote.near.ssh import Link

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


def test_compile_brings_the_artifact_back_into_the_bundles_place(
    far: Far, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    here = copy(bundle)
    result = on(far, "compile", here, "--option", "threads=1")
    compiled = answer(result)
    assert (compiled["artifact"], compiled["stage"]) == (str(here), "artifact")
    assert any(note.startswith(f"compiled on {far.url}") for note in compiled["notes"])
    assert f"{far.url}: ✓ Compile and audit with openvino" in result.err, "what is said there is shown here"
    loaded = artifacts.load(here)
    assert loaded.manifest.recipe.target.options["threads"] == 1, "what decides the work goes there"
    assert {"model.xml", "model.bin"} <= {entry.path for entry in loaded.manifest.files}
    audit, _ = loaded.read_evidence(Audit)
    assert audit is not None
    assert audit.attention.evidence == "compiled"
    assert audit.attention.fused == audit.attention.sites == 4
    assert "torch" not in loaded.manifest.target.model_dump_json()
    assert (here / "graph.onnx").read_bytes() == (bundle / "graph.onnx").read_bytes()


def test_export_is_done_here_and_compiled_there(far: Far, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    exported = answer(on(far, "export", "demo:digits", "--target", "onnxruntime", "--precision", "auto", "-o", out))
    assert (exported["artifact"], exported["stage"], exported["host"]) == (str(out), "artifact", far.url)
    assert any(note.startswith("compiled on") for note in exported["notes"])
    tried = [trial["precision"] for trial in exported["trials"]]
    assert tried[:2] == ["fp32", "int8"], "what this machine is faster at says nothing about that one: it decides"
    assert sum(trial["kept"] for trial in exported["trials"]) == 1
    assert exported["trials"][1]["images"] == 197, "judged there"
    assert artifacts.load(out).read_evidence(Audit)[0] is not None


def test_what_is_there_is_not_sent_again(far: Far, bundle: Path, tmp_path: Path) -> None:
    answer(on(far, "compile", bundle, "-o", tmp_path / "first"))
    again = on(far, "compile", bundle, "-o", tmp_path / "second")
    answer(again)
    assert "Send" not in again.err
    assert listing(tmp_path / "first") == listing(tmp_path / "second")


def test_a_target_that_is_not_there_is_refused_before_the_work(far: Far, tmp_path: Path) -> None:
    result = on(far, "export", "demo:digits", "--target", "tensorrt", "-o", tmp_path / "a")
    assert f'{far.url} cannot compile for tensorrt; it reports: "TensorRT is not installed here"' in result.error
    assert "Export to ONNX" not in result.err
    assert not (tmp_path / "a").exists()


def test_bench_there_has_no_speedup_over_pytorch_and_says_why(
    far: Far, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    here = copy(artifact)
    result = answer(on(far, "bench", here, "--seconds", "0.3", "--threads", "1"))
    [timed] = result["runs"]
    assert (timed["name"], timed["speedup"], timed["threads"]) == ("onnxruntime-fp32", None, 1)
    assert timed["samples"] >= 30
    assert list(result["missing"]) == ["pytorch-fp32"]
    assert not any("pytorch" in doubt for doubt in result["doubts"])
    stored, _ = artifacts.load(here).read_evidence(Bench)
    assert stored == Bench.model_validate(result)


def test_an_artifact_to_time_against_is_sent_too(
    far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    here, other = copy(artifact), tmp_path / "another" / "artifact"
    shutil.copytree(artifact, other)
    result = answer(on(far, "bench", here, "--against", other, "--seconds", "0.3", "--threads", "1"))
    reference, timed = result["runs"]
    assert (reference["role"], timed["role"], result["missing"]) == ("reference", "artifact", {})
    assert reference["manifest"] == artifacts.load(other).digest
    assert timed["speedup"]["ratio"] > 0


def test_the_bench_of_several_comes_back_beside_each(
    far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    here, other = copy(artifact), tmp_path / "another" / "artifact"
    shutil.copytree(artifact, other)
    result = answer(on(far, "bench", here, other, "--against", "onnxruntime-fp32", "--seconds", "0.3"))
    for folder in (here, other):
        stored, reason = artifacts.load(folder).read_evidence(Bench)
        assert stored is not None, reason
        assert {run.name for run in stored.runs} == {run["name"] for run in result["runs"]}
        assert stored.power is not None if folder == here else stored.power is None


def test_what_bench_is_asked_here_it_does_there(far: Far, artifact: Path, copy: Callable[[Path], Path]) -> None:
    flags = ("--seconds", "0.2", "--threads", "1", "--scenario", "multi-stream", "--profile")
    result = answer(on(far, "bench", copy(artifact), *flags))
    assert result["scenario"] == "multi-stream"
    assert result["profiles"][0]["name"] == "onnxruntime-fp32"
    refused = on(far, "bench", artifact, "--images", "photos")
    assert refused.code == 2
    assert "not sent to the host" in " ".join(refused.err.replace("│", " ").split())


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
    (data / "9").rename(tmp_path / "nine")
    (data / "9").symlink_to(tmp_path / "nine")
    (data / "8" / ".more").mkdir()
    (data / "8" / "$(touch trap);'.png").rename(data / "8" / ".more" / "x.png")
    (data / ".thumbnails").mkdir()
    (data / ".thumbnails" / "x.png").write_bytes(b"not sent, not seen")
    here = Path(copy(artifact)).rename(tmp_path / "model; touch trap #")
    there = answer(on(far, "eval", here, "--data", data))
    assert there["n"] == 10
    assert there["data"] == str(data)
    assert there == answer(run("eval", here, "--data", data, "--json"))
    answer(on(far, "compile", here, "-o", tmp_path / "$(touch trap)"))
    left_behind = [*tmp_path.rglob("trap"), *far.folder.rglob("trap"), *Path.home().glob("trap"), *Path().glob("trap")]
    assert left_behind == []


def test_a_name_that_is_not_text_is_refused(far: Far, artifact: Path, copy: Callable[[Path], Path]) -> None:
    here = copy(artifact)
    data = here.parent / "data"
    for label in "0123456789":
        (data / label).mkdir(parents=True)
        Image.new("L", (32, 32)).save(data / label / "x.png")
    (data / "0" / "x.png").rename(data / "0" / os.fsdecode(b"\xff.png"))
    result = on(far, "eval", here, "--data", data)
    assert "cannot be sent: its name is not UTF-8. Rename the file." in result.error


def test_equal_files_are_sent_once_also_after_a_cut(lab: Callable[..., Far], wire: Wire, tmp_path: Path) -> None:
    """The file is larger than ssh's window of 2 MiB: a smaller one could wait there until Python runs there."""
    far = lab(port=wire.port)
    content = np.random.default_rng(2).bytes(12_000_000)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    wire.bytes_per_second = 3_000_000
    cutting = when(lambda: any(part.stat().st_size > 6_000_000 for part in far.cache.glob("partial/*")), wire.cut)
    with Link(hosts.find("lab"), Silent()) as link:
        Device(link, Silent()).send([job_file(tmp_path / name, name) for name in "ab"])
    cutting.join()
    assert wire.cuts == 1
    assert wire.carried < 16_000_000, "12 MB and what was on its way at the cut; 18 MB if it had begun anew"


def test_a_long_folder_for_temporary_files_is_no_obstacle(
    lab: Callable[..., Far], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket has a short path."""
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    lab()
    assert answer(run("hosts", "lab", "--json"))["hosts"][0]["state"] == "ready"


def test_an_npz_goes_there_too(far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 255, (12, 32, 32), dtype=np.uint8), rng.integers(0, 10, 12)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    assert answer(on(far, "eval", copy(artifact), "--data", tmp_path / "data.npz"))["n"] == 12


def test_hosts_shows_what_a_host_is(far: Far, named: Callable[[str], None]) -> None:
    named(f"lab: {far.url}\ngone: ssh://127.0.0.1:1\n")
    listed = {host["name"]: host for host in answer(run("hosts", "--json"))["hosts"]}
    assert (listed["lab"]["state"], listed["gone"]["state"]) == ("ready", "unreachable")
    assert "cannot be reached" in listed["gone"]["why"]
    device = listed["lab"]["device"]
    assert device["doctor"]["targets"]["openvino"]["available"]
    assert not device["doctor"]["export"]["available"]
    assert device["condition"]["memory_free_gib"] > 0
    missing = {name for name, value in device["condition"].items() if value is None}
    assert missing == set(device["condition"]["unknown"]), "what is not known has a reason"
    text = run("hosts", "lab").out
    assert "ready" in text
    assert "onnxruntime, openvino" in text


def test_hosts_clean_frees_the_disk(far: Far, bundle: Path, named: Callable[[str], None], tmp_path: Path) -> None:
    cache = tmp_path / "$(touch trap)'; touch trap; `touch trap` #"
    named(json.dumps({"lab": {"url": far.url, "cache": str(cache)}}))
    answer(run("compile", bundle, "-o", tmp_path / "out", "--host", "lab", "--json"))
    files = [p for p in cache.rglob("*") if p.stat().st_size > 10_000 and p.is_file()]
    assert files
    size = sum(p.stat().st_size for p in cache.glob("blobs/*/*"))
    [cleaned] = answer(run("hosts", "lab", "--clean", "--json"))["hosts"]
    assert cleaned["freed_bytes"] == size
    assert not any(p.exists() for p in files)
    assert not [*tmp_path.rglob("trap"), *far.folder.rglob("trap"), *Path.home().glob("trap"), *Path().glob("trap")]


def test_without_hosts_the_file_is_named(near: Path) -> None:
    result = run("hosts")
    assert result.code == 0
    assert "hosts.yaml" in result.out.replace("\n", "")
    assert json.loads(run("hosts", "--json").out)["hosts"] == []
