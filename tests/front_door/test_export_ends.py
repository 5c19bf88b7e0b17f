"""How an export ends: with the next command, a recipe if it is asked for, and the cursor."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import run
from tests.front_door.colours import save_model
from vitdeploy import artifact as artifacts
from vitdeploy.commands.export import read_recipe

ROOT = Path(__file__).parents[2]


def last_line(*words: object) -> str:
    ended = run("export", *words, "--quiet")
    assert ended.code == 0, ended.err
    return ended.out.splitlines()[-1]


def test_a_low_cosine_on_made_up_images_is_explained(tmp_path: Path) -> None:
    """Digits are white on black, so nearly white images leave the ranges. On the others INT8 loses little."""
    words = ("export", "demo:digits", "--target", "onnxruntime", "--quiet")
    int8 = " ".join(run(*words, "--precision", "int8", "-o", tmp_path / "int8").out.split())
    assert "the lowest cosine is that of bright and wide images in a batch of 1; on the other made-up images" in int8
    assert float(int8.partition("it is at least ")[2].split()[0]) > 0.99
    assert "made-up images that look different leave them" in int8
    assert "the lowest cosine" not in run(*words, "-o", tmp_path / "fp32").out


def test_the_next_command_fits_what_was_made(tmp_path: Path) -> None:
    colours = save_model(tmp_path / "colours.onnx")
    plain = last_line(colours, "--target", "onnxruntime", "-o", tmp_path / "a")
    assert plain == f"Next: vitdeploy eval {tmp_path}/a --data DATA && vitdeploy bench {tmp_path}/a"
    demo = last_line("demo:digits", "--target", "onnxruntime", "-o", tmp_path / "my demo")
    assert demo == f"Next: vitdeploy eval '{tmp_path}/my demo' && vitdeploy bench '{tmp_path}/my demo'"
    bundle = last_line("demo:digits", "--target", "tensorrt", "-o", tmp_path / "b")
    assert bundle == f"Next on the device: vitdeploy compile {tmp_path}/b"
    factory = tmp_path / "own.py"
    factory.write_text(
        "from timm.models.vision_transformer import VisionTransformer\n"
        "def build():\n"
        "    return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)\n"
    )
    own = (f"python:{factory}:build", "--image-size", "16", "--target", "onnxruntime")
    again = f"--model python:{factory}:build"
    assert last_line(*own, "-o", tmp_path / "c") == (
        f"Next: vitdeploy eval {tmp_path}/c --data DATA {again} && vitdeploy bench {tmp_path}/c {again}"
    )
    assert last_line(*own, "--weights", "random", "-o", tmp_path / "d") == f"Next: vitdeploy bench {tmp_path}/d {again}"


def test_a_saved_recipe_makes_the_same_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "colours.onnx")
    (tmp_path / "names.txt").write_text("\n".join("abcdefgh"))
    flags = (
        "--labels",
        "names.txt",
        "--mean",
        "0.1,0.2,0.3",
        "--std",
        "1,1,1",
        "--crop-pct",
        "0.9",
        "--batch",
        "1:2:4",
    )
    target = ("--target", "onnxruntime", "--option", "threads=1")
    ended = run("export", "colours.onnx", *target, *flags, "-o", "one", "--save-recipe", "r.yaml", "--quiet")
    assert ended.code == 0, ended.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ended = run("export", str(tmp_path / "colours.onnx"), "--recipe", "../r.yaml", "-o", "two", "--quiet")
    assert ended.code == 0, ended.err
    first, second = (artifacts.load(path).manifest for path in (tmp_path / "one", Path("two")))
    assert (first.labels, first.preprocess, first.model.digest) == (
        second.labels,
        second.preprocess,
        second.model.digest,
    )
    assert first.recipe.target == second.recipe.target
    recipe = read_recipe(Path("../r.yaml"))
    assert recipe.model.spec == str(tmp_path / "colours.onnx")
    assert recipe.model.crop_pct == 0.9
    ended = run("export", str(tmp_path / "colours.onnx"), *target, "-o", "three", "--save-recipe", "no/such/r.yaml")
    assert (ended.code, "no/such/r.yaml cannot be written" in ended.error) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_gives_the_cursor_back(tmp_path: Path, number: int) -> None:
    """On a terminal the progress bar hides it."""
    near, far = pty.openpty()
    words = ["export", "demo:digits", "--target", "onnxruntime", "--no-cache", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitdeploy", *words], stdout=far, stderr=far, stdin=subprocess.DEVNULL, cwd=ROOT
    )
    os.close(far)
    shown = b""
    until = time.monotonic() + 120
    while b"\x1b[?25l" not in shown and time.monotonic() < until:
        shown += os.read(near, 4096)
    process.send_signal(number)
    while True:
        try:
            part = os.read(near, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(near)
    assert process.wait(60) == 130
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert not (tmp_path / "out").exists()


def test_every_printed_recipe_is_the_shipped_one() -> None:
    from vitdeploy import yaml12

    names = json.loads(run("recipes", "--json").out)["recipes"]
    assert len(names) > 10
    for name in names:
        printed = run("recipes", name)
        shipped = (ROOT / "recipes" / f"{name}.yaml").read_text()
        assert printed.out == shipped
        assert yaml12.loads(printed.out) == yaml12.loads(shipped)
