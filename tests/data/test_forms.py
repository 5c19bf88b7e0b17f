"""Masks, depths and boxes beside images: every form, and every mistake in them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import scenes
from vitdeploy.data.dataset import Dataset, Form
from vitdeploy.data.geometry import visible_area
from vitdeploy.data.labels import Boxes, ClassMask, DepthMap, InstanceMasks, Keypoints, Label
from vitdeploy.data.opening import guess_form, open_dataset
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

WHOLE = Preprocess(size=(16, 16), resize="exact")
CROP = Preprocess(size=(24, 24), crop_pct=0.75)
COUNT = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scenes.write(tmp_path / "data", COUNT)


def _open(
    folder: Path, form: Form, preprocess: Preprocess = WHOLE, *, labels: tuple[str, ...] | None = None
) -> Dataset:
    return open_dataset(str(folder), preprocess, labels=labels, need_labels=True, split="evaluation", form=form)


def _read(dataset: Dataset) -> dict[int, Label]:
    """Labels by the number in their names."""
    labels_by_number = {}
    for sample in dataset:
        assert isinstance(sample.label, (ClassMask, DepthMap, Boxes, InstanceMasks, Keypoints))
        assert sample.image.shape[1:] in ((16, 16), (24, 24))
        labels_by_number[int(Path(sample.label.name).stem)] = sample.label
    return labels_by_number


@pytest.mark.parametrize("form", ["masks", "depth"])
def test_dense_labels_keep_the_resolution_of_their_image(folder: Path, form: Form) -> None:
    labels_by_number = _read(_open(folder, form))
    assert sorted(labels_by_number) == list(range(COUNT))
    for number, label in labels_by_number.items():
        expected = scenes.scene(number)
        if isinstance(label, ClassMask):
            np.testing.assert_array_equal(label.classes, expected.mask)
        else:
            assert isinstance(label, DepthMap)
            np.testing.assert_array_equal(label.depth, expected.depth)


def test_boxes_are_shares_of_the_input(folder: Path) -> None:
    for number, label in _read(_open(folder, "boxes")).items():
        assert isinstance(label, Boxes)
        shares = [
            (x / scenes.WIDTH, y / scenes.HEIGHT, (x + w) / scenes.WIDTH, (y + h) / scenes.HEIGHT)
            for x, y, w, h, _ in scenes.scene(number).boxes
        ]
        np.testing.assert_allclose(label.boxes, shares)
        assert label.classes.tolist() == [kind for *_, kind in scenes.scene(number).boxes]
        assert not label.crowd.any()


def test_the_view_of_a_centre_crop() -> None:
    # 48 x 64 becomes 32 x 42, of which 24 x 24 in the middle stay.
    top, left, bottom, right = visible_area(scenes.HEIGHT, scenes.WIDTH, CROP)
    assert (top, bottom) == (6, 42)
    assert (left, right) == pytest.approx((9 * 64 / 42, 33 * 64 / 42))
    assert visible_area(scenes.HEIGHT, scenes.WIDTH, WHOLE) == (0, 0, scenes.HEIGHT, scenes.WIDTH)


def _annotate(folder: Path, change: Any) -> None:
    """Change each image and annotation of the file."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    for entry in (*content["images"], *content["annotations"]):
        change(entry)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("form", ["boxes", "instances", "keypoints"])
def test_images_have_the_size_that_was_annotated(folder: Path, form: Form) -> None:
    _write_people(folder, [{**_PERSON, "segmentation": [[30, 10, 45, 10, 45, 20]]}])
    _annotate(folder, lambda entry: entry.pop("width", None))
    assert len(_read(_open(folder, form))) == 1  # a size is not needed
    _annotate(folder, lambda entry: entry.update(height=96, width=128) if "file_name" in entry else None)
    with pytest.raises(DataError, match=r"0000.png is 48x64, but .*annotations.json gives 96x128\.") as caught:
        list(_open(folder, form))
    assert "scale the annotations" in caught.value.fix


