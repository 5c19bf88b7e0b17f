"""What scripts rely on, read from the code: options, JSON keys, keys on disk, recipe keys, the Python API.

`python -m tests.cli.contract` writes `contract.json`, which `test_snapshot.py` holds the code against. The first
snapshot was taken before the rooms were moved. Names stay; more may be added. Run it after adding, never to lose one.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image
from pydantic import BaseModel
from typer.testing import CliRunner

import vitdeploy
from vitdeploy.cli import app

SNAPSHOT = Path(__file__).with_name("contract.json")

ANSWERS = {
    "export": "vitdeploy.pipeline.summary:Exported",
    "compile": "vitdeploy.pipeline.summary:Exported",
    "inspect": "vitdeploy.evidence:Audit",
    "debug": "vitdeploy.evidence:Divergence",
    "bench": "vitdeploy.evidence:Bench",
    "bench --tune-streams": "vitdeploy.evidence:StreamTuning",
    "eval": "vitdeploy.evidence:Eval",
    "eval --save-reference": "vitdeploy.commands.evaluate.recorded_reference:About",
    "gate": "vitdeploy.evidence:Gate",
    "predict": "vitdeploy.commands.predict:Prediction",
    "package": "vitdeploy.commands.package:Packaged",
    "sign": "vitdeploy.commands.sign:Signed",
    "verify": "vitdeploy.commands.verify:Verified",
    "bom": "vitdeploy.commands.bom.bom:BillOfMaterials",
    "report": "vitdeploy.commands.report.report:Reported",
    "run": "vitdeploy.commands.run:Outcome",
    "sweep": "vitdeploy.evidence:Sweep",
    "doctor": "vitdeploy.commands.doctor:Diagnosis",
    "hosts": "vitdeploy.remote.near.listing:Listing",
    "device probe": "vitdeploy.remote.messages:Probe",
}
"""The model that each command prints with --json."""

FILES = {
    "manifest.json": "vitdeploy.artifact:Manifest",
    "audit.json": "vitdeploy.evidence:Audit",
    "bench.json": "vitdeploy.evidence:Bench",
    "eval.json": "vitdeploy.evidence:Eval",
    "gate.json": "vitdeploy.evidence:Gate",
    "sensitivity.json": "vitdeploy.evidence:Sensitivity",
    "streams.json": "vitdeploy.evidence:StreamTuning",
    "baseline": "vitdeploy.measure.baseline:Baseline",
    "recipe": "vitdeploy.recipe:Recipe",
    "sweep file": "vitdeploy.commands.sweep.definition:SweepFile",
    "trial.json": "vitdeploy.evidence:TrialRecord",
    "line of --log jsonl": "vitdeploy.commands.log.entry:Entry",
}
"""The model of each file that others read or write."""


RUNS = {
    "--version": 0,
    "export --help": 0,
    "nonsense": 2,
    "export demo:digits": 2,
    "export demo:digits --target nothing": 2,
    "export demo:digits --target openvino --precision int3": 2,
    "export demo:digits --target openvino --precision fp8": 1,
    "export demo:digits --target openvino --batch 2:1:4": 1,
    "export demo:digits --target openvino --weights nowhere.pt": 1,
    "export nothing:at-all --target openvino": 1,
    "export demo:digits --target openvino --precision int8 -o ARTIFACT": 1,
    "export demo:digits --target openvino --precision int8 -o NEW --json": 0,
    "export demo:digits --target tensorrt -o BUNDLE --json": 0,
    "compile NEW --json": 0,
    "compile nowhere": 1,
    "inspect ARTIFACT --json": 0,
    "inspect ARTIFACT --sensitivity --json": 0,
    "inspect ARTIFACT --calibration demo:digits": 2,
    "inspect BUNDLE --json": 0,
    "inspect nowhere --json": 1,
    "debug ARTIFACT --images 2 --json": 0,
    "bench ARTIFACT --seconds 0.5 --profile --json": 0,
    "bench ARTIFACT --against nothing": 1,
    "bench ARTIFACT --scenario nothing": 2,
    "bench ARTIFACT --tune-streams --scenario single-stream": 2,
    "bench ARTIFACT --batch x": 1,
    "bench BUNDLE": 1,
    "eval ARTIFACT --limit 40 --json": 0,
    "eval ARTIFACT --limit 40 --save-reference SAVED --json": 0,
    "eval ARTIFACT --data nowhere": 1,
    "eval ARTIFACT --reference SAVED --save-reference SAVED": 2,
    "gate ARTIFACT --json": 3,
    "gate ARTIFACT --min-fused 100 --max-size 100 --json": 0,
    "gate ARTIFACT --max-size 0.001 --json": 1,
    "gate BUNDLE --min-fused 100 --json": 3,
    "gate ARTIFACT --max-drop -1": 2,
    "gate nowhere": 1,
    "gate ARTIFACT --max-size 100 --log json:LOG": 2,
    "gate ARTIFACT --max-size 100 --log jsonl:nowhere/log": 1,
    "gate ARTIFACT --max-size 100 --log-artifact": 1,
    "predict ARTIFACT IMAGE --json": 0,
    "predict ARTIFACT IMAGE --save PICTURES --json": 0,
    "predict ARTIFACT nowhere.png": 1,
    "package ARTIFACT --for deepstream -o PACKAGE": 1,
    "package ARTIFACT --for ovms --ensemble -o PACKAGE": 1,
    "package ARTIFACT --for triton --backend nothing -o PACKAGE": 2,
    "package ARTIFACT --for ovms --name digits -o PACKAGE --json": 0,
    "package ARTIFACT --for nothing -o PACKAGE": 2,
    "package ARTIFACT -o PACKAGE": 2,
    "report ARTIFACT --images 0 -o PAGE --json": 0,
    "report ARTIFACT -o nowhere/page.html": 1,
    "bom ARTIFACT -o BOM --json": 0,
    "bom ARTIFACT -o ARTIFACT": 1,
    "sign ARTIFACT --key KEY --json": 0,
    "sign ARTIFACT --key IMAGE": 1,
    "sign ARTIFACT": 2,
    "verify ARTIFACT --key PUBLIC --json": 0,
    "verify ARTIFACT --key KEY": 1,
    "gate ARTIFACT --max-size 100 --require-signed PUBLIC --json": 0,
    "doctor --json": 0,
    "doctor --seconds 5": 2,
    "recipes --json": 0,
    "recipes demo --json": 0,
    "recipes nothing": 1,
    "run nothing": 1,
    "sweep SWEEP --dry-run --json": 0,
    "sweep nowhere.yaml": 1,
    "sweep SWEEP --budget soon": 2,
    "sweep SWEEP --pick nothing": 2,
    "hosts --json": 0,
    "device probe --json": 0,
}
"""Command lines and their exit codes; words in capitals stand for files. Those with --json record the printed keys."""


_FUNCTIONS = ("export", "load", "inspect", "bench", "tune_streams", "evaluate", "gate", "report")


def snapshot() -> dict[str, Any]:
    """Everything that is promised, sorted, ready for JSON."""
    return {
        "options": dict(sorted(_options(typer.main.get_command(app), "").items())),
        "answers": {name: sorted(_keys(_load(where))) for name, where in ANSWERS.items()},
        "files": {name: sorted(_keys(_load(where))) for name, where in FILES.items()},
        "python": {name: list(inspect.signature(getattr(vitdeploy, name)).parameters) for name in _FUNCTIONS},
        "names": sorted(vitdeploy.__all__),
    }


def printed(value: Any, open_maps: set[str], path: str = "") -> Iterator[str]:
    """The key paths of a printed object; keys of a map whose keys are data, such as layer names, count as `{}`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            below = f"{path}{{}}" if f"{path}{{}}" in open_maps else f"{path}.{key}".lstrip(".")
            yield below
            yield from printed(inner, open_maps, below)
    elif isinstance(value, list):
        for inner in value:
            yield from printed(inner, open_maps, f"{path}[]")


