"""`gate --require-signed`: as option, key of a recipe and input of the action; what the gate reads has to be signed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run
from tests.commands.signing.conftest import Pair
from tests.evidence import timed_bench
from tests.test_action import act
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.commands.gate.gate import judge_again
from vitdeploy.evidence import Gate
from vitdeploy.frozen import replace


def gate(folder: Path, keys: Pair, *words: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the checks by their names."""
    ended = run("gate", folder, "--min-fused", 100, "--require-signed", keys.public, *words, "--json")
    return ended.code, {check["name"]: check for check in json.loads(ended.out)["checks"]}


def test_signed_evidence_passes_and_the_folder_stays_as_it_was_signed(signed: Path, keys: Pair) -> None:
    before = {path.name: path.read_bytes() for path in signed.iterdir() if path.is_file()}
    code, checks = gate(signed, keys)
    assert (code, checks["signed"]["status"], checks["signed"]["observed"]) == (0, "pass", "yes")
    assert checks["signed"]["limit"] == str(keys.public)
    assert {path.name: path.read_bytes() for path in signed.iterdir() if path.is_file()} == before
    assert run("verify", signed, "--key", keys.public).code == 0


def test_another_key_fails(signed: Path, other_keys: Pair) -> None:
    code, checks = gate(signed, other_keys)
    assert (code, checks["signed"]["status"]) == (1, "fail")
    assert "signature.json was made with another key" in checks["signed"]["why"]
    assert checks["attention fused"]["status"] == "pass", "the others are judged too"


def test_an_unsigned_artifact_fails(signed: Path, keys: Pair) -> None:
    for name in ("signature.json", "attestation.json"):
        (signed / name).unlink()
    code, checks = gate(signed, keys)
    assert (code, checks["signed"]["status"]) == (1, "fail")
    assert "there is no signature.json" in checks["signed"]["why"]


def test_evidence_of_later_fails(signed: Path, keys: Pair) -> None:
    loaded = artifacts.load(signed)
    loaded.write_evidence(timed_bench(loaded, 5.0))
    code, checks = gate(signed, keys)
    assert code == 1
    assert "bench.json was changed since it was signed" in checks["signed"]["why"]


@pytest.mark.parametrize("name", ["gate.json", "report.html"])
def test_what_the_gate_does_not_read_may_change(name: str, signed: Path, keys: Pair) -> None:
    (signed / name).write_text("{}")
    assert gate(signed, keys)[0] == 0
    assert run("verify", signed, "--key", keys.public).code == 1


def test_the_verdict_is_stored_in_a_folder_for_evidence(signed: Path, keys: Pair, tmp_path: Path) -> None:
    before = (signed / "gate.json").read_bytes()
    assert gate(signed, keys, "--evidence", tmp_path / "evidence")[0] == 0
    assert (signed / "gate.json").read_bytes() == before
    stored = Gate.model_validate_json((tmp_path / "evidence" / "gate.json").read_bytes())
    assert stored.limits["require_signed"] == str(keys.public)
    assert gate(signed, keys, "--evidence", tmp_path / "evidence")[0] == 0, "its own verdict is no unsigned evidence"


def test_a_stored_verdict_is_judged_again_by_the_key_it_names(signed: Path, keys: Pair, tmp_path: Path) -> None:
    beside = tmp_path / "evidence"
    assert gate(signed, keys, "--evidence", beside)[0] == 0
    verdict = Gate.model_validate_json((beside / "gate.json").read_bytes())
    loaded = artifacts.load(signed)
    assert judge_again(loaded, verdict).verdict == "pass"
    gone = replace(verdict, limits={**verdict.limits, "require_signed": str(tmp_path / "gone.pub")})
    again = judge_again(loaded, gone)
    assert (again.verdict, again.checks[0].status) == ("invalid", "invalid")
    assert "there is no key file" in again.checks[0].why


def test_a_private_key_is_refused_before_anything_is_judged(signed: Path, keys: Pair) -> None:
    error = run("gate", signed, "--require-signed", keys.private).error
    assert "is a private key" in error
    assert "there is no key file" in run("gate", signed, "--require-signed", "nowhere.pub").error


def write_recipe(folder: Path, keys: Pair, target: str) -> Path:
    shutil.copyfile(keys.public, folder / "release.pub")
    limits = "gate: {min_fused_pct: 100, require_signed: release.pub}\n"
    (folder / "recipe.yaml").write_text(f"model: demo:digits\ntarget: {{kind: {target}}}\n{limits}")
    return folder / "recipe.yaml"


def test_the_key_in_a_recipe_is_relative_to_it_and_holds_for_the_artifact(
    keys: Pair, other_keys: Pair, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path, keys, "onnxruntime"), tmp_path / "out"
    assert recipes.read(recipe).gate.require_signed == str(tmp_path / "release.pub")
    assert run("export", "demo:digits", "--recipe", recipe, "-o", out).code == 0
    assert run("gate", out).code == 1
    assert run("sign", out, "--key", keys.private).code == 0
    assert run("gate", out).code == 0
    assert run("gate", out, "--require-signed", other_keys.public).code == 1


def test_a_verdict_before_signing_leaves_out_the_key_of_the_recipe(keys: Pair, tmp_path: Path) -> None:
    """Else nobody could sign it: the gate asks for the signature first, and stores no verdict without."""
    recipe, out = write_recipe(tmp_path, keys, "onnxruntime"), tmp_path / "out"
    assert run("export", "demo:digits", "--recipe", recipe, "-o", out).code == 0
    command = f"vitdeploy gate {out} --before-signing"
    assert command in " ".join(run("sign", out, "--key", keys.private).err.split())
    for ratio in (3.0, 5.0):  # a new bench makes the verdict outdated
        loaded = artifacts.load(out)
        loaded.write_evidence(timed_bench(loaded, ratio))
        if ratio > 3:
            assert command in run("sign", out, "--key", keys.private).error
            assert run("gate", out).code == 1, "it is signed as it was before"
        assert run("gate", out, "--before-signing").code == 0
        assert run("sign", out, "--key", keys.private).code == 0
        assert json.loads(run("verify", out, "--key", keys.public, "--json").out)["verdict"] == "pass"
        assert run("gate", out).code == 0
    both = run("gate", out, "--before-signing", "--require-signed", keys.public)
    assert (both.code, "Leave out one of the two" in both.error) == (1, True)


def test_run_says_that_what_it_has_just_made_cannot_be_signed_yet(keys: Pair, tmp_path: Path) -> None:
    ended = run("run", write_recipe(tmp_path, keys, "tensorrt"), "-o", tmp_path / "out", "--json")
    assert "gate.require_signed is not checked here" in " ".join(ended.err.split())
    assert [check["name"] for check in json.loads(ended.out)["gate"]["checks"]] == ["attention fused"]


def test_the_input_of_the_action(signed: Path, keys: Pair, other_keys: Pair, tmp_path: Path) -> None:
    inputs = {"artifact": str(signed), "min-fused": "100"}
    code, log, outputs = act(tmp_path, **inputs, **{"require-signed": str(keys.public)})
    assert (code, outputs) == (0, "verdict=pass\n"), log
    code, log, _ = act(tmp_path, **inputs, **{"require-signed": str(other_keys.public)})
    assert code == 1
    assert "::error title=vitdeploy gate%3A signed" in log
