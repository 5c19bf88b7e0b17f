"""`model_info` in a packaged IR, read by OpenVINO's Model API itself: its classes are those of `predict`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import ClassificationModel
from PIL import Image

from vitdeploy.artifact import Artifact, TensorSpec
from vitdeploy.commands.package import package
from vitdeploy.commands.package._model_info import describe_model
from vitdeploy.commands.predict import Deployed
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess, TaskSpec

Made = Callable[..., Artifact]


def classify(artifact: Artifact, image: Image.Image, out: Path) -> list[tuple[int, str, float]]:
    """The classes that Model API reads, told nothing but the path of the model and the precision to compute in."""
    package(artifact, "ovms", out, {"name": "m"})
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    adapter = OpenvinoAdapter(create_core(), str(out / "m/1/model.xml"), device="CPU", plugin_config=settings)
    model = ClassificationModel(adapter, preload=True)
    answer = model(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # BGR, as OpenCV reads images
    return [(int(label.id), label.name, float(label.confidence)) for label in answer.top_labels]


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "exact", "crop_pct": 1.0},
        {"crop_pct": 1.0, "batch": "1:2:4"},
        {"crop_pct": 1.0, "input_form": "pixels"},
        {"crop_pct": 1.0, "input_form": "uint8"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_model_api_classifies_as_predict_does(
    options: dict[str, Any], classifier: Made, photos: list[Path], tmp_path: Path
) -> None:
    artifact = classifier(**options)
    height, width = artifact.manifest.preprocess.size
    with Image.open(photos[0]) as photo:
        image = photo.convert("RGB").resize((width, height))  # Model API does not antialias
    classes = classify(artifact, image, tmp_path / "out")
    with Deployed(artifact.path) as deployed:
        (expected,) = deployed.predict([image])
    assert [index for index, _, _ in classes] == [guess.index for guess in expected.top]
    assert [name for _, name, _ in classes] == ["_".join(guess.label.split()) for guess in expected.top]
    np.testing.assert_allclose([p for _, _, p in classes], [guess.probability for guess in expected.top], rtol=1e-4)


@pytest.mark.parametrize("options", [{"crop_pct": 1.0, "batch": "1:2:4"}, {"resize": "letterbox"}], ids=["crop", "pad"])
def test_it_cuts_or_pads_the_same_part(options: dict[str, Any], classifier: Made, tmp_path: Path) -> None:
    """A smooth oblong picture, which every filter resizes to about the same pixels."""
    artifact = classifier(**options)
    rows, columns = np.mgrid[0:200, 0:320].astype(np.float32)
    picture = np.stack([columns * 0.75, rows, 255 - columns * 0.5], axis=-1)
    image = Image.fromarray(picture.astype(np.uint8))
    classes = {index: p for index, _, p in classify(artifact, image, tmp_path / "out")}
    with Deployed(artifact.path) as deployed:
        (expected,) = deployed.predict([image])
        (stretched,) = deployed.predict([image.resize((200, 200))])
    right = {guess.index: guess.probability for guess in expected.top}
    wrong = {guess.index: guess.probability for guess in stretched.top}
    first = expected.top[0].index
    assert first in classes
    assert abs(classes[first] - right[first]) < 0.25 * abs(wrong.get(first, 0) - right[first])


def test_what_model_api_cannot_do_is_left_out(classifier: Made) -> None:
    artifact = classifier(crop_pct=1.0, batch="1:2:4")
    manifest = artifact.manifest
    (image,), (scores,) = manifest.inputs, manifest.outputs
    info, reason = describe_model(manifest)
    assert (info["model_type"], info["resize_type"], info["reverse_input_channels"]) == (
        "Classification",
        "crop",
        "True",
    )
    assert [round(float(value), 3) for value in info["mean_values"].split()] == [
        round(255 * mean, 3) for mean in manifest.preprocess.mean
    ]
    assert not reason

    def prepared(**changes: object) -> Any:
        fields = {**manifest.preprocess.model_dump(), **changes}
        return replace(manifest, preprocess=Preprocess.model_validate(fields))

    recipe = manifest.recipe
    letterbox = {"resize": "letterbox", "resize_to": None}
    cases: dict[str, list[Any]] = {
        "crops or pads": [
            prepared(crop_pct=0.9),
            prepared(resize_to=(300, 300)),
            prepared(**letterbox, padding="end"),
            prepared(**letterbox, fill=(1, 2, 3)),
            prepared(**letterbox, enlarge=False, fill=(0, 0, 0)),
        ],
        "grey images": [prepared(channels=1, mean=(0.5,), std=(0.5,), fill=None)],
        "one image input": [
            replace(manifest, inputs=(image, image)),
            prepared(**letterbox, mask=True),
            replace(manifest, inputs=(replace(image, shape=(1, 8, *image.shape[1:])),)),
        ],
        "task depth": [replace(manifest, recipe=replace(recipe, task=TaskSpec.model_validate({"kind": "depth"})))],
        "outputs of this form": [
            replace(manifest, outputs=(scores, TensorSpec(name="more", dtype="float", shape=(1, 2))))
        ],
    }
    for expected, manifests in cases.items():
        for changed in manifests:
            info, reason = describe_model(changed)
            assert info == {}
            assert expected in reason
    bgr = describe_model(prepared(channel_order="bgr"))[0]
    assert bgr["reverse_input_channels"] == "False"


def test_the_package_says_why_there_is_none(classifier: Made, tmp_path: Path) -> None:
    artifact = classifier(crop_pct=1.0, batch="1:2:4")
    manifest = artifact.manifest
    cropped = replace(manifest, preprocess=replace(manifest.preprocess, crop_pct=0.9))
    packaged = package(dataclasses.replace(artifact, manifest=cropped), "ovms", tmp_path / "out", {"name": "m"})
    assert any("has no model_info: Model API crops or pads" in note for note in packaged.notes)
    assert b"model_info" not in (tmp_path / "out/m/1/model.xml").read_bytes()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A colour classifier for OpenVINO with random weights, by the options of export."""
    from filelock import FileLock

    from tests.conftest import shared_folder
    from vitdeploy import artifact as artifacts
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import export
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    folder = shared_folder(tmp_path_factory) / "model_info"
    folder.mkdir(exist_ok=True)

    def make(**options: Any) -> Artifact:
        out = folder / "-".join(str(value).replace(":", ".") for value in options.values())
        with FileLock(f"{out}.lock"):
            if not out.exists():
                recipe = recipes.compose("timm:test_vit", target="openvino", weights="random", **options)
                export(recipe, out, Silent(), cache=GraphCache())
        return artifacts.load(out)

    return make
