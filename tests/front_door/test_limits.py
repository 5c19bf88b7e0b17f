"""Limits that people have: milliseconds, an opponent of their own, a threshold, a baseline with other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tests.cli.conftest import Ended, run
from tests.evidence import timed_bench
from tests.front_door.colours import COLOURS, SIZE, save_images, save_model
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.end_to_end import STAGES, summarize
from vitdeploy.evidence import Bench, Eval, Power, RailEnergy, Release
from vitdeploy.frozen import replace
from vitdeploy.measure import sustained as steady_load

NAMES = tuple(f"colour {letter}" for letter in "abcdefgh")
PLAIN = ("--target", "onnxruntime", "--mean", "0,0,0", "--std", "1,1,1", "--resize", "exact", "--quiet")


def export(model: Path, out: Path, labels: tuple[str, ...] = NAMES) -> Path:
    """Export the classifier of colours with these labels."""
    file = out.with_suffix(".txt")
    file.write_text("\n".join(labels))
    ended = run("export", model, *PLAIN, "--labels", file, "-o", out)
    assert ended.code == 0, ended.err
    return out


def change(path: Path, out: Path, alter: Callable[[Any, Any], None]) -> Path:
    """Save the model with other weights (3, 8) and bias (8,): another training of it."""
    model = onnx.load(path)
    arrays = {constant.name: numpy_helper.to_array(constant).copy() for constant in model.graph.initializer}
    alter(arrays["weight"], arrays["bias"])
    for constant in model.graph.initializer:
        constant.CopyFrom(numpy_helper.from_array(arrays[constant.name], constant.name))
    onnx.save(model, out)
    return out


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classifier, its artifact and images that are hard enough for it to err."""
    root = tmp_path_factory.mktemp("limits")
    save_model(root / "old.onnx")
    export(root / "old.onnx", root / "old")
    generator = np.random.default_rng(1)
    for number, name in enumerate(NAMES):
        (root / "data" / name).mkdir(parents=True)
        for image in range(40):
            noisy = COLOURS[number] + generator.normal(0, 0.05, (SIZE, SIZE, 3)) + generator.normal(0, 0.17, 3)
            pixels = (255 * noisy.clip(0, 1)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{image:03}.png")
    return root


def checks(ended: Ended) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(ended.out)["checks"]}


# --- milliseconds


