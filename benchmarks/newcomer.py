"""Follow the first tutorial with a checkpoint of one's own, from `git clone` to the gate, and write the transcript.

    python -m benchmarks.newcomer --repository REPOSITORY [--work DIR]

Every command is one of README's section "Install" or of `docs/tutorial.md`, in their order. What that page says to put
for a checkpoint of timm is put (`INSTEAD`), and nothing else is typed. The model is that of
`benchmarks/checkpoint_forms.py`, whose weights have to be in `build/checkpoint_forms` already. The transcript goes to
`docs/transcripts/fine-tuned-vit.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.checkpoint_forms import DEFAULT_WORK as TRAINED
from benchmarks.fashion_mnist.data import LabelledImages, read_split
from benchmarks.fashion_mnist.model import LABELS
from benchmarks.tables import describe_machine, write_page
from tests.docs_blocks import read_blocks, steps

PAGE = Path("docs/transcripts/fine-tuned-vit.md")
REPLACED = ("instead of", "written")
TUTORIAL = "docs/tutorial.md"
ADDRESS = "https://github.com/OWNER/vitdeploy"
PREPARED = "--crop-pct 1"
INSTEAD = (
    ("python:my_vit.py:build --weights random", f"timm:test_vit --weights best.pth {PREPARED}"),
    ("python:my_vit.py:build --weights weights.safetensors", f"timm:test_vit --weights best.pth {PREPARED}"),
    (" --model python:my_vit.py:build", ""),
    (
        '{spec: "python:my_vit.py:build", weights: weights.safetensors}',
        '{spec: "timm:test_vit", weights: best.pth, crop_pct: 1}',
    ),
    ("images/val/7/1009.png", "images/val/Sneaker/0009.png"),
)
"""What the tutorial says, and what it says to put instead for a checkpoint of timm."""
LEFT_OUT = ("my_vit.py", "train.py", "python train.py")
CALIBRATION_PER_CLASS, TEST_PER_CLASS = 20, 100
_WIDTH = 100


def save_images(folder: Path, split: LabelledImages, count: int) -> None:
    """Save the first images of each class as PNG files in a sub-folder with the class's name."""
    for number, name in enumerate(LABELS):
        place = folder / as_folder(name)
        place.mkdir(parents=True)
        for i, index in enumerate(np.flatnonzero(split.labels == number)[:count]):
            Image.fromarray(split.images[index]).resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{i:04}.png")


def as_folder(name: str) -> str:
    """Return a class name without what a file system does not take."""
    return name.replace("/", "_")


def prepare(project: Path) -> None:
    """Put into a folder what the reader has: a checkpoint, images to calibrate on, and images with labels."""
    project.mkdir(parents=True)
    state = torch.load(TRAINED / "tuned.pt", weights_only=True)
    classes = {as_folder(name): number for number, name in enumerate(LABELS)}
    torch.save({"epoch": 2, "state_dict": state, "class_to_idx": classes}, project / "best.pth")
    save_images(project / "images" / "calibration", read_split("train"), CALIBRATION_PER_CLASS)
    save_images(project / "images" / "val", read_split("test"), TEST_PER_CLASS)


def list_steps() -> Iterator[tuple[str, str, str]]:
    """Yield ("run", command, "") and ("write", file, its text), in the order of the pages."""
    install = next(block for block in read_blocks("README.md") if "git clone" in block.text)
    yield from (("run", command.partition(" #")[0].strip(), "") for command, _ in install.commands)
    yield "run", "mkdir -p ~/my-vit && cd ~/my-vit", ""  # "Work in a folder of your own"
    for kind, name, text in steps(TUTORIAL):
        if name not in LEFT_OUT:
            yield kind, put_instead(name), put_instead(text) if kind == "write" else ""


def put_instead(text: str) -> str:
    """Replace what the page says to replace."""
    for old, new in INSTEAD:
        text = text.replace(old, new)
    return text


def write_script(path: Path) -> None:
    """Write all steps as one script of bash that shows each command, its output and its exit code, unless that is 0."""
    lines = ["show() {", """printf '$ %s\\n' "$1"; eval "$1"; code=$?""",
             """[ $code = 0 ] || printf '[exit code %s]\\n' $code""", "printf '\\n'", "}"]  # fmt: skip
    for kind, name, text in list_steps():
        lines.append(f"show {shlex.quote(name if kind == 'run' else f'cat > {name} <<END{chr(10)}{text}END')}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def shorten(log: str, work: Path) -> str:
    """Take machine paths out of a log, and what pip says before its last line."""
    commands = re.split(r"^(?=\$ )", log.replace(str(work), "~"), flags=re.MULTILINE)
    lines = [line for command in commands for line in _shorten_pip(command.splitlines())]
    return "\n".join(line.rstrip() for line in lines).strip()


def _shorten_pip(lines: list[str]) -> list[str]:
    if not lines or not lines[0].startswith("$ pip "):
        return lines
    *_, last = filter(None, lines)
    return [lines[0], "…", last if len(last) <= _WIDTH else f"{last[:_WIDTH]}…", ""]


def run_script(work: Path, repository: Path) -> str:
    """Run the script in a home folder of its own; `git clone` gets the repository from here. Return its log."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "HOME": str(work), "COLUMNS": "100", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": ADDRESS,
        "GIT_CONFIG_KEY_0": f"url.{repository.resolve()}.insteadOf",
    }  # fmt: skip
    log = work / "log"
    with log.open("w", encoding="utf-8") as out:
        words = ["bash", str(work / "script.sh")]
        subprocess.run(words, cwd=work, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False)
    return log.read_text(encoding="utf-8")


def main() -> None:
    """Prepare, run everything, and write the page."""
    parser = argparse.ArgumentParser(description="Follow the first tutorial with a checkpoint.")
    parser.add_argument("--repository", type=Path, required=True, help="where `git clone` gets vitdeploy from")
    parser.add_argument("--work", type=Path, default=Path("build/newcomer"), help="the newcomer's home; it is replaced")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    PAGE.parent.mkdir(exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    prepare(work / "my-vit")
    write_script(work / "script.sh")
    log = run_script(work, arguments.repository)
    calibration, test = CALIBRATION_PER_CLASS * len(LABELS), TEST_PER_CLASS * len(LABELS)
    heading = [
        "# Transcript: a fine-tuned ViT, from `git clone` to the gate",
        "",
        "What a newcomer types and sees who follows [Install](../../README.md#install) and the",
        "[tutorial](../tutorial.md) with a checkpoint of their own: `test_vit` of timm, fine-tuned on Fashion-MNIST.",
        f"`~/my-vit` has `best.pth`, {calibration} training images in `images/calibration`, and {test:,} test images",
        "in `images/val`.",
        "Every command is one of these pages; `python -m benchmarks.newcomer` types them. `…` stands for lines of pip,",
        "and `~` is the newcomer's home.",
        "",
        describe_machine("torch", "timm", "openvino"),
        "",
        "What the tutorial says to write instead for a checkpoint of timm:",
    ]
    write_page(
        PAGE, heading, REPLACED, [(f"`{old.strip()}`", f"`{new}`" if new else "nothing") for old, new in INSTEAD]
    )
    with PAGE.open("a", encoding="utf-8") as page:
        page.write(f"\n```console\n{shorten(log, work)}\n```\n")


if __name__ == "__main__":
    main()
