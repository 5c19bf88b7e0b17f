"""Pictures get safe and unique names, stay in their folder, and never replace an image or touch an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.errors import UsageError
from vitdeploy.render.picture_folder import PictureFolder, make_names

PICTURE = Image.new("RGB", (4, 4), "red")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Stands for the folder of an artifact."""
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps({}))
    return tmp_path / "artifact"


def test_equal_names_get_numbers() -> None:
    assert make_names(["a/cat.jpg", "b/cat.png", "Cat.bmp", "cat-2.jpg", "dog.jpg"]) == [
        "cat", "cat-2", "Cat-3", "cat-2-2", "dog",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "../../x.png", "/etc/passwd", "..", ".", "", "a\0b.png", "\x1b[31m.png", "x\n.png", "\u202ex.png", "\udcff.png",
        "C:\\x\\..\\y.png", ".hidden.png", "-o.png", "x" * 999, "é" * 250, "猫" * 250, "a:b|c?.png", "con*.png",
    ],
)  # fmt: skip
def test_a_hostile_name_stays_in_the_folder(name: str, tmp_path: Path, artifact: Path) -> None:
    folder = PictureFolder(tmp_path / "out", [name, name], artifact)
    paths = [folder.write_picture(number, PICTURE) for number in range(2)]
    assert {path.parent for path in paths} == {tmp_path / "out"}
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert len(paths) == 2
    for path in paths:
        assert path.name.isprintable()
        assert not path.name.startswith((".", "-"))
        with Image.open(path) as image:
            assert image.size == (4, 4)


def test_ten_thousand_equal_names_take_no_time() -> None:
    assert len(set(make_names(["array"] * 10_000))) == 10_000


def test_other_files_in_the_folder_stay_and_own_ones_are_replaced(tmp_path: Path, artifact: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "cat.png").write_text("old")
    folder = PictureFolder(out, ["elsewhere/cat.jpg"], artifact)
    assert (out / "cat.png").read_text() == "old", "nothing is written before there is an answer"
    folder.write_picture(0, PICTURE)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in out.iterdir()) == ["cat.png", "notes.txt"]
    with Image.open(out / "cat.png") as image:
        assert image.format == "PNG"


def test_a_link_in_the_folder_is_replaced_not_followed(tmp_path: Path, artifact: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious.txt"
    out.mkdir()
    precious.write_text("mine")
    (out / "cat.png").symlink_to(precious)
    PictureFolder(out, ["cat.jpg"], artifact).write_picture(0, PICTURE)
    assert precious.read_text() == "mine"
    assert not (out / "cat.png").is_symlink()


def test_images_are_never_replaced(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "cat.png"
    PICTURE.save(photo)
    before = photo.read_bytes()
    for images in ([str(photo)], ["other/cat.jpg", str(photo)]):
        with pytest.raises(UsageError, match="would replace the image"):
            PictureFolder(photo.parent, images, artifact)
    (tmp_path / "link").symlink_to(photo.parent)
    with pytest.raises(UsageError, match="would replace the image"):
        PictureFolder(tmp_path / "link", [str(photo)], artifact)
    assert photo.read_bytes() == before


@pytest.mark.parametrize("place", ["artifact", "artifact/pictures", "artifact/../artifact", "link", "other"])
def test_nothing_is_written_into_an_artifact(place: str, tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is in an artifact"):
        PictureFolder(tmp_path / place, ["cat.jpg"], artifact)
    assert [p.name for p in artifact.iterdir()] == ["manifest.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place, reason in {"file": "it is a file", "file/below": "Not a directory"}.items():
        with pytest.raises(UsageError, match=f"cannot be made: {reason}"):
            PictureFolder(tmp_path / place, ["cat.jpg"], artifact)
    (tmp_path / "out" / "cat.png").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"cat\.png cannot be written"):
        PictureFolder(tmp_path / "out", ["cat.jpg"], artifact).write_picture(0, PICTURE)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cat.png"], "no temporary file is left"


def test_a_vector_is_read_back(tmp_path: Path, artifact: Path) -> None:
    vector = np.arange(5, dtype=np.float32)
    path = PictureFolder(tmp_path / "out", ["cat.jpg"], artifact).write_vector(0, vector)
    assert path == tmp_path / "out" / "cat.npy"
    np.testing.assert_array_equal(np.load(path), vector)
