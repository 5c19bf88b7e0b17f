"""Bad input: one line that says what, where and how to fix it, exit 1, and nothing half-written left behind."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import exported, listing, run, small_cnn, spawn

DIGITS = ("export", "demo:digits", "--target", "onnxruntime")


pytestmark = pytest.mark.usefixtures("here")


def refused(*words: object) -> str:
    """The error line of a command that fails and leaves the current folder as it was."""
    before = listing(Path.cwd())
    found = run(*words)
    assert (found.code, found.out) == (1, "")
    assert listing(Path.cwd()) == before
    return found.error


def misused(*words: object) -> str:
    """What a command says about options that cannot be; nothing in the current folder has changed."""
    before = listing(Path.cwd())
    found = run(*words)
    assert (found.code, found.out) == (2, "")
    assert listing(Path.cwd()) == before
    return " ".join(found.err.replace("│", " ").split())


class Opens:
    """Unpickling it opens a file: what a crafted pickle could do, and a test can see."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("executed", "w")


# ------------------------------------------------------------------------------------------- model and weights


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("timm:deit_tny_patch16_224", ["timm has no model", "did you mean 'deit_tiny_patch16_224'?"]),
        ("tim:deit_tiny_patch16_224", ["is not a model (did you mean 'timm'?)", "timm:NAME"]),
        ("deit_tiny", ["'deit_tiny' is not a model", "timm:NAME"]),
        ("torchvision:vit_b_61", ["torchvision", "vit_b_61"]),
        ("demo:digit", ["there is no demo 'digit'", "demo:digits"]),
        ("hf:nowhere/nothing", ["hf:nowhere/nothing"]),
        ("timm:deit_tiny_patch16_224", ["pretrained weights", "--weights random"]),
        ("none.onnx", ["there is no file none.onnx", "Check the path"]),
        ("none.pt2", ["there is no file none.pt2", "Check the path"]),
        ("python:none.py:make", ["none.py"]),
        (
            "timm:deit_tiny_patch16_224 --weights random --image-size 225",
            ["225x225", "patch size 16x16", "224x224 or 240x240"],
        ),
        ("demo:digits --image-size 33", ["32x32"]),
        ("demo:digits --weights none.safetensors", ["there is no weights file none.safetensors", "Check the path"]),
        ("demo:digits --weights weights.txt", ["'weights.txt' is not a weights file", ".safetensors"]),
        ("demo:digits --batch 4:1:2", ["4:1:2 is not ordered: MIN <= OPT <= MAX"]),
        ("demo:digits --device TPU", ["device TPU", "--device CPU"]),
        ("demo:digits --precision fp8", ["onnxruntime cannot do fp8", "It can do fp32, "]),
    ],
)
def test_models_that_cannot_be_had(words: str, parts: list[str]) -> None:
    line = refused("export", *words.split(), "--target", "onnxruntime")
    for part in parts:
        assert part in line


def test_int8_is_refused_without_data_before_the_model_is_loaded() -> None:
    words = ("export", "timm:deit_tiny_patch16_224", "--weights", "random", "--precision", "int8", "--target")
    assert "Give --calibration DATA" in refused(*words, "openvino")
    assert "--precision int8-dynamic, which needs no images" in refused(*words, "onnxruntime")


def test_weights_that_do_not_fit_name_the_first_key() -> None:
    save_file({"head.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "w.safetensors")
    line = refused(*DIGITS, "--weights", "w.safetensors")
    assert "w.safetensors does not fit the model: 55 missing keys, first 'cls_token'" in line
    assert "1 unexpected keys, first 'extra'" in line
    assert "first 'head.weight' [3, 3] instead of [10, 96]" in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"w": Opens()}, "which is not a tensor"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"w": 1}, "its entry 'w' is a int, not a tensor"),
        ([torch.zeros(1)], "it holds a list"),
    ],
    ids=["code", "module", "number", "list"],
)
def test_a_pickle_that_is_no_state_dict_is_not_executed(content: object, reason: str) -> None:
    torch.save(content, "w.pt")
    line = refused(*DIGITS, "--weights", "w.pt")
    assert "w.pt is not a plain state dict" in line
    assert reason in line
    assert "safetensors" in line
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_truncated_weights(name: str) -> None:
    state = {"head.weight": torch.zeros(300, 300)}
    torch.save(state, name) if name.endswith(".pt") else save_file(state, name)
    with Path(name).open("rb+") as file:
        file.truncate(1000)
    assert f"{name} is not a plain state dict" in refused(*DIGITS, "--weights", name)