def test_a_size_before_exif_rotation_is_refused(folder: Path) -> None:
    _write_people(folder, [_PERSON])
    turned = Image.open(folder / "images" / "0000.png")
    exif = turned.getexif()
    exif[0x0112] = 6  # turn it by a quarter
    turned.save(folder / "images" / "0000.png", exif=exif)
    with pytest.raises(DataError, match=r"is 64x48, but .* gives 48x64: one of them leaves out the EXIF rotation"):
        list(_open(folder, "boxes"))
    _annotate(folder, lambda entry: entry.update(height=64, width=48) if "file_name" in entry else None)
    assert len(_read(_open(folder, "boxes"))) == 1


@pytest.mark.parametrize("form", ["boxes", "instances", "keypoints"])
def test_shares_of_the_image_are_not_pixels(folder: Path, form: Form) -> None:
    shares = {"bbox": [0.1, 0.2, 0.5, 0.4], "segmentation": [[0, 0, 1, 0, 1, 1]], "keypoints": [0.1, 0.2, 2]}
    _write_people(folder, [{**_PERSON, **shares}])
    with pytest.raises(DataError, match=r"annotations.json: all places are from 0 to 1: shares of the image"):
        _open(folder, form)


def test_boxes_of_two_corners_are_refused(folder: Path) -> None:
    def write_corners(entry: dict[str, Any]) -> None:
        if "bbox" in entry:
            left, top, width, height = entry["bbox"]
            entry["bbox"] = [left, top, left + width, top + height]

    _annotate(folder, write_corners)
    with pytest.raises(DataError, match="boxes end outside of their image: are they left, top, right, bottom"):
        _open(folder, "boxes")


def test_labels_are_cropped_as_the_model_sees_the_image(folder: Path) -> None:
    mask, boxes = (_read(_open(folder, form, CROP))[0] for form in ("masks", "boxes"))
    assert isinstance(mask, ClassMask)
    np.testing.assert_array_equal(mask.classes, scenes.scene(0).mask[6:42, 14:50])
    assert isinstance(boxes, Boxes)
    assert ((boxes.boxes >= 0) & (boxes.boxes <= 1)).all()
    # A box of the cropped mask is where the cropped box is, to a pixel.
    for box, kind in zip(boxes.boxes, boxes.classes, strict=True):
        columns = np.flatnonzero((mask.classes == kind + 1).any(axis=0))
        np.testing.assert_allclose(box[[0, 2]] * 36, [columns[0], columns[-1] + 1], atol=1)


def test_an_object_out_of_view_is_none(folder: Path) -> None:
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [{"id": 1, "image_id": 0, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1}]
    (folder / "annotations.json").write_text(json.dumps(content))
    seen, hidden = (_read(_open(folder, "boxes", p))[0] for p in (WHOLE, CROP))
    assert isinstance(seen, Boxes)
    assert isinstance(hidden, Boxes)
    assert (seen.crowd.tolist(), len(hidden.boxes)) == ([True], 0)


def test_categories_are_classes_by_name_else_by_id(folder: Path) -> None:
    def classes(labels: tuple[str, ...] | None) -> set[int]:
        labels_by_number = _read(_open(folder, "boxes", labels=labels))
        return {int(c) for label in labels_by_number.values() if isinstance(label, Boxes) for c in label.classes}

    assert classes(None) <= {0, 1, 2}
    assert classes(("N/A", "diamond", "N/A", "disc", "square")) <= {1, 3, 4}
    assert classes(("LABEL_0", "LABEL_1", "LABEL_2")) == classes(None)  # such names mean nothing
    assert classes(("n/a", "Diamond", "x", "DISC", "Squ-are")) <= {1, 3, 4}
    with pytest.raises(DataError, match="category 'square' is no label of the model; the nearest is 'squares'"):
        classes(("diamond", "disc", "squares"))


def test_a_category_without_objects_needs_no_class(folder: Path) -> None:
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"].insert(0, {"id": 77, "name": "shapes"})  # the parent of the others, as Roboflow writes it
    path.write_text(json.dumps(content))
    dataset = _open(folder, "boxes", labels=("diamond", "disc", "square"))
    assert dataset.order == "labels"
    assert len(_read(dataset)) > 0


def _compressed(mask: Array) -> str:
    from pycocotools import mask as coco_mask

    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode()


def _uncompressed(mask: Array) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return [*([0] if flat[0] else []), *np.diff([0, *edges, flat.size]).tolist()]