@pytest.fixture
def timed(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> Artifact:
    """An artifact with a bench of its own only, as a device without PyTorch measures it."""
    artifact = copy(demo(target="onnxruntime"))
    bench = timed_bench(artifact, 3.0, noise=0.3)
    own = [replace(run, speedup=None) for run in bench.runs if run.role == "artifact"]
    artifact.write_evidence(
        replace(bench, runs=tuple(own), pairs=(), missing={"pytorch-fp32": "torch is not installed"})
    )
    return artifact


def gate(artifact: Artifact, *words: object) -> Ended:
    return run("gate", artifact.path, *words, "--json", "--quiet")


def test_a_latency_is_judged_by_its_interval_and_needs_no_pytorch(timed: Artifact) -> None:
    bench, _ = timed.read_evidence(Bench)
    assert bench is not None
    own = bench.own
    assert own is not None
    rare = gate(timed, "--max-latency", "1000", "--latency-percentile", "99")
    assert "p99 of 72 samples is their maximum" in checks(rare)["latency p99 (ms)"]["why"]
    for percent in ("50", "90"):
        low, high = getattr(own, f"p{percent}_ci95")
        words = ("--latency-percentile", percent)
        below, within, above = (
            gate(timed, "--max-latency", limit, *words) for limit in (0.99 * low, (low + high) / 2, 1.01 * high)
        )
        assert (below.code, above.code) == (1, 0)
        assert within.code == (3 if low < high else 0)
        assert list(checks(above)) == [f"latency p{percent} (ms)"]
    both = gate(timed, "--max-latency", "1000", "--min-speedup", "1.1")
    assert both.code == 3
    assert checks(both)["latency p50 (ms)"]["status"] == "pass"
    assert "pytorch-fp32 is not available there: torch is not installed" in checks(both)["speed-up"]["why"]


def test_a_bench_without_a_reference_is_valid(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    """`python:` code is not run again without asking, so the reference is missing as on a device."""
    artifact = copy(demo(target="onnxruntime"))
    ended = run("bench", artifact.path, "--against", "onnxruntime-fp32", "--seconds", "0.3", "--json", "--quiet")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["missing"] == {}


def test_end_to_end_is_measured_stored_and_judged(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    artifact = copy(demo(target="onnxruntime"))
    words = ("--against", "onnxruntime-fp32", "--seconds", "0.3", "--end-to-end")
    ended = run("bench", artifact.path, *words, "--json", "--quiet")
    through = json.loads(ended.out)["end_to_end"]
    assert [stage["name"] for stage in through["stages"]] == list(STAGES)
    assert sum(stage["share_pct"] for stage in through["stages"]) == pytest.approx(100)
    assert "made-up JPEG of 1280x720" in through["images"]
    assert through["p50_ms"] > max(stage["median_ms"] for stage in through["stages"]) > 0
    bench, _ = artifact.read_evidence(Bench)
    assert bench is not None
    quiet = replace(timed_bench(artifact, 3.0, noise=0.3), end_to_end=bench.end_to_end)
    artifact.write_evidence(quiet)
    passed = gate(artifact, "--max-end-to-end", "100000")
    assert passed.code == 0, passed.out
    assert gate(artifact, "--max-end-to-end", "0.001").code == 1
    assert bench.end_to_end is not None
    artifact.write_evidence(replace(quiet, end_to_end=replace(bench.end_to_end, p50_ms=0.01)))
    forged = gate(artifact, "--max-end-to-end", "0.1")
    assert forged.code != 0
    assert "end_to_end.p50_ms" in checks(forged)["bench recomputed"]["why"]
    artifact.write_evidence(replace(quiet, end_to_end=None))
    assert (
        "run vitdeploy bench --end-to-end"
        in checks(gate(artifact, "--max-end-to-end", "9"))["end to end p50 (ms)"]["why"]
    )


def test_energy_is_judged_on_the_command_line_and_in_a_recipe(timed: Artifact) -> None:
    bench, _ = timed.read_evidence(Bench)
    assert bench is not None
    windows = (48.0, 49.0, 49.5, 50.0, 50.0, 50.5, 51.0, 52.0, 90.0)
    rail = RailEnergy(
        name="VDD_IN", watts=10, idle_watts=None, millijoules=50, windows=windows, millijoules_ci95=(49, 52)
    )
    energy = Power(source="hwmon", rails=(rail,), total="VDD_IN", seconds=5.0, inferences=1000)
    timed.write_evidence(replace(bench, power=energy))
    codes = {limit: gate(timed, "--max-energy", limit).code for limit in (60, 50, 40)}
    assert codes == {60: 0, 50: 3, 40: 1}
    assert gate(timed, "--max-energy", "60", "--energy-rail", "VDD_SOC").code == 3
    timed.write_evidence(replace(bench, power=replace(energy, rails=(replace(rail, millijoules=5.0),))))
    forged = gate(timed, "--max-energy", "60")
    assert forged.code == 3
    assert "power.rails.0.millijoules is 5" in checks(forged)["bench recomputed"]["why"]
    wrong = gate(timed, "--max-energy", "0")
    assert (wrong.code, "0 is not above 0" in wrong.err) == (2, True)


def test_a_sustained_load_is_measured_stored_and_judged(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady_load, "BLOCK_S", 0.02)
    monkeypatch.setattr(steady_load, "MAX_DRIFT", 10.0)  # of a machine that other tests share
    artifact = copy(demo(target="onnxruntime"))
    words = ("bench", artifact.path, "--against", "onnxruntime-fp32", "--seconds", "0.3", "--sustained", "3")
    ended = run(*words, "--json", "--quiet")
    sustained = json.loads(ended.out)["sustained"]
    assert len(sustained["blocks"]) == steady_load.WINDOW
    assert sustained["steady"]
    bench, _ = artifact.read_evidence(Bench)
    assert bench is not None
    assert bench.sustained is not None
    calm = timed_bench(artifact, 3.0, noise=0.3)
    artifact.write_evidence(replace(calm, sustained=replace(bench.sustained, doubts=("made up",))))
    forged = checks(gate(artifact, "--max-latency", "100000"))
    assert "sustained.doubts" in forged["bench recomputed"]["why"]
    page = artifact.path.parent / "report.html"
    assert run("report", artifact.path, "-o", page).code == 0
    assert "sustained load" in page.read_text(encoding="utf-8")
    assert run(*words[:-1], "1").code == 2


def test_stages_are_shares_of_all() -> None:
    through = summarize("x", [(4.0,) * 5] * 10, [[1.0, 0.5, 2.0, 0.5]] * 50)
    assert [stage.share_pct for stage in through.stages] == [25.0, 12.5, 50.0, 12.5]
    assert (through.p50_ms, through.p50_ci95, through.samples) == (4.0, (4.0, 4.0), 50)


def test_images_for_end_to_end_that_are_none(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    ended = run("bench", demo(target="onnxruntime").path, "--images", tmp_path, "--evidence", tmp_path / "e")
    assert (ended.code, "has no images in it" in ended.error) == (1, True)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    ended = run(
        "bench", demo(target="onnxruntime").path, "--images", tmp_path / "clip.mp4", "--evidence", tmp_path / "e"
    )
    assert (ended.code, "ffmpeg" in ended.error) == (1, True)


# --- another artifact as the opponent


def test_an_artifact_of_another_model_is_no_opponent(colours: Path, tmp_path: Path) -> None:
    other = export(
        change(colours / "old.onnx", tmp_path / "other.onnx", lambda w, b: w.__imul__(1.1)), tmp_path / "other"
    )
    quick = ("--seconds", "0.3", "--quiet")
    for words in (("bench", colours / "old", other), ("bench", colours / "old", "--against", other)):
        ended = run(*words, *quick)
        assert ended.code == 1
        assert "is of another model, or of other weights" in ended.error
        assert "--any-model" in ended.error
    ended = run("gate", colours / "old", "--min-speedup", "1", "--against", other)
    assert (ended.code, "is an artifact of another model" in ended.error) == (1, True)
    ended = run("bench", colours / "old", other, "--any-model", "--against", "onnxruntime-fp32", "--json", *quick)
    assert ended.code == 0, ended.err
    for path in (colours / "old", other):
        artifact = artifacts.load(path)
        bench, reason = artifact.read_evidence(Bench)
        assert bench is not None, reason
        assert bench.own is not None
        assert bench.own.manifest == artifact.digest
        assert len(bench.pairs) == 1
        ended = run("gate", path, "--max-latency", "10000", "--json", "--quiet")
        assert ended.code in (0, 3)  # a busy machine may put the timing in doubt
        assert set(checks(ended)) == {"latency p50 (ms)"}


def test_the_gate_takes_a_bench_against_another_artifact(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    artifact, opponent = copy(demo(target="onnxruntime", precision="int8")), demo(target="onnxruntime")
    bench = timed_bench(artifact, 3.0, noise=0.3)
    runs = [
        replace(run, manifest=opponent.digest, name="onnxruntime-fp32 (a)") if run.role == "reference" else run
        for run in bench.runs
    ]
    artifact.write_evidence(replace(bench, runs=tuple(runs)))
    limit = ("--min-speedup", "1.5")
    assert "not against pytorch-fp32" in checks(gate(artifact, *limit))["speed-up"]["why"]
    assert gate(artifact, *limit, "--against", opponent.path).code == 0
    third = copy(opponent, "third")
    (third.path / "manifest.json").write_text((third.path / "manifest.json").read_text() + " ")
    assert gate(artifact, *limit, "--against", third.path).code == 3  # the same model, but not what was timed


# --- a threshold


def test_an_operating_point_is_reported_and_judged(colours: Path, tmp_path: Path) -> None:
    evidence = ("--evidence", tmp_path, "--quiet")
    ended = run("eval", colours / "old", "--data", colours / "data", "--at-threshold", "0.6", *evidence, "--json")
    point = json.loads(ended.out)["operating_point"]
    assert (point["threshold"], point["score"]["drop"], point["count"]["ratio"]) == (0.6, 0.0, 1.0)
    assert 0 < point["reference"] == point["deployed"] < 320
    assert 50 < point["score"]["reference"] < 100
    ended = run("gate", colours / "old", "--at-threshold", "0.6", "--max-drop", "5", *evidence, "--json")
    assert ended.code == 0, ended.out
    assert set(checks(ended)) == {"accuracy drop", "F1 at 0.6", "count at 0.6 (%)"}
    ended = run("gate", colours / "old", "--max-count-change", "5", *evidence, "--json")
    assert (ended.code, "Give --at-threshold" in ended.out) == (3, True)


@pytest.mark.parametrize("command", ["eval", "gate"])
@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "x"])
def test_thresholds_outside_of_0_to_1(colours: Path, command: str, value: str) -> None:
    assert run(command, colours / "old", "--at-threshold", value).code == 2


# --- release against release


def compare(colours: Path, new: Path, tmp_path: Path, *words: object) -> Ended:
    evidence = ("--evidence", tmp_path / "evidence", "--quiet", "--json")
    return run("gate", new, "--baseline", colours / "old", "--data", colours / "data", *evidence, *words)


def test_an_equal_model_passes_and_its_figures_are_stored(colours: Path, tmp_path: Path) -> None:
    new = export(change(colours / "old.onnx", tmp_path / "n.onnx", lambda w, b: w.__imul__(1.0001)), tmp_path / "new")
    ended = compare(colours, new, tmp_path, "--max-class-regression", "15")
    assert ended.code == 0, ended.out
    found = checks(ended)
    assert set(found) == {"regression", "worst class regression", "size as before"}
    release = Release.model_validate_json((tmp_path / "evidence" / "release.json").read_text())
    assert (release.n, release.lost, release.gained, len(release.groups)) == (320, 0, 0, 8)
    assert release.baseline == artifacts.load(colours / "old").digest
    assert json.loads(ended.out)["release"]["samples"] == release.samples
    memory = checks(compare(colours, new, tmp_path, "--max-growth", "50"))["memory as before"]
    assert (memory["status"], "--max-slowdown" in memory["why"]) == ("invalid", True)


def test_a_model_that_loses_one_class_fails_on_it_and_passes_over_all(colours: Path, tmp_path: Path) -> None:
    def forget_one_class(_weight: Any, bias: Any) -> None:
        bias[3] -= 2.2

    new = export(change(colours / "old.onnx", tmp_path / "n.onnx", forget_one_class), tmp_path / "new")
    junit = tmp_path / "junit.xml"
    ended = compare(colours, new, tmp_path, "--max-regression", "10", "--max-class-regression", "10", "--junit", junit)
    found = checks(ended)
    assert ended.code == 1
    assert found["regression"]["status"] == "pass"
    worst = found["worst class regression"]
    assert worst["status"] == "fail"
    assert "'colour d' from" in worst["why"]
    assert worst["observed"] > 20
    assert any("colour d/" in line and "'colour d' became" in line for line in found["regression"]["details"])
    text = "".join(ET.parse(junit).getroot().itertext())
    assert "colour d/" in text
    assert "colour d: " in text
    report = tmp_path / "page.html"
    ended = run("report", new, "--evidence", tmp_path / "evidence", "-o", report, "--images", "0")
    assert ended.code == 0, ended.err
    assert "colour d/" in report.read_text()


def test_labels_in_another_order_are_matched_by_name(colours: Path, tmp_path: Path) -> None:
    order = np.array([3, 0, 6, 1, 7, 2, 4, 5])

    def reorder(weight: Any, bias: Any) -> None:
        weight[:], bias[:] = weight[:, order].copy(), bias[order].copy()

    model = change(colours / "old.onnx", tmp_path / "n.onnx", reorder)
    new = export(model, tmp_path / "new", tuple(NAMES[i].upper() for i in order))
    ended = compare(colours, new, tmp_path)
    assert ended.code == 0, ended.out
    assert json.loads(ended.out)["release"]["lost"] == 0

    wrong = export(model, tmp_path / "wrong")  # the outputs have the new order, the labels the old one
    ended = compare(colours, wrong, tmp_path)
    assert ended.code == 3
    assert "this artifact: the labels seem to be in another order" in checks(ended)["regression"]["why"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((*NAMES[:-1], "colour z"), "has the class 'colour h', which"),
        (("colour a, colour b", "colour x", *NAMES[2:]), "has the classes 'colour a' and 'colour b', which are both"),
        ((*(f"LABEL_{i}" for i in range(8)),), "has no labels, and the other artifact has"),
    ],
)
def test_other_labels_are_refused(colours: Path, tmp_path: Path, labels: tuple[str, ...], message: str) -> None:
    model = change(colours / "old.onnx", tmp_path / "n.onnx", lambda w, b: w.__imul__(1.01))
    new = export(model, tmp_path / "new", labels)
    data = save_images(tmp_path / "data", [str(i) for i in range(8)], count=2)
    ended = run("gate", new, "--baseline", colours / "old", "--data", data, "--evidence", tmp_path / "e", "--quiet")
    assert (ended.code, message in ended.error) == (1, True)


def test_groups_of_the_users_own(colours: Path, tmp_path: Path) -> None:
    def forget_one_class(_weight: Any, bias: Any) -> None:
        bias[3] -= 2.2

    new = export(change(colours / "old.onnx", tmp_path / "n.onnx", forget_one_class), tmp_path / "new")
    groups = tmp_path / "groups.yaml"
    groups.write_text("first images: ['*/00?.png']\ndark: [colour a, colour b]\nlost: [colour d]\n")
    ended = compare(colours, new, tmp_path, "--max-regression", "10", "--groups", groups)
    worst = checks(ended)["worst group regression"]
    assert (ended.code, worst["status"], "'lost' from" in worst["why"]) == (1, "fail", True)
    for text, message in (
        ("a: [night/*]", "no sample is in the group 'a'"),
        ("[]", "not a map"),
        ("a: [", "not readable"),
    ):
        groups.write_text(text)
        ended = compare(colours, new, tmp_path, "--groups", groups)
        assert (ended.code, message in json.loads(ended.out)["error"]["message"]) == (1, True)


def test_a_release_without_its_samples_is_not_believed(colours: Path, tmp_path: Path) -> None:
    new = export(change(colours / "old.onnx", tmp_path / "n.onnx", lambda w, b: w.__imul__(1.0001)), tmp_path / "new")
    assert compare(colours, new, tmp_path).code == 0
    (tmp_path / "evidence" / "release.samples.npz").write_bytes(b"x")
    ended = run(
        "report", new, "--evidence", tmp_path / "evidence", "-o", tmp_path / "page.html", "--images", "0", "--json"
    )
    assert json.loads(ended.out)["verdict"] in ("invalid", "out of date")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "x"], "--data needs the folder of an earlier artifact"),
        (["--groups", "x"], "--groups needs the data"),
    ],
)
def test_what_a_comparison_needs(colours: Path, words: list[str], message: str) -> None:
    ended = run("gate", colours / "old", *words)
    assert (ended.code, message in ended.error) == (1, True)