def test_a_crafted_pt2_is_never_executed() -> None:
    program = torch.export.export(torch.nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, "plain.pt2")
    with zipfile.ZipFile("plain.pt2") as plain:
        writer = torch._C.PyTorchFileWriter("m.pt2")
        writer.set_min_version(6)
        for name in plain.namelist():
            inner = name.partition("/")[2]
            data = pickle.dumps(Opens()) if inner.startswith("data/sample_inputs") else plain.read(name)
            if not inner.startswith(".data/"):
                writer.write_record(inner, data, len(data))
        writer.write_end_of_file()
    line = refused("export", "m.pt2", "--target", "onnxruntime")
    assert "m.pt2 is refused, because loading it could run code in it" in line
    assert not Path("executed").exists()
    Path("m.pt2").write_bytes(pickle.dumps(Opens()))
    assert "m.pt2 is not a torch.export archive" in refused("export", "m.pt2", "--target", "onnxruntime")
    assert not Path("executed").exists()


# ------------------------------------------------------------------------------------------------------- ONNX


def test_what_is_no_vit_exports_and_says_so(tmp_path: Path, openvino_int8: Path) -> None:
    cnn = exported(tmp_path, f"{small_cnn(tmp_path / 'cnn.onnx')} --target onnxruntime")
    attention = json.loads(run("inspect", cnn, "--json").out)["attention"]
    assert (attention["sites"], attention["fused"]) == (0, 0)
    assert "0/0" in run("inspect", cnn).out.replace(" of ", "/")
    gated = run("gate", cnn, "--min-fused", "100", "--json")
    assert gated.code == 3, "nothing to fuse is not everything fused"
    assert "no attention site" in json.loads(gated.out)["checks"][0]["why"]
    assert "is of another model" in refused("bench", cnn, openvino_int8)
    assert "inputs of the artifacts have different shapes" in refused("bench", cnn, openvino_int8, "--any-model")


@pytest.mark.parametrize("size", [0, 10, 400])
def test_truncated_onnx(size: int) -> None:
    data = small_cnn(Path("m.onnx")).read_bytes()
    assert len(data) > size
    Path("m.onnx").write_bytes(data[:size])
    assert "m.onnx is not a " in refused("export", "m.onnx", "--target", "onnxruntime")


# ------------------------------------------------------------------------------------------------------- data


def test_calibration_data_is_looked_at_before_the_work() -> None:
    Path("empty").mkdir()
    words = ("export", "demo:digits", "--target", "openvino", "--precision", "int8", "--calibration")
    before = listing(Path.cwd())
    for data, part in (("empty", "empty has no images in it"), ("nowhere", "there is no nowhere. Give a folder")):
        found = run(*words, data)
        assert part in found.error
        assert "Export to ONNX" not in found.err
        assert listing(Path.cwd()) == before


def test_data_that_does_not_serve(onnxruntime_fp32: Path, images: Callable[..., Path]) -> None:
    before = listing(onnxruntime_fp32)
    Path("empty").mkdir()
    np.savez("unlabelled.npz", images=np.zeros((2, 32, 32), np.uint8))
    np.savez("eleven.npz", images=np.zeros((2, 32, 32), np.uint8), labels=np.array([0, 10]))
    Path("broken.npz").write_bytes(b"PK")
    for data, part in (
        ("empty", "empty has no images in it. Put images there"),
        (images(), "has no labels. Put the images into one sub-folder per class"),
        ("unlabelled.npz", "unlabelled.npz has no labels"),
        ("eleven.npz", "its labels go from 0 to 10, but the model has 10 classes"),
        ("broken.npz", "broken.npz is not an .npz file, or it is truncated"),
        ("demo:digit", "did you mean 'demo:digits'?"),
    ):
        assert part in refused("eval", onnxruntime_fp32, "--data", data)
    assert listing(onnxruntime_fp32) == before


