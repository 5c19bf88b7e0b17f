"""`sign` and `verify`: what is changed afterwards is refused by its name, and model-signing's own command agrees."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from tests.cli.conftest import Ended, run
from tests.commands.signing.conftest import Pair
from tests.evidence import timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands import sign
from vitdeploy.commands.gate.gate import judge_again
from vitdeploy.evidence import Gate
from vitdeploy.frozen import replace

EVIDENCE = [
    "audit.json", "bench.json", "eval.flips.npz", "eval.json", "eval.samples.npz", "gate.json", "report.html",
]  # fmt: skip


def verify(folder: Path, keys: Pair) -> Ended:
    return run("verify", folder, "--key", keys.public)


def edit(file: Path, change: Callable[[Any], object]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


def seal_again(folder: Path, name: str) -> None:
    """Put the hash of a changed file into the manifest, as somebody would who wants the artifact to load."""

    def change(facts: Any) -> None:
        entry = next(each for each in facts["files"] if each["path"] == name)
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(folder / "manifest.json", change)


def payload_of(file: Path) -> Any:
    envelope = json.loads(file.read_text())
    return json.loads(base64.b64decode(envelope.get("dsseEnvelope", envelope)["payload"]))


def model_signing(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "model_signing", *map(str, words)], capture_output=True, text=True)


def test_what_was_signed_is_verified_and_says_what_the_key_vouches_for(signed: Path, keys: Pair) -> None:
    ended = run("verify", signed, "--key", keys.public, "--json")
    assert ended.code == 0, ended.err
    verified = json.loads(ended.out)
    assert verified["evidence"] == EVIDENCE
    assert verified["files"] == 1 + len(artifacts.load(signed).manifest.files)
    assert (verified["verdict"], verified["limits"]) == ("pass", {"min_fused_pct": 100, "min_speedup": 2})
    assert {check["name"]: check["status"] for check in verified["checks"]} == {
        "attention fused": "pass", "speed-up": "pass",
    }  # fmt: skip
    evaluation = json.loads((signed / "eval.json").read_text())
    assert verified["data"] == [{"use": "evaluation", "digest": evaluation["data_digest"], "samples": evaluation["n"]}]
    assert {each["evidence"] for each in verified["environment"]} == {"audit.json", "bench.json", "eval.json"}
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", keys.public, "-outform", "DER"], capture_output=True, check=True
    )
    assert verified["key"] == hashlib.sha256(der.stdout).hexdigest()
    assert "verdict: pass" in verify(signed, keys).out


def test_evidence_that_changes_while_it_is_judged_is_not_signed(
    signed: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_slowly(artifact: Artifact, verdict: Gate) -> Gate:
        judged = judge_again(artifact, verdict)
        artifact.write_evidence(timed_bench(artifact, 9.0))  # another process does
        return judged

    before = (signed / "attestation.json").read_bytes()
    monkeypatch.setattr(sign, "judge_again", judge_slowly)
    ended = run("sign", signed, "--key", keys.private)
    assert ended.code == 1
    assert "the evidence changed while it was judged" in ended.err
    assert (signed / "attestation.json").read_bytes() == before


def test_a_verdict_against_another_artifact_is_signed_and_reported(signed: Path, keys: Pair, tmp_path: Path) -> None:
    opponent = tmp_path / "opponent"
    shutil.copytree(signed, opponent)
    edit(opponent / "manifest.json", lambda facts: facts["versions"].update(opponent="1"))
    loaded, other = artifacts.load(signed), artifacts.load(opponent)
    bench = timed_bench(loaded, 3.0, against="onnxruntime-fp32 (opponent)")
    reference, own = bench.runs
    loaded.write_evidence(replace(bench, runs=(replace(reference, manifest=other.digest), own)))
    ended = run("gate", signed, "--against", opponent, "--min-speedup", 2, "--json")
    assert ended.code == 0, ended.out
    assert json.loads(ended.out)["against_digest"] == other.digest
    shutil.rmtree(opponent)  # the digest is enough
    assert run("sign", signed, "--key", keys.private).code == 0
    assert verify(signed, keys).code == 0
    reported = run("report", signed, "--images", 0, "--json")
    assert reported.code == 0
    assert json.loads(reported.out)["verdict"] == "pass"
    edit(signed / "gate.json", lambda facts: facts.update(against_digest="0" * 64))
    assert "gives invalid" in run("sign", signed, "--key", keys.private).err


def test_the_command_of_model_signing_verifies_ours(signed: Path, keys: Pair) -> None:
    words = ("verify", "key", signed, "--signature", signed / "signature.json", "--public_key", keys.public)
    assert "succeeded" in model_signing(*words).stdout
    (signed / "bench.json").unlink()  # evidence is the attestation's matter
    assert model_signing(*words).returncode == 0
    (signed / "extra.bin").touch()
    assert model_signing(*words).returncode != 0
    (signed / "extra.bin").unlink()
    with (signed / "graph.onnx").open("ab") as file:
        file.write(b"\0")
    refused = model_signing(*words)
    assert refused.returncode != 0
    assert "graph.onnx" in refused.stdout + refused.stderr


def test_the_attestation_is_an_in_toto_statement_about_the_manifest(signed: Path) -> None:
    payload = payload_of(signed / "attestation.json")
    Statement.copy_from_pb(json_format.ParseDict(payload, StatementMessage())).validate()
    manifest = hashlib.sha256((signed / "manifest.json").read_bytes()).hexdigest()
    assert payload["subject"] == [{"name": "manifest.json", "digest": {"sha256": manifest}}]
    assert payload["predicateType"] == "https://vitdeploy/evidence/v1"
    digests = {each["name"]: each["digest"]["sha256"] for each in payload["predicate"]["evidence"]}
    assert digests == {name: hashlib.sha256((signed / name).read_bytes()).hexdigest() for name in EVIDENCE}
    assert payload["predicate"]["evidenceDigest"] == json.loads((signed / "gate.json").read_text())["digest"]
    envelope = json.loads((signed / "attestation.json").read_text())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"


def test_only_the_files_that_never_change_are_in_the_signature_of_the_model(signed: Path) -> None:
    names = {each["name"] for each in payload_of(signed / "signature.json")["predicate"]["resources"]}
    assert names == {"manifest.json", *(entry.path for entry in artifacts.load(signed).manifest.files)}


def test_edited_evidence_is_refused(signed: Path, keys: Pair) -> None:
    edit(signed / "eval.json", lambda facts: facts.update(flips=0))
    assert "eval.json was changed since it was signed" in verify(signed, keys).error


def test_a_swapped_report_is_refused(signed: Path, keys: Pair) -> None:
    (signed / "report.html").write_text("<p>all is well</p>")
    assert "report.html was changed since it was signed" in verify(signed, keys).error


def test_an_edited_verdict_is_refused(signed: Path, keys: Pair) -> None:
    edit(signed / "gate.json", lambda facts: facts["limits"].update(min_speedup=1))
    assert "gate.json was changed since it was signed" in verify(signed, keys).error


def test_evidence_of_later_has_to_be_signed_again(signed: Path, keys: Pair) -> None:
    loaded = artifacts.load(signed)
    loaded.write_evidence(timed_bench(loaded, 5.0))
    assert "bench.json was changed since it was signed" in verify(signed, keys).error
    refused = run("sign", signed, "--key", keys.private)
    assert "gate.json was given about other evidence than is there now" in refused.error
    assert run("gate", signed, "--min-speedup", 2).code == 0
    assert run("sign", signed, "--key", keys.private).code == 0
    assert verify(signed, keys).code == 0


@pytest.mark.parametrize("name", ["bench.json", "eval.samples.npz", "gate.json"])
def test_removed_evidence_is_refused(name: str, signed: Path, keys: Pair) -> None:
    (signed / name).unlink()
    assert f"{name} was removed since it was signed" in verify(signed, keys).error


def test_added_evidence_is_refused(signed: Path, keys: Pair) -> None:
    (signed / "streams.json").write_text("{}")
    assert "streams.json was added and is not signed" in verify(signed, keys).error


def test_a_changed_byte_is_refused(signed: Path, keys: Pair) -> None:
    content = bytearray((signed / "graph.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (signed / "graph.onnx").write_bytes(content)
    assert "graph.onnx is not the file that was exported" in verify(signed, keys).error
    seal_again(signed, "graph.onnx")
    for name in EVIDENCE:
        if name.endswith(".json"):
            digest = hashlib.sha256((signed / "manifest.json").read_bytes()).hexdigest()
            edit(signed / name, lambda facts, digest=digest: facts.update(manifest=digest))
    error = verify(signed, keys).error
    assert "graph.onnx was changed since it was signed" in error
    assert "manifest.json was changed since it was signed" in error
    assert "attestation.json is about another artifact" in error


def test_a_removed_file_is_refused(signed: Path, keys: Pair) -> None:
    (signed / "sites.json").unlink()
    assert "sites.json is missing" in verify(signed, keys).error
    edit(signed / "manifest.json", lambda m: m.update(files=[f for f in m["files"] if f["path"] != "sites.json"]))
    assert "sites.json was removed since it was signed" in verify(signed, keys).error


def test_an_added_file_is_refused(signed: Path, keys: Pair) -> None:
    (signed / "extra.bin").touch()
    assert "extra.bin is not one of the artifact's files" in verify(signed, keys).error
    edit(signed / "manifest.json", lambda m: m["files"].append({"path": "extra.bin", "bytes": 0, "sha256": ""}))
    seal_again(signed, "extra.bin")
    assert "extra.bin was added and is not signed" in verify(signed, keys).error


def test_another_key_is_refused(signed: Path, other_keys: Pair) -> None:
    error = verify(signed, other_keys).error
    assert "signature.json was made with another key" in error
    assert "attestation.json was made with another key" in error


def test_a_renamed_key_does_not_help(signed: Path, keys: Pair, other_keys: Pair) -> None:
    """The signatures of one key under the name of another."""
    ours = {name: json.loads((signed / name).read_text()) for name in ("signature.json", "attestation.json")}
    assert run("sign", signed, "--key", other_keys.private).code == 0

    def rename(facts: Any) -> None:
        if "signatures" in facts:
            facts["signatures"][0]["keyid"] = ours["attestation.json"]["signatures"][0]["keyid"]
        else:
            facts["verificationMaterial"] = ours["signature.json"]["verificationMaterial"]

    for name in ours:
        edit(signed / name, rename)
    error = verify(signed, keys).error
    assert "signature.json was changed after it was signed" in error
    assert "attestation.json was changed after it was signed" in error
    edit(signed / "signature.json", lambda facts: facts["verificationMaterial"]["publicKey"].pop("hint"))
    assert "signature.json was changed after it was signed" in verify(signed, keys).error


def test_an_edited_statement_is_refused(signed: Path, keys: Pair) -> None:
    def forge(envelope: Any) -> None:
        payload = json.loads(base64.b64decode(envelope["payload"]))
        payload["predicate"]["limits"] = {}
        envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    edit(signed / "attestation.json", forge)
    assert "attestation.json was changed after it was signed" in verify(signed, keys).error


def test_the_signature_of_the_model_is_no_attestation(signed: Path, keys: Pair) -> None:
    """Both are statements that the same key signed in an envelope."""
    bundle = json.loads((signed / "signature.json").read_text())
    envelope = bundle["dsseEnvelope"]
    keyid = json.loads((signed / "attestation.json").read_text())["signatures"][0]["keyid"]
    envelope["signatures"][0]["keyid"] = keyid
    (signed / "attestation.json").write_text(json.dumps(envelope))
    assert "is no statement about evidence" in verify(signed, keys).error


def test_signatures_of_another_artifact_are_refused(
    signed: Path, demo: Callable[..., Artifact], copy: Callable[..., Artifact], keys: Pair
) -> None:
    other = copy(demo(target="openvino")).path
    assert run("sign", other, "--key", keys.private).code == 0
    for name in ("signature.json", "attestation.json"):
        shutil.copyfile(other / name, signed / name)
    error = verify(signed, keys).error
    assert "graph.onnx was changed since it was signed" in error
    assert "attestation.json is about another artifact" in error


def test_a_signature_that_leaves_files_out_is_refused(signed: Path, keys: Pair) -> None:
    """The library leaves out the paths that a signature names as ignored."""
    words = ["sign", "key", signed, "--signature", signed / "signature.json", "--private_key", keys.private]
    for name in (*EVIDENCE, "attestation.json", "signature.json", "graph.onnx"):
        words += ["--ignore-paths", signed / name]
    assert model_signing(*words).returncode == 0
    assert "graph.onnx was added and is not signed" in verify(signed, keys).error


@pytest.mark.parametrize("name", ["signature.json", "attestation.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '"a"', '{"payload": 3}', "[" * 100_000])
def test_what_is_no_signature_is_one_line(name: str, content: str, signed: Path, keys: Pair) -> None:
    (signed / name).write_text(content)
    assert f"{name} is not a sign" in verify(signed, keys).error


def test_an_unsigned_artifact_is_refused(signed: Path, keys: Pair) -> None:
    (signed / "attestation.json").unlink()
    assert "there is no attestation.json: its evidence is not signed" in verify(signed, keys).error
    (signed / "signature.json").unlink()
    assert "there is no signature.json: it is not signed" in verify(signed, keys).error


def test_signing_again_replaces(signed: Path, keys: Pair, other_keys: Pair) -> None:
    before = sorted(path.name for path in signed.iterdir())
    assert run("sign", signed, "--key", other_keys.private).code == 0
    assert verify(signed, other_keys).code == 0
    assert verify(signed, keys).code == 1
    assert sorted(path.name for path in signed.iterdir()) == before


def test_a_renamed_folder_is_the_same_artifact(signed: Path, keys: Pair) -> None:
    assert verify(signed.rename(signed.with_name("renamed")), keys).code == 0


def test_signatures_in_a_folder_for_evidence(
    demo: Callable[..., Artifact], copy: Callable[..., Artifact], tmp_path: Path, keys: Pair
) -> None:
    """An artifact on a read-only disk."""
    out, beside = copy(demo(target="onnxruntime")).path, tmp_path / "evidence"
    before = sorted(path.name for path in out.rglob("*"))
    assert run("sign", out, "--key", keys.private, "--evidence", beside).code == 0
    assert sorted(path.name for path in out.rglob("*")) == before
    assert run("verify", out, "--key", keys.public, "--evidence", beside).code == 0
    assert "there is no signature.json" in verify(out, keys).error


def test_a_bundle_is_signed_without_a_verdict(
    demo: Callable[..., Artifact], copy: Callable[..., Artifact], keys: Pair
) -> None:
    bundle = copy(demo(target="tensorrt")).path
    ended = run("sign", bundle, "--key", keys.private)
    assert ended.code == 0, ended.err
    assert "there is no verdict" in ended.err
    verified = json.loads(run("verify", bundle, "--key", keys.public, "--json").out)
    assert (verified["verdict"], verified["limits"]) == (None, {})


def test_evidence_about_another_artifact_is_not_signed(signed: Path, keys: Pair) -> None:
    before = (signed / "signature.json").read_bytes(), (signed / "attestation.json").read_bytes()
    (signed / "sensitivity.json").write_text(json.dumps({"manifest": "0" * 64}))
    (signed / "gate.json").unlink()
    assert "sensitivity.json is about another manifest.json" in run("sign", signed, "--key", keys.private).error
    (signed / "sensitivity.json").write_text("{")
    assert "sensitivity.json is not evidence" in run("sign", signed, "--key", keys.private).error
    assert before == ((signed / "signature.json").read_bytes(), (signed / "attestation.json").read_bytes())


def test_a_verdict_that_the_evidence_does_not_give_is_not_signed(signed: Path, keys: Pair) -> None:
    edit(signed / "gate.json", lambda facts: facts["limits"].update(min_speedup=9))
    assert "gate.json says pass, and the evidence gives fail" in run("sign", signed, "--key", keys.private).error


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("baseline", {}, "the baseline in gate.json is not one: machine: Field required"),
        ("baseline", {"machine": 3}, "the baseline in gate.json is not one: machine: Input should be a valid string"),
        (
            "limits",
            {"min_speedupp": 1},
            "limits in gate.json: unknown key 'min_speedupp' (did you mean",
        ),
    ],
)
def test_a_verdict_whose_parts_cannot_be_read_is_one_line(
    key: str, value: object, refused: str, signed: Path, keys: Pair
) -> None:
    edit(signed / "gate.json", lambda facts: facts.update({key: value}))
    assert refused in run("sign", signed, "--key", keys.private).error


def test_a_failed_verdict_is_signed_with_a_note(signed: Path, keys: Pair) -> None:
    assert run("gate", signed, "--min-speedup", 9).code == 1
    ended = run("sign", signed, "--key", keys.private, "--json")
    assert ended.code == 0
    assert "the verdict is fail" in ended.err
    assert json.loads(ended.out)["verdict"] == "fail"


def test_without_the_extra_it_is_one_line(signed: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.commands.signing import keys as module

    known = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "model_signing" else known(name))
    for command, key in (("sign", keys.private), ("verify", keys.public)):
        error = run(command, signed, "--key", key).error
        assert "signatures need model-signing, which is not installed. pip install 'vitdeploy[sign]'" in error


def test_a_check_that_the_evidence_does_not_give_is_not_signed(signed: Path, keys: Pair) -> None:
    """The verdict alone would be the same."""
    before = (signed / "gate.json").read_text()
    assert [check["name"] for check in json.loads(before)["checks"]] == ["speed-up", "attention fused"]
    edit(signed / "gate.json", lambda facts: facts["checks"][0].update(observed=30.0))
    refused = "the check 'speed-up' in gate.json is not what the evidence gives"
    assert refused in run("sign", signed, "--key", keys.private).error
    (signed / "gate.json").write_text(before)
    edit(signed / "gate.json", lambda facts: facts["checks"].pop(0))
    assert refused in run("sign", signed, "--key", keys.private).error
    (signed / "gate.json").write_text(before)
    edit(signed / "gate.json", lambda facts: facts["checks"][0].update(limit=1))
    assert refused in run("sign", signed, "--key", keys.private).error
    (signed / "gate.json").write_text(before)
    assert run("sign", signed, "--key", keys.private).code == 0


@pytest.mark.parametrize("name", ["bench.json", "release.json", "sensitivity.json", "streams.json"])
def test_evidence_that_cannot_be_read_is_not_signed(name: str, signed: Path, keys: Pair) -> None:
    (signed / "gate.json").unlink()
    (signed / name).write_text(json.dumps({"manifest": artifacts.load(signed).digest}))
    assert f"{name} is not evidence: " in run("sign", signed, "--key", keys.private).error


def test_the_next_command_verifies_as_it_is_printed(demo: Callable[..., Artifact], tmp_path: Path, keys: Pair) -> None:
    """With a folder for evidence, and a space in a name."""
    out, beside = tmp_path / "my digits", tmp_path / "my evidence"
    shutil.copytree(demo(target="onnxruntime").path, out)
    ended = run("sign", out, "--key", keys.private, "--evidence", beside, "--json")
    words = shlex.split(json.loads(ended.out)["next"])
    assert words[0] == "vitdeploy"
    assert run(*(str(keys.public) if word == "PUBLIC_KEY" else word for word in words[1:])).code == 0
    assert f"run vitdeploy gate '{out}' --evidence '{beside}'" in " ".join(ended.err.split())


def make_audit_of_elsewhere(folder: Path) -> None:
    """Let the audit be of another CPU, with no other evidence of that one: inspect would read it again."""
    for name in ("bench.json", "eval.json", "eval.samples.npz", "eval.flips.npz", "gate.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    edit(folder / "audit.json", lambda facts: facts["provenance"].update(hardware="another CPU"))


def test_sign_gate_and_bom_do_not_store_an_audit(signed: Path, keys: Pair) -> None:
    make_audit_of_elsewhere(signed)
    audit = (signed / "audit.json").read_bytes()
    assert run("sign", signed, "--key", keys.private).code == 0
    required = ("--min-fused", 100, "--require-signed", keys.public)
    for words in (("gate", signed, *required), ("gate", signed, *required, "--evidence", signed.with_name("beside"))):
        assert run(*words).code == 0
    assert run("bom", signed).code == 0
    assert (signed / "audit.json").read_bytes() == audit
    assert not (signed.with_name("beside") / "audit.json").exists()
    assert verify(signed, keys).code == 0
    assert run("gate", signed, *required, "--evidence", signed.with_name("beside")).code == 0
    assert run("inspect", signed).code == 0
    assert (signed / "audit.json").read_bytes() != audit, "the test would show nothing"


def test_sign_judges_again_without_storing_an_audit(signed: Path, keys: Pair) -> None:
    """The verdict was given about the stored audit: another one in its place would make it outdated."""
    assert run("gate", signed, "--min-fused", 100).code == 0
    verdict = Gate.model_validate_json((signed / "gate.json").read_bytes())
    make_audit_of_elsewhere(signed)
    loaded = artifacts.load(signed)
    loaded.write_evidence(replace(verdict, digest=loaded.evidence_digest()))
    audit = (signed / "audit.json").read_bytes()
    assert run("sign", signed, "--key", keys.private).code == 0
    assert (signed / "audit.json").read_bytes() == audit
    assert verify(signed, keys).code == 0
