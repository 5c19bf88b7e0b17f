"""Every task on the command line: export, eval, gate, predict, with models of each library that has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from tests import scenes
from tests.cli.conftest import Ended, run
from tests.tasks import models

pytestmark = pytest.mark.slow

IMAGES = 40


@dataclass(frozen=True)
class Case:
    """A model, its task, the metric that gates look at and what it at least reaches."""

    model: str
    task: str
    metric: str
    least: float
    options: tuple[str, ...] = ()


HF = {
    name: Case(f"hf:{models.FIXTURES / name}", *facts)
    for name, facts in {
        "segformer": ("segmentation", "miou", 60.0),
        "dpt": ("depth", "delta1", 60.0),
        "yolos": ("detection", "map", 10.0),
    }.items()
}

MOSTLY_FLOAT = {"dpt"}
"""Models whose INT8 artifact is INT8 in name only: most of their products are convolutions, which stay in float."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with masks, depths and boxes."""
    return scenes.write(tmp_path_factory.mktemp("scenes") / "data", IMAGES)


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other scenes than those of `data`: images that calibrated an artifact prove nothing about it."""
    return scenes.write(tmp_path_factory.mktemp("scenes") / "calibration", IMAGES, first=1000) / "images"


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in class folders."""
    return scenes.write_classes(tmp_path_factory.mktemp("scenes") / "classes", 12)


def answer(found: Ended, code: int = 0) -> Any:
    """What a command printed."""
    assert found.code == code, found.err + found.out
    return json.loads(found.out)


def export(model: str, out: Path, *words: object) -> Path:
    """The artifact of a model."""
    answer(run("export", model, "-o", out, *words, "--json"))
    return out


