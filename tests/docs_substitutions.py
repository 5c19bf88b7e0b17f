"""The one table of what is not run as it stands in the documentation, each with its reason.

Every command in the pages of `RUN` is run by `test_docs_run.py`, block by block, in an empty folder for each page.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN = (
    "README.md",
    "docs/installation.md",
    "docs/quickstart.md",
    "docs/tutorial.md",
    "docs/tutorials/clip.md",
    "docs/tutorials/detector.md",
    "docs/tutorials/huggingface.md",
    "docs/tutorials/jetson-ssh.md",
    "docs/tutorials/onnx-file.md",
)


@dataclass(frozen=True)
class Replaced:
    """A text in the commands and files of a page, and what replaces it. `{repo}` and `{far}` are filled in."""

    page: str
    text: str
    by: str
    why: str


@dataclass(frozen=True)
class Given:
    """A file or folder that the reader of a page is said to have. `make_NAME` in `test_docs_run.py` makes it."""

    page: str
    path: str
    make: str


@dataclass(frozen=True)
class NotRun:
    """A block that is not run: the one with this text."""

    page: str
    text: str
    why: str


_HUB, _TIME, _BOARD = "a model of a hub", "seconds of measuring", "a board"
_QUICK_DEMO = (
    "sed 's/seconds: 10/seconds: 0.5/' {repo}/recipes/demo.yaml > d.yaml; vitdeploy run d.yaml -o digits-openvino-int8"
)
_INSTALL = "installs packages of gigabytes"

REPLACED = (
    Replaced("README.md", "timm:deit_tiny_patch16_224 --target", "demo:digits --target", _HUB),
    Replaced("README.md", "vitdeploy bench deit", "vitdeploy bench deit --seconds 0.5", _TIME),
    Replaced(
        "docs/quickstart.md",
        "vitdeploy run demo",
        _QUICK_DEMO,
        _TIME,
    ),
    Replaced("docs/quickstart.md", "--weights random", "--weights random --image-size 32x32", "seconds of exporting"),
    Replaced(
        "docs/tutorial.md",
        "vitdeploy run demo",
        _QUICK_DEMO,
        _TIME,
    ),
    Replaced("docs/tutorial.md", "range(40)", "range(8)", "a minute of training"),
    Replaced("docs/tutorial.md", "vitdeploy bench int8", "vitdeploy bench int8 --seconds 0.5", _TIME),
    Replaced("docs/tutorial.md", "vitdeploy bench digits-", "vitdeploy bench --seconds 0.5 digits-", _TIME),
    Replaced("docs/tutorial.md", "seconds: 10", "seconds: 0.5", _TIME),
    Replaced("docs/tutorials/clip.md", "vitdeploy bench", "vitdeploy bench --seconds 0.5", _TIME),
    Replaced("docs/tutorials/detector.md", "seconds: 10", "seconds: 0.5", _TIME),
    Replaced("docs/tutorials/huggingface.md", "vitdeploy bench vit", "vitdeploy bench --seconds 0.5 vit", _TIME),
    Replaced("docs/tutorials/onnx-file.md", "seconds: 10", "seconds: 0.5", _TIME),
    Replaced("docs/tutorials/jetson-ssh.md", "ssh://me@jetson", "{far}", _BOARD),
    Replaced(
        "docs/tutorials/jetson-ssh.md",
        "--target tensorrt --precision auto --calibration images/",
        "--target onnxruntime",
        _BOARD,
    ),
    Replaced("docs/tutorials/jetson-ssh.md", "timm:vit_base_patch16_224", "demo:digits", _HUB),
    Replaced("docs/tutorials/jetson-ssh.md", "vitdeploy bench vit", "vitdeploy bench --seconds 0.5 vit", _TIME),
)

GIVEN = (
    Given("README.md", "images", "images"),
    Given("README.md", "val", "images"),
    Given("docs/tutorials/clip.md", "my-clip", "clip"),
    Given("docs/tutorials/clip.md", "images/calibration", "animals"),
    Given("docs/tutorials/clip.md", "images/val", "animals"),
    Given("docs/tutorials/detector.md", "my-detector", "detector"),
    Given("docs/tutorials/detector.md", "street", "street"),
    Given("docs/tutorials/huggingface.md", "my-vit", "huggingface"),
    Given("docs/tutorials/huggingface.md", "images/calibration", "fashion"),
    Given("docs/tutorials/huggingface.md", "images/val", "fashion"),
    Given("docs/tutorials/jetson-ssh.md", "images/val", "images"),
    Given("docs/tutorials/onnx-file.md", "model.onnx", "onnx"),
    Given("docs/tutorials/onnx-file.md", "images/calibration", "fashion"),
    Given("docs/tutorials/onnx-file.md", "images/val", "fashion"),
)

NOT_RUN = (
    NotRun("README.md", "make demo", "CI runs both, for minutes"),
    NotRun("README.md", "git clone", _INSTALL),
    NotRun("docs/installation.md", "git clone", _INSTALL),
    NotRun("docs/installation.md", "pip wheel", "tests/test_packaging.py builds the wheel and runs it"),
    NotRun("docs/installation.md", "whl/cpu", _INSTALL),
    NotRun("docs/installation.md", "jetson$", _BOARD),
    NotRun("docs/tutorials/jetson-ssh.md", "pip wheel", "copies a file to a board"),
    NotRun("docs/tutorials/jetson-ssh.md", "jetson$", _BOARD),
)