def test_a_limit_of_regression_without_data_is_invalid(colours: Path, tmp_path: Path) -> None:
    ended = run("gate", colours / "old", "--max-regression", "1", "--evidence", tmp_path, "--json", "--quiet")
    assert (ended.code, "give --baseline DIR and --data DATA" in ended.out) == (3, True)


# --- what flipped


def test_flips_and_classes_are_in_the_evidence(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    artifact = copy(demo(target="onnxruntime", precision="int8-dynamic"))
    ended = run("eval", artifact.path, "--quiet", "--json")
    evaluation = Eval.model_validate_json(ended.out)
    assert len(evaluation.flipped) == min(evaluation.flips, 24)
    assert sum(score.n for score in evaluation.classes) == evaluation.n
    assert [score.name for score in evaluation.classes] == list("0123456789")
    with np.load(artifact.path / "eval.flips.npz") as pictures:
        assert len(pictures.files) == len(evaluation.flipped)
        assert all(max(pictures[name].shape[:2]) <= 96 for name in pictures.files)


def test_images_that_gave_the_ranges_do_not_judge_a_release(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    from importlib import resources

    old, new = demo(target="onnxruntime"), copy(demo(target="onnxruntime", precision="int8"))
    with np.load(str(resources.files("vitdeploy") / "assets" / "digits.npz")) as digits:
        chosen = digits["calibration"][:100]
        np.savez(tmp_path / "seen.npz", images=digits["images"][chosen], labels=digits["labels"][chosen])
    words = ("--baseline", old.path, "--data", tmp_path / "seen.npz", "--json", "--quiet")
    ended = run("gate", new.path, *words)
    assert ended.code == 3, ended.out
    assert "evaluated images are calibration images" in checks(ended)["regression"]["why"]