def _decoded(label: InstanceMasks) -> list[Array]:
    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2, about pycocotools
        return [coco_mask.decode({"counts": m, "size": list(label.size)}).astype(bool) for m in label.masks.tolist()]


def _write_outlines(folder: Path, outlines: list[Any]) -> Path:
    """Give image 0 objects with these outlines."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = [
        {"id": i, "image_id": 0, "category_id": i % 3, "bbox": [0, 0, 1, 1], "segmentation": o, "iscrowd": i % 2}
        for i, o in enumerate(outlines)
    ]
    path.write_text(json.dumps(content))
    return folder


SIZE = [scenes.HEIGHT, scenes.WIDTH]


def test_masks_of_objects_in_every_form(folder: Path) -> None:
    rng = np.random.default_rng(0)
    noise, shape = rng.random(SIZE) < 0.3, scenes.scene(0).mask > 0
    box = np.zeros(SIZE, bool)
    box[10:20, 30:45] = True
    expected = [shape, noise, ~noise, shape, box, box | np.roll(box, 20, axis=0)]
    polygon = [30, 10, 45, 10, 45, 20, 30, 20]
    outlines = [
        {"size": SIZE, "counts": _compressed(shape)}, {"size": SIZE, "counts": _compressed(noise)},
        {"size": SIZE, "counts": _uncompressed(~noise)}, {"size": SIZE, "counts": _uncompressed(shape)},
        [polygon], [polygon, [x + 20 * (i % 2) for i, x in enumerate(polygon)]],
    ]  # fmt: skip
    label = _read(_open(_write_outlines(folder, outlines), "instances"))[0]
    assert isinstance(label, InstanceMasks)
    assert (label.size, label.view) == ((48, 64), None)
    assert (label.classes.tolist(), label.crowd.tolist()) == ([0, 1, 2, 0, 1, 2], [False, True] * 3)
    for mask, drawn in zip(_decoded(label), expected, strict=True):
        np.testing.assert_array_equal(mask, drawn)


def test_parts_of_two_points_are_left_out_beside_others(folder: Path) -> None:
    polygon = [30, 10, 45, 10, 45, 20, 30, 20]
    label = _read(_open(_write_outlines(folder, [[[1, 2, 3, 4], polygon, []]]), "instances"))[0]
    assert isinstance(label, InstanceMasks)
    (mask,) = _decoded(label)
    assert (mask.sum(), mask[10:20, 30:45].all()) == (150, True)


def test_masks_of_objects_are_cropped_and_those_out_of_view_are_none(folder: Path) -> None:
    shape, corner = scenes.scene(0).mask > 0, np.zeros(SIZE, bool)
    corner[:5, :5] = True
    outlines = [{"size": SIZE, "counts": _compressed(mask)} for mask in (corner, shape)]
    label = _read(_open(_write_outlines(folder, outlines), "instances", CROP))[0]
    assert isinstance(label, InstanceMasks)
    assert (label.classes.tolist(), label.size, label.view) == ([1], (36, 36), None)
    np.testing.assert_array_equal(_decoded(label)[0], shape[6:42, 14:50])


def test_masks_of_objects_in_a_padded_image(folder: Path) -> None:
    shape = scenes.scene(0).mask > 0
    outlines = [{"size": SIZE, "counts": _compressed(shape)}]
    padded = Preprocess(size=(16, 16), resize="letterbox", padding="centre")
    label = _read(_open(_write_outlines(folder, outlines), "instances", padded))[0]
    assert isinstance(label, InstanceMasks)
    assert (label.size, label.view) == ((48, 64), (-8, 0, 56, 64))
    np.testing.assert_array_equal(_decoded(label)[0], shape)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "the mask of annotation 0 is not valid: it has neither polygons nor run lengths"),
        ([], "neither polygons nor run lengths"),
        ([[1, 2, 3, 4]], "a polygon needs three points or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon needs three points or more"),
        ([[1, 2, 3, 4, 5, float("nan")]], "numbers that are not finite"),
        ([[1, 2, 3, 4, 5, "x"]], "the mask of annotation 0 is not valid"),
        ([[1, 1, 9, 1, 9, 1e9]], "0000.png: the mask of annotation 0 does not fit: its point 9,1e.09 is far outside"),
        ({"size": [48, 64], "counts": [5, 5]}, "its run lengths do not add up to 48x64 pixels"),
        ({"size": [48, 64], "counts": [-5, 48 * 64 + 5]}, "its run lengths do not add up"),
        ({"size": [48, 64]}, "the mask of annotation 0 is not valid: 'counts'"),
        ({"size": [48, 64], "counts": "~~"}, "its compressed run lengths are damaged"),
        ({"size": [48, 64], "counts": "oooooooooooo0"}, "its compressed run lengths are damaged"),
        ({"size": [48, 64], "counts": "P"}, "its compressed run lengths are damaged"),
        ({"size": [2, 2], "counts": [0, 4]}, "it is 2x2, but its image is 48x64"),
    ],
)  # fmt: skip
def test_masks_of_objects_that_cannot_be_used(folder: Path, outline: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(_open(_write_outlines(folder, [outline]), "instances"))
    assert caught.value.fix.startswith("Write its segmentation as COCO does")
    assert caught.value.fix.endswith("remove its annotation.")


_PERSON = {
    "id": 7, "image_id": 0, "category_id": 0, "bbox": [10, 4, 20, 40], "area": 400, "iscrowd": 0,
    "keypoints": [12, 10, 2, 0, 0, 0, 25, 30, 1],
}  # fmt: skip
_HIDDEN = {**_PERSON, "id": 8, "keypoints": [0, 0, 0] * 3}


def _write_people(folder: Path, people: list[Any]) -> Path:
    """Keep image 0 only, with these annotations."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content.update(images=content["images"][:1], annotations=people)
    path.write_text(json.dumps(content))
    return folder


