"""The Python API does what the commands do: the same names, defaults and evidence."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.cli import app
from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.evidence import Audit, Bench, Eval, Gate, Scenario, StreamTuning
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.recipe import GateSpec, Recipe

COMMANDS = {"inspect": "inspect", "bench": "bench", "evaluate": "eval", "gate": "gate", "report": "report"}
ONLY_COMMANDS = {"json", "quiet", "traceback", "host", "save_reference", "no_cache", "help", "prompt", "tune_streams"}
"""Options about the output, functions of their own, and what the API lacks: other machines, saved answers, families."""
ONLY_PYTHON = {"progress", "cache", "limits", "artifact", "artifacts"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_arguments_are_the_options_of_the_command(name: str) -> None:
    command = typer.main.get_command(app).commands[COMMANDS[name]]  # type: ignore[attr-defined]
    options = {p.name: p for p in command.params if p.name not in ONLY_COMMANDS}
    parameters = inspect.signature(getattr(vitdeploy, name)).parameters
    limits = {key for key in options if key and key.startswith(("max_", "min_"))} if name == "gate" else set()
    limits |= {"at_threshold", "latency_percentile", "energy_rail", "require_signed"} if name == "gate" else set()
    assert {p for p in parameters if p not in ONLY_PYTHON} == set(options) - limits - {"artifact", "artifacts"}
    for key in set(parameters) & set(options) - {"artifact", "artifacts"}:
        assert parameters[key].default == (
            options[key].default or (() if (name, key) == ("bench", "against") else options[key].default)
        ), key
    for limit in limits:
        assert any(field.startswith(limit) for field in GateSpec.model_fields), limit


@pytest.mark.parametrize("name", [*COMMANDS, "export", "load", "tune_streams"])
def test_every_function_is_typed_and_its_arguments_are_described(name: str) -> None:
    function = getattr(vitdeploy, name)
    types = {t.__name__: t for t in (Artifact, Audit, Bench, Eval, Gate, Recipe, GraphCache, StreamTuning)}
    extra: dict[str, Any] = {"Deployed": vitdeploy.Deployed, "Progress": Progress, "Scenario": Scenario}
    hints = get_type_hints(function, localns={**types, **extra})
    parameters = inspect.signature(function).parameters
    assert set(parameters) | {"return"} == set(hints)
    if name != "load":
        described = set(re.findall(r"^        (\w+): ", function.__doc__, re.MULTILINE))
        assert set(parameters) <= described
    assert "Raises:" in function.__doc__


def test_what_is_public_is_listed() -> None:
    own = vars(vitdeploy).items()
    homes = ("vitdeploy", "vitdeploy.proofs")
    functions = {n for n, value in own if inspect.isfunction(value) and value.__module__ in homes and n[0] != "_"}
    assert functions == {*COMMANDS, "export", "load", "tune_streams"}
    assert functions <= set(vitdeploy.__all__)


def test_an_artifact_is_measured_and_judged(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    artifact = copy(demo(target="onnxruntime"))
    audit = vitdeploy.inspect(artifact)
    timing = vitdeploy.bench(artifact.path, seconds=0.3, threads=1, batch=1, against="onnxruntime-fp32")
    evaluation = vitdeploy.evaluate(str(artifact.path), limit=40)
    verdict = vitdeploy.gate(artifact, min_fused_pct=100, max_size_mib=100, junit=tmp_path / "junit.xml")
    assert [type(one) for one in (audit, timing, evaluation, verdict)] == [Audit, Bench, Eval, Gate]
    assert audit.attention.sites == 4
    assert [run.role for run in timing.runs] == ["reference", "artifact"]
    assert evaluation.n == 40
    assert "size (MiB)" in {check.name for check in verdict.checks if check.status == "pass"}
    assert len(verdict.checks) == 2
    assert (tmp_path / "junit.xml").exists()
    assert json.loads((artifact.path / "gate.json").read_text())["verdict"] == verdict.verdict == "pass"
    page = vitdeploy.report(artifact, images=0, output=tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert page.read_text().lstrip().startswith("<!doctype html>")


def test_evidence_goes_where_it_is_told_to(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = demo(target="onnxruntime")
    before = sorted(path.name for path in artifact.path.iterdir())
    vitdeploy.evaluate(artifact, limit=10, evidence=tmp_path / "evidence")
    assert vitdeploy.gate(artifact, max_drop_pp=50, evidence=tmp_path / "evidence").checks
    assert (tmp_path / "evidence" / "eval.json").exists()
    assert sorted(path.name for path in artifact.path.iterdir()) == before


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda a: vitdeploy.bench(), UsageError, "no artifact is given"),
        (lambda a: vitdeploy.report(), UsageError, "no artifact is given"),
        (lambda a: vitdeploy.bench(a, seconds=0), UsageError, "seconds is 0, but must be 0.1 or more"),
        (lambda a: vitdeploy.bench(a, seconds=float("nan")), UsageError, "seconds is nan"),
        (
            lambda a: vitdeploy.export("demo:digits", target="openvino", seconds=0),
            UsageError,
            "seconds is 0, but must be 0.1 or more",
        ),
        (lambda a: vitdeploy.bench(a, threads=0), UsageError, "threads is 0"),
        (lambda a: vitdeploy.bench(a, streams=-1), UsageError, "streams is -1"),
        (lambda a: vitdeploy.bench(a, batch="x"), UsageError, "is not a list of sizes"),
        (lambda a: vitdeploy.bench(a, scenario="ofline"), UsageError, "did you mean 'offline'"),
        (lambda a: vitdeploy.tune_streams(a, seconds=0), UsageError, "seconds is 0"),
        (lambda a: vitdeploy.tune_streams(a, threads=0), UsageError, "threads is 0"),
        (lambda a: vitdeploy.evaluate(a, limit=0), UsageError, "limit is 0"),
        (lambda a: vitdeploy.gate(a, max_drop=1), RecipeError, "did you mean 'max_drop_pp'"),
        (lambda a: vitdeploy.gate(a, max_drop_pp=-1), RecipeError, "max_drop_pp should be greater than 0"),
        (lambda a: vitdeploy.report(a, images=9), UsageError, "images is 9, but must be from 0 to 8"),
        (lambda a: vitdeploy.inspect(a, calibration="demo:digits"), UsageError, "only used with sensitivity"),
        (lambda a: vitdeploy.inspect(a, evidence=a.path / "manifest.json"), UsageError, "is a file"),
    ],
)
def test_wrong_arguments_are_one_line(
    call: Callable[[Artifact], object], kind: type[Exception], message: str, demo: Callable[..., Artifact]
) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call(demo(target="onnxruntime"))
    assert "\n" not in str(caught.value)
