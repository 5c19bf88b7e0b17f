"""What others build on: commands, flags, JSON keys and exit codes (names stay, more may be added)."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended, listing, run, spawn

FLAGS = {
    "export": ("--target --device --precision --weights --calibration --batch --image-size --recipe --output -o --force"
               " --verify --host"),
    "compile": "--output -o --force --host",
    "inspect": "--sensitivity --calibration",
    "debug": "--data --images",
    "bench": "--seconds --threads --against --scenario --batch --streams --profile --host",
    "eval": "--data --limit --reference --save-reference --host",
    "gate": ("--baseline --save-baseline --max-drop --min-speedup --max-slowdown --min-fused --max-size --max-memory"
             " --max-growth --junit --markdown"),
    "predict": "",
    "run": "--weights --calibration --data --output -o --force",
    "sweep": "--output -o --dry-run --budget --pick --to --retry",
    "report": "--output -o --data --images",
    "doctor": "",
    "hosts": "--clean",
    "recipes": "",
}  # fmt: skip
EXPORTED = {"artifact", "stage", "seconds", "passes", "parity", "graph_parity", "weights", "exporter"}


def answer(found: Ended, code: int = 0) -> Any:
    """The JSON object that is all of stdout."""
    assert found.code == code, found.err
    return json.loads(found.out)


def test_the_commands_are_these() -> None:
    text = run("--help").out
    assert set(FLAGS) <= set(re.findall(r"^│ (\w+) ", text, re.MULTILINE))
    assert all(f"{code} " in text for code in (0, 1, 2, 3, 130))


@pytest.mark.parametrize("command", FLAGS)
def test_help_says_what_it_does_and_explains_every_flag(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = run(command, "--help")
    assert found.code == 0
    for flag in (*FLAGS[command].split(), "--json", "--quiet", "--traceback"):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", found.out), flag
    prose = [line for line in found.out.splitlines() if line.strip() and "Usage:" not in line]
    assert len(prose[0].split()) > 3, "what the command does stands first"


def test_export(onnxruntime_fp32: Path, tmp_path: Path) -> None:
    found = run("export", "demo:digits", "--target", "tensorrt", "-o", tmp_path / "bundle", "--json", "--quiet")
    exported = answer(found)
    assert exported.keys() >= EXPORTED
    assert (exported["artifact"], exported["stage"]) == (str(tmp_path / "bundle"), "bundle")
    assert "vitdeploy compile" in " ".join(exported["notes"])
    assert all(p.keys() >= {"name", "fired", "refused"} for p in exported["passes"])
    inspected = answer(run("inspect", tmp_path / "bundle", "--json"))
    expected = ("rehearsed", 4) if find_spec("tensorrt_rtx") else ("graph", 0)
    assert (inspected["attention"]["evidence"], inspected["attention"]["fused"]) == expected
    gated = answer(run("gate", tmp_path / "bundle", "--min-fused", "100", "--json"), code=3)
    assert "bundle" in gated["checks"][0]["why"]


def test_compile_again_in_place_leaves_the_same_model(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    before = listing(artifact)
    compiled = answer(run("compile", artifact, "--json"))
    assert compiled.keys() >= EXPORTED
    assert compiled["stage"] == "artifact"
    assert listing(artifact) == before
    assert (artifact / "graph.onnx").read_bytes() == (onnxruntime_fp32 / "graph.onnx").read_bytes()


def test_inspect_sensitivity(openvino_int8: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(openvino_int8)
    found = answer(run("inspect", artifact, "--sensitivity", "--json", "--quiet"))["sensitivity"]
    assert found.keys() >= {"precision", "layers", "images", "calibration"}
    keys = {"name", "role", "block", "sqnr_db", "output_sqnr_db", "agreement", "macs"}
    assert all(layer.keys() >= keys for layer in found["layers"])
    assert (found["precision"], len(found["layers"])) == ("int8", 17)
    assert json.loads((artifact / "sensitivity.json").read_text()) == found
    text = run("inspect", artifact, "--sensitivity", "--quiet").out
    assert "each linear alone in int8" in text
    assert "█" in text
    assert answer(run("inspect", artifact, "--json"))["sensitivity"] is None


def test_sensitivity_wants_images(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    assert run("inspect", onnxruntime_fp32, "--calibration", "demo:digits").code == 2
    ended = run("inspect", copy(onnxruntime_fp32), "--sensitivity", "--calibration", "nowhere", "--quiet")
    assert ended.code == 1
    assert "nowhere" in ended.error


def test_debug(openvino_int8: Path) -> None:
    found = answer(run("debug", openvino_int8, "--data", "demo:digits", "--images", "2", "--json", "--quiet"))
    assert found.keys() >= {"block", "layer", "why", "rule", "blocks", "layers", "images", "data", "evidence", "how"}
    row = {"name", "tensor", "kind", "sqnr_db", "adds_db", "cosine", "max_abs", "nonfinite", "note"}
    assert all(entry.keys() >= row for entry in (*found["blocks"], *found["layers"]))
    assert (found["block"], found["layer"], found["images"], found["evidence"]) == (None, None, 2, "compiled")
    text = run("debug", openvino_int8, "--quiet").out
    assert "they do not diverge" in text
    assert "blocks.3" in text


def test_inspect(openvino_int8: Path) -> None:
    found = answer(run("inspect", openvino_int8, "--json"))
    assert found.keys() >= {"target", "precision", "attention", "layernorm", "linears", "files", "structure"}
    assert found["attention"].keys() >= {"sites", "fused", "evidence", "unfused"}
    assert found["layernorm"].keys() >= {"sites", "fused"}
    assert found["linears"].keys() >= {"int8", "fp8", "fp16", "bf16", "fp32"}
    assert all(file.keys() >= {"path", "bytes", "sha256"} for file in found["files"])
    assert (found["target"], found["precision"], found["attention"]["evidence"]) == ("openvino", "int8", "compiled")
    assert found["attention"]["fused"] == found["attention"]["sites"] == 4
    assert found["linears"]["int8"] > 0
    structure = found["structure"]
    assert structure.keys() >= {"blocks", "linears", "outside", "layernorms"}
    assert structure["linears"] == {"patch": 1, "qkv": 4, "proj": 4, "fc1": 4, "fc2": 4, "head": 1}
    blocks, last = structure["blocks"]  # of the last one's tokens only the class token is read
    each = {"heads": 3, "head_size": 32, "keys": 65}
    assert {"first": 0, "last": 2, "kind": "global", "queries": 65, **each}.items() <= blocks.items()
    assert {"first": 3, "last": 3, "kind": "fewer queries", "queries": 1, **each}.items() <= last.items()
    sizes = {linear["role"]: (linear["count"], linear["k"], linear["n"]) for linear in blocks["linears"]}
    assert sizes == {"qkv": (1, 96, 288), "proj": (1, 96, 96), "fc1": (1, 96, 384), "fc2": (1, 384, 96)}
    text = run("inspect", openvino_int8).out
    assert "4 attention blocks" in text
    assert "96×288" in text


def test_evidence_is_made_stored_and_judged(
    onnxruntime_fp32: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    artifact = copy(onnxruntime_fp32)
    timed = answer(run("bench", artifact, "--seconds", "0.3", "--json"))
    assert timed.keys() >= {"valid", "doubts", "runs"}
    assert timed["runs"][0]["name"] == "pytorch-fp32"
    keys = {"name", "batch", "samples", "p50_ms", "p90_ms", "p99_ms", "throughput_ips", "speedup"}
    assert all(r.keys() >= keys for r in timed["runs"])
    assert timed["runs"][0]["speedup"] is None
    low, high = timed["runs"][1]["speedup"]["ci95"]
    assert low <= timed["runs"][1]["speedup"]["ratio"] <= high

    compared = answer(run("eval", artifact, "--limit", "40", "--json"))
    assert compared.keys() >= {"task", "n", "metrics", "agreement", "flips", "p_value"}
    top1 = compared["metrics"]["top1"]
    assert top1.keys() >= {"reference", "deployed", "drop", "unit", "ci95", "upper95"}
    assert (compared["n"], compared["agreement"], top1["drop"], top1["unit"]) == (40, 1.0, 0.0, "points")

    for name, found in (("bench", timed), ("eval", compared)):
        assert json.loads((artifact / f"{name}.json").read_text()) == found

    junit, markdown, saved = tmp_path / "gate.xml", tmp_path / "gate.md", tmp_path / "baseline.json"
    gated = answer(
        run(
            "gate",
            artifact,
            "--max-drop",
            "60",
            "--min-fused",
            "100",
            "--junit",
            junit,
            "--markdown",
            markdown,
            "--json",
        )
    )
    assert gated.keys() >= {"verdict", "checks"}
    assert all(c.keys() >= {"name", "observed", "limit", "status", "why"} for c in gated["checks"])
    assert gated["verdict"] == "pass"
    assert junit.read_text().count("<testcase") == 2
    assert "attention fused" in markdown.read_text()
    assert json.loads((artifact / "gate.json").read_text()) == gated

    failed = answer(
        run("gate", artifact, "--min-fused", "100", "--min-speedup", "1e6", "--json"), code=1 if timed["valid"] else 3
    )
    assert failed["verdict"] == ("fail" if timed["valid"] else "invalid")
    if timed["valid"]:
        assert run("gate", artifact, "--min-fused", "100", "--save-baseline", saved).code == 0
        assert json.loads(saved.read_text())["fused"] == 4


def test_a_fused_share_that_is_missed_fails(openvino_int8: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(openvino_int8)
    audit = json.loads((artifact / "audit.json").read_text())
    audit["attention"]["fused"] = 3
    (artifact / "audit.json").write_text(json.dumps(audit))
    assert answer(run("gate", artifact, "--min-fused", "100", "--json"), code=1)["verdict"] == "fail"


def test_evidence_about_another_manifest_is_invalid(openvino_int8: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(openvino_int8)
    stale = {"valid": True, "doubts": [], "runs": [], "manifest": "0" * 64}
    (artifact / "bench.json").write_text(json.dumps(stale))
    found = answer(run("gate", artifact, "--min-speedup", "1", "--json"), code=3)
    assert found["verdict"] == "invalid"
    assert "bench.json is about another manifest: run vitdeploy bench" in found["checks"][0]["why"]


def test_a_stale_audit_is_read_anew(openvino_int8: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(openvino_int8)
    audit = json.loads((artifact / "audit.json").read_text())
    audit["manifest"], audit["attention"]["fused"] = "0" * 64, 0
    (artifact / "audit.json").write_text(json.dumps(audit))
    assert answer(run("inspect", artifact, "--json"))["attention"]["fused"] == 4


def test_predict(onnxruntime_fp32: Path, images: Callable[..., Path]) -> None:
    files = sorted(images(2).iterdir())
    found = answer(run("predict", onnxruntime_fp32, *files, "--json"))["predictions"]
    assert [p["image"] for p in found] == [str(f) for f in files]
    top = found[0]["top"]
    assert [g["probability"] for g in top] == sorted((g["probability"] for g in top), reverse=True)
    assert {g["label"] for g in top} <= set("0123456789")


def test_doctor() -> None:
    found = answer(run("doctor", "--json"))
    assert found.keys() >= {"targets", "host"}
    assert {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"} <= found["targets"].keys()
    assert all(t.keys() >= {"available", "why", "fix"} for t in found["targets"].values())
    assert all(t["available"] or (t["why"] and t["fix"]) for t in found["targets"].values())
    assert found["host"]["cores"] >= 1


def test_recipes() -> None:
    listed = answer(run("recipes", "--json"))["recipes"]
    assert "demo" in listed
    assert len(listed) >= 6
    assert all(listed.values()), "every recipe says in its first line what it is for"
    assert "demo:digits" in answer(run("recipes", "demo", "--json"))["recipe"]
    for name in listed:
        shown = run("recipes", name)
        assert shown.out == (Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"), (
            "byte for byte"
        )


def test_run_does_all_of_it_wherever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "model: demo:digits\ntarget: {kind: onnxruntime}\nbench: {seconds: 0.3}\ngate: {min_fused_pct: 100}\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder that has the name of a shipped recipe is not a recipe
    assert "there is no weights file nowhere.pt" in run("run", "demo", "--weights", "nowhere.pt").error
    found = answer(run("run", recipe, "--json"))
    assert found.keys() >= {"export", "audit", "eval", "bench", "gate"}
    assert found["gate"]["verdict"] == "pass"
    assert found["export"]["artifact"] == "digits-onnxruntime-fp32"
    assert {"audit.json", "bench.json", "eval.json", "gate.json", "manifest.json"} <= set(
        listing(tmp_path / "digits-onnxruntime-fp32")
    )


def test_quiet_is_silent(tmp_path: Path) -> None:
    """In a process of its own, because OpenVINO prints a lot."""
    words = ("export", "demo:digits", "--target", "openvino", "--precision", "int8", "-o", tmp_path / "a")
    found = spawn(*words, "--json", "--quiet")
    assert answer(found)["stage"] == "artifact"
    assert found.err == ""


def test_stdout_is_one_json_object_whatever_libraries_print(tmp_path: Path) -> None:
    noisy = "import os, torch\ndef make():\n    print('Python')\n    os.write(1, b'C++')\n"
    (tmp_path / "noisy.py").write_text(noisy + "    return torch.nn.Conv2d(3, 4, 4, 4)\n")
    words = ("export", f"python:{tmp_path}/noisy.py:make", "--target", "onnxruntime", "--image-size", "8x8")
    found = spawn(*words, "-o", tmp_path / "a", "--json")
    assert answer(found)["stage"] == "artifact"
    assert "Python" in found.err
    assert "C++" in found.err


def test_an_error_is_json_too(tmp_path: Path) -> None:
    found = spawn("inspect", tmp_path / "nothing", "--json")
    assert answer(found, code=1)["error"].keys() == {"message", "fix"}
    assert (
        found.error
        == f"error: {tmp_path / 'nothing'} does not exist: it is not an artifact. Make one with `vitdeploy export`."
    )


def test_traceback_only_on_request(tmp_path: Path) -> None:
    found = run("inspect", tmp_path / "nothing", "--traceback")
    assert "Traceback" in found.err
    assert "ArtifactError" in found.err


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color(no_color: str, coloured: bool) -> None:
    """On a terminal: without one nothing is coloured anyway."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-m", "vitdeploy", "recipes"], stdout=end, stderr=end, env=environment):
        os.close(end)
        shown = b""
        while True:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(terminal)
    assert b"demo" in shown
    assert bool(re.search(rb"\x1b\[[\d;]*3[0-7]m", shown)) == coloured