def test_keypoints_are_pixels_from_the_corner_of_the_view(folder: Path) -> None:
    (label,) = _read(_open(_write_people(folder, [_PERSON, _HIDDEN]), "keypoints")).values()
    assert isinstance(label, Keypoints)
    assert label.points.tolist() == [[12, 10], [0, 0], [25, 30]]
    assert (label.visible.tolist(), label.scale.tolist()) == ([True, False, True], [400, 40])
    assert label.view.tolist() == [48, 64]
    (cropped,) = _read(_open(folder, "keypoints", CROP)).values()
    assert isinstance(cropped, Keypoints)
    np.testing.assert_allclose(cropped.points[0], [12 - 9 * 64 / 42, 10 - 6])
    np.testing.assert_allclose(cropped.view, [36, 24 * 64 / 42])


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ([], "0000.png has 0 people with keypoints"),
        ([_HIDDEN], "0000.png has 0 people with keypoints"),
        ([_PERSON, {**_PERSON, "id": 9}], "0000.png has 2 people with keypoints, and a pose is that of one person"),
        ([{**_PERSON, "keypoints": [1, 2]}], r"annotation 7 has keypoints that are not valid: \[1.0, 2.0\]"),
        ([{**_PERSON, "keypoints": [1, 2, float("inf")]}], "annotation 7 has keypoints that are not valid"),
        ([{**_PERSON, "area": 0}], "annotation 7 has keypoints, but no box or no area above 0"),
        ([{k: v for k, v in _PERSON.items() if k != "area"}], "no box or no area above 0"),
        ([{**_PERSON, "bbox": [1, 2, 0, 9]}], "no box or no area above 0"),
        ([{**_PERSON, "bbox": None}], "not in COCO's format: TypeError"),
    ],
)
def test_keypoints_that_cannot_be_used(folder: Path, people: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(_open(_write_people(folder, people), "keypoints"))
    assert caught.value.fix


def test_sixteen_bits_palettes_and_integers(folder: Path) -> None:
    wide = np.full((scenes.HEIGHT, scenes.WIDTH), 5000, np.uint16)
    (folder / "depth" / "0000.npy").unlink()
    Image.fromarray(wide).save(folder / "depth" / "0000.png")
    palette = Image.fromarray(scenes.scene(1).mask.astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9] * 256)
    palette.putdata(scenes.scene(1).mask.ravel().tolist())
    palette.save(folder / "masks" / "0001.png")
    depth, mask = _read(_open(folder, "depth"))[0], _read(_open(folder, "masks"))[1]
    assert isinstance(depth, DepthMap)
    assert (depth.depth.dtype, depth.depth[0, 0]) == (np.int64, 5000)
    assert isinstance(mask, ClassMask)
    np.testing.assert_array_equal(mask.classes, scenes.scene(1).mask)