def _options(command: Any, name: str) -> dict[str, Any]:
    if hasattr(command, "commands"):
        return {k: v for key, inner in command.commands.items() for k, v in _options(inner, f"{name} {key}").items()}
    return {
        name.strip(): {
            parameter.name: {
                "flags": sorted([*parameter.opts, *parameter.secondary_opts]),
                "argument": parameter.param_type_name == "argument",
                "takes_value": not getattr(parameter, "is_flag", False),
                "several": getattr(parameter, "multiple", False) or parameter.nargs != 1,
                "required": parameter.required,
                "choices": _choices(parameter),
            }
            for parameter in command.params
        }
    }


def _choices(parameter: Any) -> list[str]:
    """The values that the help lists: `a|b`. A word with capitals (`HxW`) stands for what the user names."""
    words = (parameter.metavar or "").split("|")
    return sorted(word for word in words if len(words) > 1 and word == word.lower())


def _load(where: str) -> type[BaseModel]:
    module, _, name = where.partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found


def _keys(model: type[BaseModel], path: str = "", seen: tuple[type, ...] = ()) -> Iterator[str]:
    """The key paths of a model: `[]` for each of a sequence, `{}` for each key of an open map."""
    for name, field in model.model_fields.items():
        below = f"{path}.{name}".lstrip(".")
        yield below
        yield from _inside(field.annotation, below, (*seen, model))