@pytest.mark.parametrize("flag", ["", "--json"])
def test_a_reader_that_goes_away_is_no_error(flag: str) -> None:
    command = f"{sys.executable} -m vitdeploy recipes {flag} | true"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert found.stderr == ""


def test_bench_shows_where_the_time_goes(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    flags = ("--seconds", "0.3", "--threads", "1", "--against", "onnxruntime-fp32", "--profile")
    artifact = copy(onnxruntime_fp32)
    found = run("bench", artifact, *flags)
    assert found.code == 0, found.err
    for part in ("onnxruntime-fp32", "(plain)", "Start-up", "peak of 1 threads", "by the engine's own counters", "mlp"):
        assert part in found.out
    refused = run("bench", artifact, "--batch", "1:4", "--json")
    assert refused.code == 1
    assert "Give N or N,N" in json.loads(refused.out)["error"]["fix"]


@pytest.mark.parametrize(
    "line",
    [
        "export demo:digits --target opnvino",
        "export demo:digits --target openvino --precision int9",
        "export demo:digits",
        "export demo:digits --target openvino --bogus",
        "export demo:digits --target openvino --batch 0",
        "export demo:digits --target openvino --batch 4:1",
        "export demo:digits --target openvino --image-size 224x",
        "export demo:digits --target openvino --image-size 0x32",
        "export demo:digits --target openvino --image-size big",
        "export demo:digits --target openvino --max-drop -1",
        "export demo:digits --target openvino --num-classes -1",
        "export demo:digits --target openvino --ema --weights-key teacher",
        "gate DIR --min-speedup fast",
        "bench DIR --seconds 0",
        "bench DIR --scenario online",
        "bench DIR --streams 0",
        "frobnicate",
        "inspect",
    ],
)
def test_wrong_usage_is_2(line: str) -> None:
    found = run(*line.split())
    assert (found.code, found.out) == (2, "")
    assert "Usage:" in found.err


def test_wrong_sizes_say_what_is_wrong() -> None:
    line = ("export", "demo:digits", "--target", "openvino")
    assert "Give N or MIN:OPT:MAX" in " ".join(run(*line, "--batch", "0").err.replace("│", "").split())
    assert "Give HxW or MIN:OPT:MAX, such as 224x224" in " ".join(
        run(*line, "--image-size", "big").err.replace("│", "").split()
    )


def test_a_misspelt_choice_names_the_nearest() -> None:
    assert "did you mean 'openvino'?" in run("export", "demo:digits", "--target", "opnvino").err


def test_version() -> None:
    found = spawn("--version")
    assert re.fullmatch(r"vitdeploy \d+\.\d+\.\d+\n", found.out)