def test_one_corrupt_image_is_skipped_with_a_count_and_more_are_refused(
    onnxruntime_fp32: Path, copy: Callable[[Path], Path], images: Callable[..., Path]
) -> None:
    artifact = copy(onnxruntime_fp32)
    root = images(4, classes=("0", "1"))
    (root / "0" / "2.png").write_bytes(b"no image")
    found = json.loads(run("eval", artifact, "--data", root, "--json").out)
    assert (found["n"], found["skipped"]) == (7, 1)
    (artifact / "eval.json").unlink()
    damaged = root / "1" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    line = refused("eval", artifact, "--data", root)
    assert "2 of 8 images cannot be read" in line
    assert "Replace or remove the damaged images" in line
    assert not (artifact / "eval.json").exists()


def test_predict_on_what_is_no_image(onnxruntime_fp32: Path) -> None:
    Path("text.png").write_text("no image")
    assert "text.png is not an image" in refused("predict", onnxruntime_fp32, "text.png")
    assert "there is no image none.png" in refused("predict", onnxruntime_fp32, "none.png")


# ------------------------------------------------------------------------------------------ recipes and folders


@pytest.mark.parametrize("command", [["run", "r.yaml"], ["export", "demo:digits", "--recipe", "r.yaml"]], ids=" ".join)
def test_a_recipe_with_an_unknown_key(command: list[str]) -> None:
    Path("r.yaml").write_text("model: demo:digits\ntarget: {kind: openvino}\npresicion: {kind: int8}\n")
    assert "r.yaml: unknown key 'presicion' (did you mean 'precision'?)" in refused(*command)


def test_a_recipe_that_is_not_there() -> None:
    assert "there is no recipe 'dmo' (did you mean 'demo'?)" in refused("run", "dmo")
    assert "there is no recipe r.yaml. Run `vitdeploy recipes`" in refused("run", "r.yaml")
    assert "did you mean 'demo'?" in refused("recipes", "dmeo")


@pytest.mark.parametrize("command", ["inspect", "bench", "eval", "gate", "predict", "compile"])
def test_a_changed_byte_is_refused_everywhere(
    command: str, onnxruntime_fp32: Path, copy: Callable[[Path], Path], images: Callable[..., Path]
) -> None:
    artifact = copy(onnxruntime_fp32)
    with (artifact / "graph.onnx").open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    before = listing(artifact)
    more = sorted(images().iterdir()) if command == "predict" else []
    assert "graph.onnx is not the file that was exported" in refused(command, artifact, *more)
    assert listing(artifact) == before


def test_a_newer_schema(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    raw = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**raw, "schema_version": 99}))
    line = refused("inspect", artifact)
    assert "has manifest schema 99, this version of vitdeploy reads 1 to 2. Update vitdeploy." in line


def test_other_folders_are_no_artifacts() -> None:
    Path("photos").mkdir()
    assert "photos has no manifest.json: it is not an artifact" in refused("inspect", "photos")
    assert "none does not exist" in refused("gate", "none")
    assert "photos has no manifest.json" in refused("compile", "photos")