@pytest.mark.parametrize(
    ("target", "precision"), [("onnxruntime", "fp32"), pytest.param("openvino", "int8", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", list(HF))
def test_models_of_transformers(
    name: str, target: str, precision: str, data: Path, calibration: Path, tmp_path: Path
) -> None:
    case = HF[name]
    out = export(
        case.model, tmp_path / "out", "--target", target, "--precision", precision, "--calibration", calibration
    )
    found = answer(run("eval", out, "--data", data, "--json"))
    assert (found["task"], found["n"], found["doubts"]) == (case.task, IMAGES, [])
    first, metric = next(iter(found["metrics"].items()))
    assert first == case.metric
    assert metric["reference"] > case.least
    assert metric["lower95"] <= metric["drop"] <= metric["upper95"]
    assert 0.8 < found["agreement"] <= 1
    if precision == "fp32":
        assert found["agreement"] > 0.995
        assert abs(metric["drop"]) < 0.1
    if name in MOSTLY_FLOAT and precision == "int8":
        verdict = answer(run("gate", out, "--max-drop", 15, "--json"), code=3)
        assert "of the multiply-accumulates that could be int8 are" in verdict["checks"][0]["why"]
        return
    verdict = answer(run("gate", out, "--max-drop", 15, "--json"))
    assert verdict["verdict"] == "pass", verdict
    tight = answer(run("gate", out, "--max-drop", 0.001, "--json"), code=3 if metric["lower95"] <= 0.001 else 1)
    assert tight["verdict"] != "pass"
    assert case.metric in tight["checks"][0]["why"]


def test_a_timm_model_without_a_head_gives_vectors(classes: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    weights = models.vit(tmp_path / "vit.safetensors")
    model = {"spec": "timm:vit_tiny_patch16_224", "weights": str(weights), "kwargs": models.VIT}
    recipe.write_text(
        json.dumps({"model": model, "target": {"kind": "openvino"}, "task": {"kind": "embedding", "k": 3}})
    )
    answer(run("run", recipe, "-o", tmp_path / "out", "--data", classes, "--json"), code=3)  # no limits were given
    found = answer(run("eval", tmp_path / "out", "--data", classes, "--json"))
    assert (found["task"], list(found["metrics"])) == ("embedding", ["recall1", "recall_k", "knn_agreement", "cosine"])
    assert found["metrics"]["recall1"]["reference"] > 80
    assert found["metrics"]["cosine"]["deployed"] == pytest.approx(100, abs=0.01)
    image = next(classes.rglob("*.png"))
    (said,) = answer(run("predict", tmp_path / "out", image, "--json"))["predictions"]
    assert np.linalg.norm(said["embedding"]) == pytest.approx(1)
    assert "vector of 48 numbers, length 1" in run("predict", tmp_path / "out", image).out


def test_a_segmentation_model_of_torchvision(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    model = {"spec": "torchvision:lraspp_mobilenet_v3_large", "weights": "random", "kwargs": {"num_classes": 4}}
    recipe.write_text(json.dumps({"model": model, "target": {"kind": "onnxruntime"}}))
    out = export(model["spec"], tmp_path / "out", "--recipe", recipe, "--image-size", "48x64")
    found = answer(run("eval", out, "--data", data, "--json"))
    assert (found["task"], found["n"]) == ("segmentation", IMAGES)
    assert found["agreement"] > 0.995
    verdict = answer(run("gate", out, "--max-drop", 5, "--json"), code=3)
    assert "random weights" in verdict["checks"][0]["why"]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An artifact of each model of transformers, made once. Not to be changed."""
    root = tmp_path_factory.mktemp("artifacts")

    def made(name: str) -> Path:
        out = root / name
        return out if out.exists() else export(HF[name].model, out, "--target", "onnxruntime")

    return made


def test_what_each_task_predicts(artifacts: Callable[[str], Path], data: Path) -> None:
    image, truth = data / "images" / "0003.png", scenes.scene(3)
    said = {n: answer(run("predict", artifacts(n), image, "--json"))["predictions"][0] for n in HF}
    assert [said[n]["task"] for n in HF] == ["segmentation", "depth", "detection"]
    shares = {region["label"]: region["share"] for region in said["segformer"]["regions"]}
    assert shares["floor"] == pytest.approx((truth.mask == 0).mean(), abs=0.1)
    assert said["dpt"]["depth"]["nearest"] > said["dpt"]["depth"]["farthest"]  # of inverse depth
    assert said["yolos"]["boxes"]
    text = "".join(run("predict", artifacts(n), image).out for n in HF)
    assert "%  floor" in text
    assert "nearest" in text
    assert " to " in text


def test_masks_in_another_order_are_doubtful_and_not_gated(
    artifacts: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(artifacts("segformer"), tmp_path / "out"))
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    for path in (moved / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) + 1) % 4).save(path)
    found = run("eval", out, "--data", moved)
    assert found.code == 0
    assert "are the masks in" in " ".join(found.err.split())
    verdict = answer(run("gate", out, "--max-drop", 50, "--json"), code=3)
    assert verdict["checks"][0]["why"].startswith("doubtful: ")


def test_data_of_another_task_is_told_in_one_line(
    artifacts: Callable[[str], Path], data: Path, classes: Path, tmp_path: Path
) -> None:
    assert "has no folder images/ in it" in run("eval", artifacts("segformer"), "--data", classes).error
    spoilt = Path(shutil.copytree(data, tmp_path / "spoilt"))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(spoilt / "masks" / "0000.png")
    assert "is 5x5, but its image" in run("eval", artifacts("segformer"), "--data", spoilt).error
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(spoilt / "masks" / "0000.png")
    assert "class 9 is none of the model's 4" in run("eval", artifacts("segformer"), "--data", spoilt).error


def test_another_task_than_the_models_own(tmp_path: Path, classes: Path) -> None:
    model = HF["segformer"].model
    found = run("export", model, "--target", "onnxruntime", "--task", "sementation", "-o", tmp_path / "out")
    assert found.code == 2
    assert "segmentation" in found.err
    out = export(model, tmp_path / "out", "--target", "onnxruntime", "--task", "classification")
    assert json.loads((out / "manifest.json").read_text())["recipe"]["task"] == {"kind": "classification"}
    assert "no output is (batch, classes)" in run("eval", out, "--data", classes).error


def _save_maskformer(folder: Path) -> Path:
    """Save a small MaskFormer without training, with a processor that squashes images to 64x64."""
    import torch
    import transformers

    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"], drop_path_rate=0.0,
    )  # fmt: skip
    decoder = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=transformers.ResNetConfig(),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=6, dropout=0.0,
    )  # fmt: skip
    labels = dict(enumerate(scenes.NAMES[1:]))
    torch.manual_seed(0)
    config = transformers.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, id2label=labels,
    )  # fmt: skip
    transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    facts = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def _label_with_its_own_masks(artifact: Path, data: Path) -> int:
    """Replace the objects of scenes by those that the artifact sees; return their number."""
    from pycocotools import mask as coco_mask

    from vitdeploy import load
    from vitdeploy.data.images import open_image
    from vitdeploy.data.preprocess import normalize, to_pixels
    from vitdeploy.tasks import find

    path = data / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = []
    view = (0.0, 0.0, float(scenes.HEIGHT), float(scenes.WIDTH))
    with load(artifact) as deployed:
        manifest = deployed.artifact.manifest
        task = find(manifest.recipe.task)
        for image in content["images"]:
            pixels = to_pixels(open_image(data / "images" / image["file_name"]), manifest.preprocess)
            outputs = task.select_outputs(deployed.run(normalize(pixels, manifest.preprocess)[None]))
            numbers = task.map_pixels(outputs, view, (scenes.HEIGHT, scenes.WIDTH))
            for number, one in enumerate(task.describe(outputs, None, view).instances, start=1):
                runs = coco_mask.encode(np.asfortranarray(numbers == number, dtype=np.uint8))
                segmentation = {"size": [scenes.HEIGHT, scenes.WIDTH], "counts": runs["counts"].decode()}
                facts = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "category_id": one.index}
                content["annotations"].append({**facts, "segmentation": segmentation, "iscrowd": 0})
    path.write_text(json.dumps(content))
    return len(content["annotations"])


def _save_vitpose(folder: Path) -> Path:
    """Save a small ViTPose without training, with the processor of its class."""
    import torch
    import transformers

    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[8, 8], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2], part_features=8,
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.VitPoseConfig(backbone_config=backbone, scale_factor=2, num_labels=17)
    transformers.VitPoseForPoseEstimation(config).save_pretrained(folder)
    transformers.VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def _label_with_its_own_keypoints(artifact: Path, data: Path) -> None:
    """Replace the objects of scenes by one person in each, with the keypoints that the artifact sees."""
    images = sorted((data / "images").iterdir())
    said = answer(run("predict", artifact, *images, "--json"))["predictions"]
    path = data / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = [
        {
            "id": number, "image_id": number, "category_id": 0, "iscrowd": 0, "area": 2000,
            "bbox": [0, 0, scenes.WIDTH, scenes.HEIGHT],
            "keypoints": [x for k in one["keypoints"] for x in (k["x"], k["y"], 2)],
        }
        for number, one in enumerate(said)
    ]  # fmt: skip
    path.write_text(json.dumps(content))


def test_a_pose_from_export_to_gate(tmp_path: Path) -> None:
    model = _save_vitpose(tmp_path / "vitpose")
    out = export(f"hf:{model}", tmp_path / "out", "--target", "onnxruntime")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["task"] == {"kind": "pose"}
    assert (manifest["preprocess"]["resize"], manifest["preprocess"]["size"]) == ("letterbox", [64, 48])
    data = scenes.write(tmp_path / "data", 10)
    _label_with_its_own_keypoints(out, data)
    found = answer(run("eval", out, "--data", data, "--json"))
    assert (found["task"], found["n"], found["doubts"]) == ("pose", 10, [])
    assert [(name, metric["better"]) for name, metric in found["metrics"].items()] == [
        ("oks", "higher"), ("pck", "higher"), ("nme", "lower")
    ]  # fmt: skip
    assert found["metrics"]["oks"]["reference"] > 99
    assert found["metrics"]["nme"]["reference"] < 1
    assert found["agreement"] > 0.99
    assert answer(run("gate", out, "--max-drop", 60, "--json"))["verdict"] == "pass"
    image = data / "images" / "0003.png"
    (said,) = answer(run("predict", out, image, "--save", tmp_path / "saved", "--json"))["predictions"]
    assert [k["label"] for k in said["keypoints"]][:2] == ["nose", "left eye"]
    with Image.open(said["saved"]) as drawn:
        assert drawn.size == (640, 480)
    assert "%  right ankle" in run("predict", out, image).out
    content = json.loads((data / "annotations.json").read_text())
    content["annotations"][1]["image_id"] = 0
    (data / "annotations.json").write_text(json.dumps(content))
    assert "people with keypoints, and a pose is that of one person" in run("eval", out, "--data", data).error


def test_instance_segmentation_from_export_to_gate(tmp_path: Path) -> None:
    model = _save_maskformer(tmp_path / "maskformer")
    recipe = tmp_path / "recipe.yaml"
    task = {"kind": "instance-segmentation", "confident": 0.15}
    recipe.write_text(json.dumps({"model": f"hf:{model}", "target": {"kind": "onnxruntime"}, "task": task}))
    out = export(f"hf:{model}", tmp_path / "out", "--recipe", recipe)
    data = scenes.write(tmp_path / "data", 10)
    assert _label_with_its_own_masks(out, data) >= 10
    found = answer(run("eval", out, "--data", data, "--json"))
    assert (found["task"], found["n"], found["doubts"]) == ("instance-segmentation", 10, [])
    assert list(found["metrics"]) == ["mask_map", "mask_map50", "mask_map75"]
    metric = found["metrics"]["mask_map"]
    assert (metric["unit"], metric["better"]) == ("points", "higher")
    assert metric["reference"] > 10  # of masks that overlap, the label has only the uppermost
    assert abs(metric["drop"]) < 0.5
    assert found["agreement"] > 0.99
    assert answer(run("gate", out, "--max-drop", 60, "--json"))["verdict"] == "pass"
    image = data / "images" / "0003.png"
    (said,) = answer(run("predict", out, image, "--save", tmp_path / "saved", "--json"))["predictions"]
    first = said["instances"][0]
    assert first["label"] in scenes.NAMES[1:]
    assert 0 < first["area"] <= scenes.HEIGHT * scenes.WIDTH
    with Image.open(said["saved"]) as drawn:
        assert drawn.size == (640, 480)
    assert " pixels" in run("predict", out, image).out
    content = json.loads((data / "annotations.json").read_text())
    content["annotations"][0]["segmentation"] = []
    (data / "annotations.json").write_text(json.dumps(content))
    assert "the mask of annotation 1 is not valid" in run("eval", out, "--data", data).error
