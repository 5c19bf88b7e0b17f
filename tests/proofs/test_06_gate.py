"""Point 6: the gate judges what belongs together, and computes every figure from raw data."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from tests.evidence import timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.gate import gate as gating
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Audit, Bench, Eval, Gate, Measured, Provenance
from vitdeploy.frozen import replace
from vitdeploy.measure import samples
from vitdeploy.progress import Silent
from vitdeploy.verdict import Identity
from vitdeploy.verdict._agreement import find_contradictions

LIMITS = {"max_drop_pp": 2.0, "min_speedup": 1.0, "min_fused_pct": 100.0}


@pytest.fixture(scope="module")
def sealed(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Digits in INT8 for ONNX Runtime, evaluated; with a bench whose samples do not vary. It passes `LIMITS`."""
    import shutil

    source = demo(target="onnxruntime", precision="int8")
    made = artifacts.load(Path(shutil.copytree(source.path, tmp_path_factory.mktemp("sealed") / "digits")))
    evaluate(made, None, Silent())
    made.write_evidence(timed_bench(made, 3.0, noise=0.3))
    return made


@pytest.fixture
def artifact(sealed: Artifact, copy: Callable[[Artifact], Artifact]) -> Artifact:
    return copy(sealed)


def judge(artifact: Artifact, **limits: float) -> Gate:
    return gating.gate(artifacts.load(artifact.path), limits or LIMITS, Silent())


def invalid_checks(gate: Gate) -> dict[str, str]:
    return {check.name: check.why for check in gate.checks if check.status == "invalid"}


def rewrite(artifact: Artifact, name: str, change: Callable[[Any], None]) -> None:
    """Change the JSON of a piece of evidence by hand."""
    path = artifact.path / name
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def read(artifact: Artifact, kind: type[Any]) -> Any:
    evidence, reason = artifact.read_evidence(kind)
    assert evidence is not None, reason
    return evidence


def move(evidence: Measured, **changes: str) -> Any:
    """Return evidence that was made elsewhere, or with something else."""
    assert evidence.provenance is not None
    return replace(evidence, provenance=replace(evidence.provenance, **changes))


def test_evidence_that_belongs_together_passes(sealed: Artifact, artifact: Artifact) -> None:
    gate = judge(artifact)
    assert gate.verdict == "pass", gate.checks
    assert [check.name for check in gate.checks] == ["accuracy drop", "speed-up", "attention fused"]


@pytest.mark.parametrize("kind", [Audit, Bench, Eval])
def test_evidence_says_where_when_and_with_what_it_was_made(sealed: Artifact, kind: Any) -> None:
    origin: Provenance = read(sealed, kind).provenance
    assert origin.engine.startswith("onnxruntime ")
    assert origin.versions["onnxruntime"] == origin.engine.split()[1]
    assert (origin.recipe, origin.threads) == (sealed.manifest.recipe_digest, origin.threads or 1)
    assert len(origin.machine) == len(origin.hardware) == 12
    assert origin.date[:2] == "20"


def test_an_evaluation_says_what_was_left_out(artifact: Artifact) -> None:
    evaluation = evaluate(artifact, None, Silent(), limit=40)
    assert (evaluation.n, evaluation.limit, evaluation.available, evaluation.repeated) == (40, 40, 600, 0)
    assert len(evaluation.data_digest) == 64


# Pieces that disagree


def test_two_machines_are_invalid(artifact: Artifact) -> None:
    artifact.write_evidence(move(read(artifact, Eval), hardware="0" * 12))
    why = invalid_checks(judge(artifact))["one machine"]
    assert "eval.json is of 000000000000" in why
    assert "vitdeploy" in why


def test_two_versions_of_an_engine_are_invalid(artifact: Artifact) -> None:
    versions = {**read(artifact, Bench).provenance.versions, "onnxruntime": "1.0.0"}
    artifact.write_evidence(move(read(artifact, Bench), engine="onnxruntime 1.0.0", versions=versions))  # type: ignore[arg-type]
    assert "bench.json is of onnxruntime 1.0.0" in invalid_checks(judge(artifact))["one engine"]


def test_a_recipe_of_another_artifact_is_invalid(artifact: Artifact) -> None:
    artifact.write_evidence(move(read(artifact, Bench), recipe="0" * 64))
    assert "one recipe" in invalid_checks(judge(artifact))