def test_the_digest_follows_the_labels(folder: Path) -> None:
    digests = {form: _open(folder, form).digest for form in ("masks", "depth", "boxes")}
    assert len(set(digests.values())) == 3
    Image.fromarray(np.zeros((scenes.HEIGHT, scenes.WIDTH), np.uint8)).save(folder / "masks" / "0002.png")
    assert _open(folder, "masks").digest != digests["masks"]
    assert _open(folder, "depth").digest == digests["depth"]


def test_to_calibrate_masks_are_no_images(folder: Path) -> None:
    dataset = open_dataset(str(folder), WHOLE, labels=None, need_labels=False, split="calibration")
    assert (len(dataset), dataset.labelled) == (COUNT, False)
    assert guess_form(str(folder)) == "masks"
    assert guess_form(str(folder / "images")) == "classes"


def _json(change: dict[str, Any] | str) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / "annotations.json"
        text = change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change})
        path.write_text(text)

    return spoil


def _save(name: str, values: Any) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / name
        if path.suffix == ".npy":
            np.save(path, values, allow_pickle=True)
        else:
            Image.fromarray(values).save(path)

    return spoil


_SMALL = np.zeros((5, 7), np.uint8)
_BOX = {"id": 9, "image_id": 0, "category_id": 0, "bbox": [1, 1, -4, 4]}


@pytest.mark.parametrize(
    ("form", "spoil", "message"),
    [
        ("masks", lambda f: (f / "masks" / "0003.png").unlink(), r"0003.png has no label masks/0003"),
        ("masks", _save("masks/0001.png", _SMALL), r"masks/0001.png is 5x7, but its image .*0001.png is 48x64"),
        ("masks", _save("masks/0001.png", np.zeros((48, 64, 3), np.uint8)), "an image in mode RGB, not a mask"),
        ("masks", lambda f: (f / "masks" / "0001.png").write_bytes(b"x"), "0001.png is not an image"),
        ("depth", _save("depth/0001.npy", np.zeros((5, 7))), "0001.npy is 5x7, but its image .* is 48x64"),
        ("depth", _save("depth/0001.npy", np.zeros((1, 48, 64))), r"float64 \(1, 48, 64\), not numbers of shape"),
        ("depth", _save("depth/0001.npy", np.array([{}])), "pickled objects"),
        ("depth", lambda f: (f / "depth" / "0001.npy").write_bytes(b"x"), "cannot be read as a plain array"),
        ("boxes", lambda f: (f / "annotations.json").unlink(), r"there is no .*annotations.json"),
        ("boxes", _json("{"), "not readable JSON"),
        ("boxes", _json("[]"), "it is a list"),
        ("boxes", _json({"categories": [{"id": 0}]}), "not in COCO's format: KeyError 'name'"),
        ("boxes", _json({"annotations": [{**_BOX, "image_id": 77}]}), "not in COCO's format: KeyError 77"),
        ("boxes", _json({"annotations": [_BOX]}), r"the box of annotation 9 is not valid: \[1, 1, -4, 4\]"),
        ("boxes", _json({"images": [{"id": 0, "file_name": "no.png"}], "annotations": []}), "no.png, which is not in"),
        ("boxes", _json({"images": [{"id": 0, "file_name": "../a.png"}], "annotations": []}), "is outside of images/"),
        ("boxes", _json({"images": [], "annotations": []}), "has no images"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(folder: Path, form: Form, spoil: Any, message: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        list(_open(folder, form))
    assert caught.value.fix


@pytest.mark.parametrize("form", ["masks", "depth", "boxes", "instances", "keypoints"])
def test_folders_of_another_form(tmp_path: Path, form: Form) -> None:
    with pytest.raises(DataError, match=r"there is no .*missing. Give a folder with images/"):
        _open(tmp_path / "missing", form)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="has no folder images/"):
        _open(tmp_path, form)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(DataError, match="has no images"):
        _open(tmp_path, form)
