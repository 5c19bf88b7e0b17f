"""The commands of README, installation, quickstart and tutorials run, except for what `docs_substitutions.py` lists."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.docs_blocks import ROOT, SHELL, Block, read_blocks, steps
from tests.docs_substitutions import GIVEN, NOT_RUN, REPLACED, RUN
from tests.remote.conftest import far, far_venv, keys, near
from tests.remote.far import Far

__all__ = ["far", "far_venv", "keys", "near"]

LANGUAGES = (*SHELL, "text", "yaml", "python")
VERDICTS = {0: "PASS", 1: "FAIL", 3: "INVALID"}
TIMED = re.compile(r"^  (speed-up|slow-down) .* (INVALID|FAIL) +\S", re.MULTILINE)
"""Checks of a gate that depend on how busy the machine is."""
UNDECIDED = re.compile(r"^  \w.* (INVALID|FAIL) +\S", re.MULTILINE)
QUICK = ("README.md", "docs/installation.md")
"""The pages that CI runs on every push; the others take minutes."""


@pytest.mark.parametrize("page", RUN)
def test_every_block_has_a_language(page: str) -> None:
    assert {block.language for block in read_blocks(page)} <= set(LANGUAGES)


def test_every_tutorial_is_run() -> None:
    tutorials = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert tutorials <= set(RUN)


def test_every_entry_of_the_table_is_used() -> None:
    for entry in REPLACED:
        assert any(entry.text in one or entry.text in two for _, one, two in steps(entry.page)), entry
    for entry in NOT_RUN:
        assert [b for b in read_blocks(entry.page) if b.language in SHELL and entry.text in b.text], entry
    for entry in GIVEN:
        assert any(entry.path in one or entry.path in two for _, one, two in steps(entry.page)), entry


def test_a_console_block_is_split_into_commands_and_their_output() -> None:
    assert Block("console", "$ a \\\n   b\nGate: PASS\n$ c\n", "").commands == [("a b", "Gate: PASS\n"), ("c", "")]
    assert Block("yaml", "a: 1\n", "Write it down. `a/recipe.yaml`:").file == "a/recipe.yaml"
    assert Block("yaml", "a: 1\n", "See `a/recipe.yaml`: it is short.").file is None


@pytest.mark.slow
@pytest.mark.parametrize("page", QUICK)
def test_the_commands_of_a_short_page_run(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, {"repo": str(ROOT)})


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in RUN if page not in QUICK and "ssh" not in page])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path, {"repo": str(ROOT)})


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in RUN if "ssh" in page])
def test_the_commands_of_a_page_about_another_machine_run(page: str, tmp_path: Path, far: Far, near: Path) -> None:
    run_page(page, tmp_path / "here", {"repo": str(ROOT), "far": far.url})


def run_page(page: str, folder: Path, values: dict[str, str]) -> None:
    """Make what the reader has, then write the files and run the commands of a page in its order."""
    faulthandler.cancel_dump_traceback_later()  # of pytest, for one test; here each command has a limit of its own
    work, programs = folder / "work", folder / "bin"
    for path in (work, programs, folder / "home"):
        path.mkdir(parents=True)
    (programs / "vitdeploy").write_text(f"#!{sys.executable}\nfrom vitdeploy.cli import main\nmain()\n")
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    for entry in GIVEN:
        if entry.page == page and not (work / entry.path).exists():
            MAKERS[entry.make](work / entry.path)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1", "COLUMNS": "100",
    }  # fmt: skip
    for kind, what, shown in steps(page):
        for entry in REPLACED:
            if entry.page == page:
                by = entry.by.format(**values) if "{" in entry.by else entry.by
                what, shown = what.replace(entry.text, by), shown.replace(entry.text, by) if kind == "write" else shown
        if kind == "write":
            (work / what).write_text(shown, encoding="utf-8")
            continue
        # With `:` at its end, bash stays above the program, as a user's shell does.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{what}\n:"], cwd=work, env=environment, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        check(what, shown, done)


def check(command: str, shown: str, done: subprocess.CompletedProcess[str]) -> None:
    """Check that a command ended well: a gate with the verdict that it prints, and with the one that the page shows.

    On a busy machine a speed-up cannot be decided. Only then may the verdict be another one.
    """
    if "error: the latencies are in doubt, so no baseline is made of them" in done.stderr:
        pytest.skip(f"this machine is too busy for the rest of the page, from here on: {command}")
    verdict = re.search(r"Gate: ([A-Z]+)", done.stdout)
    if verdict is None:
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return
    assert VERDICTS.get(done.returncode) == verdict[1], f"{command}\n{done.stdout}\n{done.stderr}"
    expected = re.search(r"Gate: ([A-Z]+)", shown)
    undecided, by_time = UNDECIDED.findall(done.stdout), TIMED.findall(done.stdout)
    busy = by_time and len(by_time) == len(undecided)
    if expected is not None and not busy and not TIMED.search(shown):
        assert verdict[1] == expected[1], f"{command}\n{done.stdout}"


def test_a_command_that_fails_is_seen() -> None:
    def ended(code: int, out: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess("", code, out, "")

    check("vitdeploy gate a", "Gate: FAIL", ended(1, "Gate: FAIL"))
    busy = "Gate: INVALID\n  speed-up          –    1.00   INVALID   doubtful\n"
    check("vitdeploy gate a", "Gate: PASS", ended(3, f"{busy}  verdict          –      INVALID  \n"))
    for shown, code, out in [
        ("", 1, ""),
        ("Gate: PASS", 1, "Gate: FAIL"),
        ("Gate: PASS", 1, "Gate: PASS"),
        ("Gate: PASS", 3, f"{busy}  accuracy drop   0.00   0.10   INVALID   too few\n"),
    ]:
        with pytest.raises(AssertionError):
            check("vitdeploy gate a", shown, ended(code, out))


def make_images(folder: Path) -> None:
    """The digits that come with vitdeploy, one sub-folder for each class."""
    digits = np.load(ROOT / "vitdeploy" / "assets" / "digits.npz")
    for index in digits["test"][:100]:
        save_image(folder / str(digits["labels"][index]) / f"{index}.png", digits["images"][index])


def make_fashion(folder: Path) -> None:
    """Images of Fashion-MNIST: those to calibrate on, or 300 of the test split. Numbered within each class."""
    from benchmarks.fashion_mnist.data import draw_calibration, read_split

    if folder.name == "calibration":
        images, labels = draw_calibration(read_split("train"))
        images, labels = images[::4], labels[::4]
    else:
        images, labels = read_split("test")
        images, labels = images[:300], labels[:300]
    for image, label, number in zip(images, labels, [sum(labels[:i] == c) for i, c in enumerate(labels)], strict=True):
        save_image(folder / str(label) / f"{number}.png", image)


def make_onnx(file: Path) -> None:
    """The trained model of the benchmarks as an ONNX file."""
    from tests import graphs

    file.write_bytes(graphs.legacy(fashion_model(), np.zeros((1, 1, 28, 28), np.float32)))


ANIMALS = ("cat", "dog", "bird")
"""The labels of the page about CLIP. They stand for the digits 0, 1 and 2."""


def make_clip(folder: Path) -> None:
    """A small CLIP without training, whose text tower has been taught what three labels are."""
    from benchmarks.as_clip import save_clip, teach

    digits = np.load(ROOT / "vitdeploy" / "assets" / "digits.npz")
    chosen = [index for index in digits["calibration"] if digits["labels"][index] < len(ANIMALS)]
    save_clip(folder, image=32, width=64, depth=2)
    labels = digits["labels"][chosen].astype(np.int64)
    teach(folder, ANIMALS, list(digits["images"][chosen]), labels, ("a photo of a {}", "a small {}"))


def make_animals(folder: Path) -> None:
    """Digits in sub-folders by the names that they stand for."""
    digits = np.load(ROOT / "vitdeploy" / "assets" / "digits.npz")
    for index in digits["calibration" if folder.name == "calibration" else "test"]:
        label = digits["labels"][index]
        if label < len(ANIMALS):
            save_image(folder / ANIMALS[label] / f"{index}.png", digits["images"][index])


def make_huggingface(folder: Path) -> None:
    """The trained model of the benchmarks as a folder of transformers."""
    from benchmarks.as_transformers import save_copy
    from benchmarks.fashion_mnist.model import MEAN, STD

    save_copy(folder, fashion_model(), MEAN, STD)


def fashion_model() -> Any:
    from safetensors.torch import load_file

    from benchmarks.fashion_mnist.model import build

    model = build().eval()
    model.load_state_dict(load_file(ROOT / "benchmarks" / "fashion_mnist" / "vit.safetensors"))
    return model


def make_detector(folder: Path) -> None:
    """A small YOLOS without training: boxes and scores mean nothing, but they are compared all the same."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, use_mid_position_embeddings=False, id2label={0: "car", 1: "bicycle"},
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def make_street(folder: Path) -> None:
    """Twelve pictures with a box each."""
    random = np.random.default_rng(0)
    for number in range(12):
        save_image(folder / "images" / f"{number}.png", random.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    (folder / "annotations.json").write_text(
        json.dumps(
            {
                "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(12)],
                "annotations": [
                    {"id": n, "image_id": n, "category_id": n % 2, "bbox": [8, 8, 24, 16], "area": 384, "iscrowd": 0}
                    for n in range(12)
                ],
                "categories": [{"id": 0, "name": "car"}, {"id": 1, "name": "bicycle"}],
            }
        )
    )


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


MAKERS: dict[str, Callable[[Path], None]] = {
    "animals": make_animals,
    "clip": make_clip,
    "detector": make_detector,
    "fashion": make_fashion,
    "huggingface": make_huggingface,
    "images": make_images,
    "onnx": make_onnx,
    "street": make_street,
}