def test_evidence_without_its_origin_is_not_used_beside_others(artifact: Artifact) -> None:
    artifact.write_evidence(replace(read(artifact, Bench), provenance=None))
    checks = invalid_checks(judge(artifact))
    assert checks.keys() == {"speed-up"}
    assert "run vitdeploy bench again" in checks["speed-up"]


def test_the_audit_of_another_cpu_is_read_anew(artifact: Artifact) -> None:
    away = read(artifact, Audit)
    there = replace(away, attention=replace(away.attention, fused=0, kernels={}))
    artifact.write_evidence(move(there, hardware="0" * 12))
    assert judge(artifact).verdict == "pass"
    assert read(artifact, Audit).provenance.hardware == away.provenance.hardware
    artifact.write_evidence(move(there, engine="onnxruntime 0.9"))
    assert inspect(artifact).attention.fused == away.attention.fused


def test_an_audit_that_other_evidence_agrees_with_is_kept(artifact: Artifact) -> None:
    for kind in (Audit, Bench, Eval):
        artifact.write_evidence(move(read(artifact, kind), hardware="0" * 12))
    assert judge(artifact).verdict == "pass"  # all of it is of one machine, which is not this one
    assert read(artifact, Audit).provenance.hardware == "0" * 12


def test_without_the_engine_an_audit_of_elsewhere_is_invalid(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.evidence import Availability

    missing = Availability(available=False, why="onnxruntime is not installed", fix="pip install it")
    artifact.write_evidence(move(read(artifact, Audit), hardware="0" * 12))
    monkeypatch.setattr(targets.kind_of("onnxruntime"), "unavailable", lambda _: missing)
    why = invalid_checks(judge(artifact))["one machine"]
    assert "run vitdeploy inspect" in why


def test_a_device_bound_engine_binds_its_evidence(sealed: Artifact) -> None:
    audit, bench, evaluation = (read(sealed, kind) for kind in (Audit, Bench, Eval))
    here = audit.provenance
    own = Identity(here.recipe, on_cpu=False, engine=here.engine, hardware=here.hardware)
    assert find_contradictions(own, audit, bench, evaluation) == []
    for key, name in (("engine", "one engine"), ("hardware", "one machine")):
        other = Identity(**{**vars(own), key: "0" * 12})
        (check,) = find_contradictions(other, audit, bench, evaluation)
        assert check.name == name
        assert "manifest.json" in check.why


def test_another_power_mode_or_fewer_cores_are_the_same_machine() -> None:
    from vitdeploy.environment import host

    here = host()
    assert here.model_copy(update={"cores": 99, "power_mode": "15W"}).hardware == here.hardware
    assert here.model_copy(update={"cores": 99}).machine != here.machine
    assert here.model_copy(update={"cpu": "another"}).hardware != here.hardware


# The right reference, and the right images


def test_another_reference_than_the_recipes_is_invalid(artifact: Artifact) -> None:
    artifact.write_evidence(timed_bench(artifact, 3.0, against="onnxruntime-fp32 (plain)"))
    why = invalid_checks(judge(artifact))["speed-up"]
    assert "timed against onnxruntime-fp32 (plain), not against pytorch-fp32" in why


def digits(artifact: Artifact, split: Any, count: int) -> tuple[Any, Any]:
    from itertools import islice

    data = open_dataset("demo:digits", artifact.manifest.preprocess, labels=None, need_labels=True, split=split)
    kept = list(islice(data, count))
    return np.stack([s.image.transpose(1, 2, 0) for s in kept]), np.array([s.label for s in kept])


def test_calibration_images_are_counted(artifact: Artifact, tmp_path: Path) -> None:
    calibrated, evaluated = digits(artifact, "calibration", 7), digits(artifact, "evaluation", 200)
    images, labels = (np.concatenate(parts) for parts in zip(calibrated, evaluated, strict=True))
    np.savez(tmp_path / "mixed.npz", images=images, labels=labels)
    evaluate(artifact, str(tmp_path / "mixed.npz"), Silent())
    why = invalid_checks(judge(artifact))["accuracy drop"]
    assert "7 of the 207 evaluated images are calibration images" in why


def test_without_digests_the_same_data_is_still_noticed(sealed: Artifact) -> None:
    from vitdeploy.measure.samples import unpack
    from vitdeploy.verdict import explain_calibrated

    manifest = sealed.manifest
    assert manifest.quantized is not None
    assert manifest.quantized.calibration is not None
    calibration = replace(manifest.quantized.calibration, samples="")
    older = replace(manifest, quantized=replace(manifest.quantized, calibration=calibration))
    outcomes = unpack((sealed.path / "eval.samples.npz").read_bytes())
    assert explain_calibrated(older, "other", outcomes) is None
    assert "is the calibration data" in (explain_calibrated(older, calibration.digest, outcomes) or "")


def test_images_that_are_repeated_count_once(artifact: Artifact, tmp_path: Path) -> None:
    images, labels = digits(artifact, "evaluation", 300)
    for times in (1, 4):
        data = tmp_path / f"{times}.npz"
        np.savez(data, images=np.tile(images, (times, 1, 1, 1)), labels=np.tile(labels, times))
        evaluation = evaluate(artifact, str(data), Silent())
        assert (evaluation.n, evaluation.repeated) == (300, 300 * (times - 1))
        check = next(c for c in judge(artifact, max_drop_pp=0.5).checks if c.name == "accuracy drop")
        assert check.status == "invalid", check  # 300 samples cannot show a drop below 0.89 points, 1,200 could
        assert "300" in check.why or "600" in check.why


def test_samples_that_were_repeated_by_hand_are_refused(artifact: Artifact) -> None:
    outcomes = samples.unpack((artifact.path / samples_file()).read_bytes())
    four = samples.Outcomes(
        digest=np.tile(outcomes.digest, 4),
        reference={k: np.concatenate([v] * 4) for k, v in outcomes.reference.items()},
        deployed={k: np.concatenate([v] * 4) for k, v in outcomes.deployed.items()},
        agreement=np.tile(outcomes.agreement, 4),
        finite=np.tile(outcomes.finite, 4),
    )
    raw = samples.pack(four)
    from vitdeploy import tasks
    from vitdeploy.measure.accuracy import compare_outcomes

    forged = compare_outcomes(tasks.find(artifact.manifest.recipe.task), four)
    stored = read(artifact, Eval)
    names = ("n", "metrics", "agreement", "flips", "p_value", "discordance")
    changes = {name: getattr(forged, name) for name in names} | {"samples": sha256(raw), "available": 2400}
    artifact.write_evidence(stored.model_copy(update=changes), {samples_file(): raw})
    gate = judge(artifact, max_drop_pp=0.3)
    assert gate.verdict == "invalid"
    assert "2,400 samples show only 600 images" in invalid_checks(gate)["eval recomputed"]
    assert "accuracy drop" in invalid_checks(gate)  # the interval is that of 600 samples


def samples_file() -> str:
    from vitdeploy.artifact.layout import SAMPLES

    return SAMPLES


def sha256(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()


# Doubts


def test_valid_beside_doubts_is_invalid(artifact: Artifact) -> None:
    artifact.write_evidence(replace(read(artifact, Bench), doubts=("other processes used 80% of the CPU",)))
    assert "valid beside doubts" in invalid_checks(judge(artifact))["possible values"]


def test_doubts_that_were_removed_are_found_again(artifact: Artifact) -> None:
    def be_busy(facts: Any) -> None:
        for state in facts["conditions"]["1"]:
            state["others"] = 0.8

    rewrite(artifact, "bench.json", be_busy)
    assert "other processes used 80%" in invalid_checks(judge(artifact))["bench recomputed"]


def test_an_audit_with_doubts_is_invalid(artifact: Artifact) -> None:
    artifact.write_evidence(replace(read(artifact, Audit), doubts=("bf16 was asked for, f32 runs",)))
    gate = judge(artifact, max_drop_pp=2.0)
    assert invalid_checks(gate) == {"audit without doubts": "doubtful: bf16 was asked for, f32 runs"}


# Impossible values


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(facts: Any) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value(facts[keys[-1]]) if callable(value) else value

    return change


NAN, INFINITE = float("nan"), float("inf")
IMPOSSIBLE = {
    "more fused than sites": ("audit.json", put("attention", "fused", value=9), "fused is 9 of sites 4"),
    "fewer sites": ("audit.json", put("attention", "sites", value=3), "sites.json has 4"),
    "unknown site": ("audit.json", put("attention", "unfused", value=[{"site": "x", "reason": "y"}]), "the site x"),
    "linears": ("audit.json", put("linears", "int8", value=99), "linears, sites.json has"),
    "precision": ("audit.json", put("precision", value="fp32"), "about precision fp32"),
    "n": ("eval.json", put("n", value=9999), "n is 9999, but its samples give 600"),
    "available": ("eval.json", put("available", value=10), "are not the 10 of the data"),
    "agreement": ("eval.json", put("agreement", value=1.5), "agreement is 1.5, above 1"),
    "metric": ("eval.json", put("metrics", "top1", "deployed", value=120.0), "top1 is not from 0 to 100 %"),
    "interval of the drop": ("eval.json", put("metrics", "top1", "upper95", value=-9.0), "ends before it begins"),
    "interval": ("bench.json", put("runs", 1, "speedup", "ci95", value=[5.0, 6.0]), "does not contain 3"),
    "p50 and ratio": ("bench.json", put("runs", 1, "p50_ms", value=30.0), "p50_ms is 30, but its samples give"),
    "ratio": ("bench.json", put("runs", 1, "speedup", "ratio", value=3.001), "speedup.ratio is 3.001"),
    "NaN": ("bench.json", put("runs", 1, "blocks", 0, 0, value=NAN), "is nan, which is not finite"),
    "infinite": ("bench.json", put("seconds", value=INFINITE), "is inf, which is not finite"),
    "negative": ("bench.json", put("runs", 0, "blocks", 3, 1, value=-1.0), "below 0"),
    "share": ("bench.json", put("runs", 1, "efficiency_pct", value=130.0), "above 100 %"),
    "blocks": ("bench.json", put("runs", 1, "blocks", value=lambda b: b[1:]), "are not pairs"),
    "rounds": ("bench.json", put("runs", 1, "rounds", 0, value=9), "are not pairs"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values_are_named(case: str, artifact: Artifact) -> None:
    name, change, expected = IMPOSSIBLE[case]
    rewrite(artifact, name, change)
    gate = judge(artifact)
    assert gate.verdict == "invalid", gate.checks
    assert expected in " ".join(check.why for check in gate.checks if check.status == "invalid"), gate.checks


# Raw data


def test_a_summary_that_its_samples_do_not_give_is_refused(artifact: Artifact) -> None:
    def improve(facts: Any) -> None:
        facts["metrics"]["top1"].update(deployed=99.9, drop=facts["metrics"]["top1"]["reference"] - 99.9)

    rewrite(artifact, "eval.json", improve)
    gate = judge(artifact)
    assert "metrics.top1.deployed is 99.9, but its samples give" in invalid_checks(gate)["eval recomputed"]


def test_the_verdict_rests_on_the_samples_and_not_on_the_summary(artifact: Artifact) -> None:
    outcomes = samples.unpack((artifact.path / samples_file()).read_bytes())
    wrong = outcomes.deployed["top1"].copy()
    wrong[:60] = 0.0
    forged = samples.Outcomes(
        outcomes.digest, outcomes.reference, {**outcomes.deployed, "top1": wrong}, outcomes.agreement, outcomes.finite
    )
    raw = samples.pack(forged)
    artifact.write_evidence(replace(read(artifact, Eval), samples=sha256(raw)), {samples_file(): raw})
    gate = judge(artifact)
    assert gate.verdict == "fail"  # the summary still says that nothing was lost
    assert next(c for c in gate.checks if c.name == "accuracy drop").status == "fail"


@pytest.mark.parametrize("how", ["removed", "another", "damaged", "pickled", "declared too large"])
def test_samples_that_are_not_those_of_the_evaluation_are_invalid(how: str, artifact: Artifact) -> None:
    path = artifact.path / samples_file()
    raw = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "another":
        path.write_bytes(raw[:-1] + b"x")
    else:
        bad = {"damaged": raw[:100], "pickled": pickled(), "declared too large": bomb()}[how]
        artifact.write_evidence(replace(read(artifact, Eval), samples=sha256(bad)), {samples_file(): bad})
    gate = judge(artifact)
    assert gate.verdict == "invalid"
    assert any("eval" in check.why or "samples" in check.why for check in gate.checks if check.status == "invalid")


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, digest=np.array([object()], dtype=object))
    return buffer.getvalue()


def bomb() -> bytes:
    """An array that its header calls larger than its file."""
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("digest.npy", header.getvalue())
    return buffer.getvalue()


def test_every_task_is_computed_again_from_its_samples() -> None:
    from tests.proofs.outcomes import OUTCOMES
    from vitdeploy import tasks
    from vitdeploy.measure.accuracy import compare_outcomes, pair_outcomes
    from vitdeploy.recipe import TaskSpec

    for name, make in OUTCOMES.items():
        task = tasks.find(TaskSpec(kind=name))
        paired = pair_outcomes(task, make())
        before = compare_outcomes(task, paired)
        after = compare_outcomes(task, samples.unpack(samples.pack(paired)))
        assert before == after, name
        assert before.metrics, name
        assert samples.pack(paired) == samples.pack(paired)


def test_older_evidence_is_judged_by_the_samples_that_it_has(tmp_path: Path) -> None:
    import shutil

    source = Path(__file__).parents[1] / "fixtures" / "schema1" / "onnxruntime-int8"
    older = artifacts.load(Path(shutil.copytree(source, tmp_path / "older")))
    checks = invalid_checks(judge(older, min_speedup=0.1, max_drop_pp=90.0))
    assert checks.keys() == {"speed-up", "accuracy drop"}
    assert "doubtful: the speed-up of onnxruntime-int8 varies by 17%" in checks["speed-up"]  # as it was stored
    assert "run vitdeploy eval again" in checks["accuracy drop"]
    rewrite(older, "bench.json", put("runs", 1, "speedup", "ratio", value=lambda ratio: 1.01 * ratio))
    assert "bench recomputed" in invalid_checks(judge(older, min_speedup=0.1))
    with pytest.raises(MeasureError, match="bench recomputed"):
        gating.gate(older, {}, Silent(), save_baseline=tmp_path / "baseline.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("fused", value=9), "fused is 9 of sites 4"),
        (put("speedup", "ratio", value=9.0), "does not contain 9"),
        (put("peak_bytes", value=-1), "peak_bytes is -1"),
        (put("speedup", "ratio", value=NAN), "not finite"),
    ],
)
def test_an_impossible_baseline_is_invalid(
    change: Callable[[Any], None], expected: str, artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.json"
    gating.gate(artifact, {"min_fused_pct": 100.0}, Silent(), save_baseline=path)
    assert gating.gate(artifact, {"max_slowdown_pct": 5.0}, Silent(), baseline=path).verdict == "pass"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    gate = gating.gate(artifact, {"max_slowdown_pct": 5.0}, Silent(), baseline=path)
    assert gate.verdict == "invalid"
    assert expected in invalid_checks(gate)["baseline"]


# One digest, and the report


def test_one_digest_covers_manifest_evidence_and_raw_data(artifact: Artifact, tmp_path: Path) -> None:
    page, xml = tmp_path / "gate.md", tmp_path / "gate.xml"
    gate = gating.gate(artifact, LIMITS, Silent(), markdown_file=page, junit_file=xml)
    assert len(gate.digest) == 64
    assert judge(artifact).digest == gate.digest
    assert gate.digest in page.read_text()
    assert [p.get("value") for p in ET.parse(xml).iter("property")] == [gate.digest]
    assert json.loads((artifact.path / "gate.json").read_text())["digest"] == gate.digest
    assert gate.digest in "".join(run("gate", artifact.path, "--min-fused", "100").out.split())
    raw = (artifact.path / samples_file()).read_bytes()
    for name in ("audit.json", "bench.json", "eval.json", samples_file()):
        before = (artifact.path / name).read_bytes()
        (artifact.path / name).write_bytes(before + b"\n")
        assert artifacts.load(artifact.path).evidence_digest() != gate.digest, name
        (artifact.path / name).write_bytes(before)
    assert (artifact.path / samples_file()).read_bytes() == raw


def test_the_report_shows_the_verdict_that_follows_from_the_evidence(artifact: Artifact, tmp_path: Path) -> None:
    def report() -> str:
        return str(
            answer(run("report", artifact.path, "--images", "0", "-o", tmp_path / "r.html", "--json"))["verdict"]
        )

    assert judge(artifact).verdict == "pass"
    assert report() == "pass"
    rewrite(artifact, "audit.json", put("doubts", value=["forced"]))
    assert report() == "invalid"
    assert "forced" in (tmp_path / "r.html").read_text()
    assert judge(artifact).verdict == "invalid"

    def forge(facts: Any) -> None:
        facts["verdict"] = "pass"
        facts["checks"] = [check for check in facts["checks"] if check["status"] == "pass"]

    rewrite(artifact, "gate.json", forge)
    assert report() == "invalid"