def test_baselines_and_reports_that_cannot_be(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    assert "none.json is not a baseline: there is no such file" in refused("gate", artifact, "--baseline", "none.json")
    Path("half.json").write_text("{}", encoding="utf-8")
    line = refused("gate", artifact, "--baseline", "half.json")
    assert re.search(r"half\.json is not a baseline: \w+: Field required\. Make one with", line)
    for limit in ("-1", "0", "inf"):
        assert "is not above 0" in misused("gate", artifact, "--max-drop", limit)
    for flag in ("--junit", "--markdown", "--save-baseline"):
        line = refused("gate", artifact, "--min-fused", "100", flag, "no/such/folder")
        assert "no/such/folder cannot be written: No such file or directory" in line


def test_an_existing_output_folder_is_kept(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    Path("photos").mkdir()
    Path("photos/cat.jpg").touch()
    before = {p: p.read_bytes() for p in artifact.rglob("*") if p.is_file()}
    assert "exists. Use --force to replace it, or choose another folder with -o." in refused(*DIGITS, "-o", artifact)
    assert "photos exists and is not an artifact" in refused(*DIGITS, "-o", "photos", "--force")
    assert "photos/cat.jpg is a file. Choose another folder with -o" in refused(*DIGITS, "-o", "photos/cat.jpg/a")
    assert "cannot do fp8" in refused(*DIGITS, "-o", artifact, "--force", "--precision", "fp8")
    assert {p: p.read_bytes() for p in artifact.rglob("*") if p.is_file()} == before


def test_force_replaces_an_artifact(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    (artifact / "graph.onnx").write_bytes(b"damaged, but an artifact")
    (artifact / "bench.json").write_text("{}")
    assert run(*DIGITS, "-o", artifact, "--force").code == 0
    assert listing(artifact) == listing(onnxruntime_fp32)
    assert list(artifact.parent.iterdir()) == [artifact]


# --------------------------------------------------------------------------------------------------- full disk


@pytest.fixture(params=[1, 3])
def small_disk(request: pytest.FixtureRequest, here: Path) -> Iterator[Path]:
    """A file system of so many MiB: 1 is too small for the exported graph, 3 for what comes after it."""
    disk = here / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    assert f"the disk of {small_disk} is full. Free some space" in refused(*DIGITS, "-o", small_disk / "a")
    assert f"{small_disk} is a mount point" in refused(*DIGITS, "-o", small_disk, "--force")


# ------------------------------------------------------------------------------- the same through a real process


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("inspect", "nowhere"), "error: nowhere does not exist: it is not an artifact. Make one with"),
        ((*DIGITS, "--weights", "none.pt"), "error: there is no weights file none.pt. Check the path."),
    ],
)
def test_the_process_says_one_line_and_exits_with_1(words: tuple[str, ...], part: str) -> None:
    found = spawn(*words)
    assert (found.code, found.out) == (1, "")
    assert found.error.startswith(part)
    assert len(found.err.splitlines()) == 1
    assert listing(Path.cwd()) == []


# --------------------------------------------------------------------------------------------------- TensorRT


@pytest.mark.parametrize("flags", ["--dla", "--device DLA", "--device dla:0"])
def test_the_dla_is_refused_with_the_reason(flags: str) -> None:
    line = refused("export", "demo:digits", "--target", "tensorrt", *flags.split())
    assert "the DLA runs none of a Vision Transformer's LayerNorm, GELU and attention" in line


def test_a_target_option_that_is_none_is_refused() -> None:
    line = misused("export", "demo:digits", "--target", "tensorrt", "--option", "workspace=1")
    assert "unknown key 'target.workspace'" in line or "unknown key 'workspace'" in line
    assert "is not KEY=VALUE" in misused("export", "demo:digits", "--target", "tensorrt", "--option", "workspace")


def test_a_quantizer_for_a_precision_that_has_none() -> None:
    assert refused(*DIGITS, "--precision", "fp32", "--quantizer", "nncf") == (
        "error: --quantizer nncf does not work with fp32, which NNCF cannot make here. Leave out --quantizer, or use "
        "--precision int4-weights, int8, int8-bf16, int8-weights."
    )


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_quantizer_that_is_not_installed(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.quantize.nncf_process.find_spec", lambda name: None)
    assert refused(*DIGITS, "--precision", precision, "--quantizer", "nncf") == (
        "error: --quantizer nncf needs NNCF, which is not installed here. pip install 'vitdeploy[quantize]', or use "
        "--quantizer own."
    )


def test_a_quantizer_that_does_not_exist() -> None:
    assert "'tensorrt' is not one of own, nncf" in misused(*DIGITS, "--precision", "int8", "--quantizer", "tensorrt")
