"""Artifacts that the examples run, each made once, and the C++ programs, built once."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests import scenes
from tests.conftest import shared_folder
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.commands.predict import Deployed
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DETECTORS = ("yolos", "lw_detr")
CLOSE = 1e-4

Make = Callable[..., Artifact]
Answers = dict[str, list[list[float | str]]]

_LINE = re.compile(r"  (\d\.\d{6})(?:  (\S+) (\S+) (\S+) (\S+))?  (\d+)  (.+)")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Artifacts of the target onnxruntime: "classifier" (colour, random weights), "digits", "yolos", "lw_detr"."""
    folder = shared_folder(tmp_path_factory) / "examples"
    folder.mkdir(exist_ok=True)
    specs = {"classifier": "timm:test_vit", "digits": "demo:digits"}
    specs |= {name: f"hf:{ROOT / 'tests' / 'tasks' / 'fixtures' / name}" for name in DETECTORS}

    @cache
    def make(name: str, **options: str) -> Artifact:
        out = folder / "-".join((name, *options.values()))
        if name == "classifier":
            options["weights"] = "random"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                recipe = recipes.compose(specs[name], **{"target": "onnxruntime", **options})
                export(recipe, out, Silent(), cache=GraphCache())
        return artifacts.load(out)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two photographs as JPEG and PNG, one of them upright, and three scenes with objects that the detectors know."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    china.save(folder / "china.jpg", quality=90)
    flower.crop((100, 0, 350, 427)).save(folder / "flower.png")
    for number in range(3):
        scene = Image.fromarray(scenes.scene(number).image).resize((333, 251), Image.Resampling.BICUBIC)
        scene.save(folder / f"scene{number}.jpg", quality=92)
    return sorted(folder.iterdir())


def read_answers(printed: str) -> Answers:
    """The lines of an example: image -> score, class, label, and the corners of boxes."""
    answers: Answers = {}
    for line in printed.splitlines():
        if not line.startswith("  "):
            answers[line] = rows = []
            continue
        match = _LINE.fullmatch(line)
        assert match is not None, line
        score, *corners, index, label = match.groups()
        rows.append([float(score), int(index), label, *(float(c) for c in corners if c is not None)])
    return answers


def check_equal_to_predict(artifact: Artifact, photos: list[Path], printed: str) -> None:
    """The classes or boxes of `vitdeploy predict`, in the same order: scores within 1e-4, corners to 0.01 pixels."""
    answers = read_answers(printed)
    assert list(answers) == [str(photo) for photo in photos]
    with Deployed(artifact.path) as deployed:
        expected = deployed.predict([str(photo) for photo in photos])
    assert any(prediction.top or prediction.boxes for prediction in expected)
    for photo, prediction in zip(photos, expected, strict=True):
        rows = [[g.probability, g.index, g.label] for g in prediction.top]
        rows += [[b.score, b.index, b.label, *b.box] for b in prediction.boxes]
        mine = answers[str(photo)]
        assert [row[1:3] for row in mine] == [row[1:3] for row in rows]
        np.testing.assert_allclose([row[0] for row in mine], [row[0] for row in rows], atol=CLOSE)
        np.testing.assert_allclose([row[3:] for row in mine], [row[3:] for row in rows], atol=0.01)


def find_headers() -> Path:
    """The headers of ONNX Runtime. CI brings them if its mirror has them; without them the test is skipped."""
    for folder in (ROOT / "build" / "onnxruntime" / "include", Path("/usr/include/onnxruntime")):
        if (folder / "onnxruntime_cxx_api.h").exists():
            return folder
    pytest.skip("no C++ headers of ONNX Runtime: .ci/onnxruntime-headers brings them")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """`run_onnxruntime`, built by the Makefile of the example, and `planes`, which prints what it would feed."""
    import onnxruntime

    headers = find_headers()
    out = shared_folder(tmp_path_factory) / "cpp"
    found = {name: out / name for name in ("run_onnxruntime", "planes")}
    with FileLock(f"{out}.lock"):
        if not found["planes"].exists():
            out.mkdir(exist_ok=True)
            (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*.*")
            for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the wheel has neither of the two links
                (out / name).symlink_to(library)
            settings = {"OUT": out, "ONNXRUNTIME_INCLUDE": headers, "ONNXRUNTIME_LIB": out}
            make = ["make", "-s", "-C", EXAMPLES / "cpp", found["run_onnxruntime"]]
            environment = {**os.environ, "CXXFLAGS": "-O1 -Werror"}
            subprocess.run([*make, *(f"{k}={v}" for k, v in settings.items())], check=True, env=environment)
            source = Path(__file__).with_name("planes.cpp")
            compiler = ["g++", "-std=c++17", "-O1", "-I", EXAMPLES / "cpp", source, "-o", found["planes"], "-ljpeg"]
            subprocess.run(compiler, check=True)
    return found