def _inside(annotation: Any, path: str, seen: tuple[type, ...]) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            yield from _keys(annotation, path, seen)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield f"{path}{{}}"
        yield from _inside(arguments[1], f"{path}{{}}", seen)
    elif origin in (tuple, list):
        for inner in arguments:
            yield from _inside(inner, f"{path}[]", seen)
    else:
        for inner in arguments:
            yield from _inside(inner, path, seen)


def run_all(folder: Path, artifact: Path) -> dict[str, tuple[int, str]]:
    """Run all of `RUNS` in this process, in order: exit code and stdout by command line.

    Args:
        folder: what they write goes here.
        artifact: `demo:digits` for OpenVINO in INT8, which is changed.
    """
    image = folder / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)).save(image)
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "release.key").write_bytes(secret)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "release.pub").write_bytes(public)
    matrix = folder / "matrix.yaml"
    matrix.write_text("recipe: {model: demo:digits, target: openvino}\nmatrix: {precision: [fp32, int8]}\n", "utf-8")
    places = {
        "ARTIFACT": artifact, "NEW": folder / "new", "BUNDLE": folder / "bundle", "SAVED": folder / "saved.zip",
        "IMAGE": image, "PAGE": folder / "page.html", "PICTURES": folder / "pictures", "PACKAGE": folder / "package",
        "KEY": folder / "release.key", "PUBLIC": folder / "release.pub",
        "BOM": folder / "bom.json",
        "SWEEP": matrix,
    }  # fmt: skip
    found = {}
    for line in RUNS:
        words = [str(places.get(word, word)) for word in line.split()]
        ended = CliRunner().invoke(app, words)
        found[line] = (ended.exit_code, ended.stdout)
    return found


def keys_printed(text: str, kept: dict[str, Any]) -> set[str]:
    """The key paths of one printed JSON object."""
    every = {path for paths in (*kept["answers"].values(), *kept["files"].values()) for path in paths}
    open_maps = {path for path in every if path.endswith("{}")} | {"recipes{}"}
    return set(printed(json.loads(text), open_maps))


def _record() -> None:
    kept = snapshot()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        words = ["export", "demo:digits", "--target", "openvino", "--precision", "int8", "-o", str(artifact)]
        assert CliRunner().invoke(app, words).exit_code == 0
        found = run_all(Path(folder), artifact)
    for line, (code, _) in found.items():
        assert code == RUNS[line], f"{line}: exit code {code}"
    kept["printed"] = {
        line: sorted(keys_printed(text, kept)) for line, (_, text) in found.items() if line.endswith("--json")
    }
    SNAPSHOT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _record()
