"""Files, folders and globs become image files, in the order in which people number them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitdeploy.data.image_files import VIDEO_SUFFIXES, find_images
from vitdeploy.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Frames of two days, and files that are no images."""
    names = (
        "day1/frame10.png", "day1/frame2.JPG", "day1/frame1.png", "day2/deep/frame3.webp", "day2/notes.txt",
        ".hidden/x.png", "day1/.thumb.png", "day1/clip.mp4", "top.png",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def below(root: Path, given: Path | str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(given)]


FRAMES = ["day1/frame1.png", "day1/frame2.JPG", "day1/frame10.png"]


def test_a_folder_is_all_images_below_it_in_the_order_of_their_numbers(tree: Path) -> None:
    assert below(tree, tree / "day1") == FRAMES
    assert below(tree, str(tree)) == [*FRAMES, "day2/deep/frame3.webp", "top.png"]


def test_a_file_is_taken_whatever_its_name(tree: Path) -> None:
    (tree / "photo[1].img").touch()
    assert below(tree, tree / "photo[1].img") == ["photo[1].img"]
    assert below(tree, tree / "day1" / ".thumb.png") == ["day1/.thumb.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("day1/*", FRAMES),
        ("day*", [*FRAMES, "day2/deep/frame3.webp"]),
        ("**/*.png", ["day1/frame1.png", "day1/frame10.png", "top.png"]),
        ("**", [*FRAMES, "day2/deep/frame3.webp", "top.png"]),
        ("day1/frame?.*", FRAMES[:2]),
        (".hidden/*", [".hidden/x.png"]),
        ("day[13]/*0.png", FRAMES[2:]),
    ],
)
def test_a_glob_is_what_it_matches(tree: Path, pattern: str, expected: list[str]) -> None:
    assert below(tree, tree / pattern) == expected


def test_a_relative_glob(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert find_images("day1/*.png") == [Path("day1/frame1.png"), Path("day1/frame10.png")]


def test_a_link_that_leads_back_ends(tree: Path) -> None:
    (tree / "day1" / "again").symlink_to(tree)
    assert below(tree, tree / "day1") == FRAMES
    assert below(tree, tree / "day1" / "**") == FRAMES


@pytest.mark.parametrize(
    ("given", "message", "fix"),
    [
        ("none.png", "there is no image", "Check the path"),
        ("day2/*.png", "no image matches", "Check the pattern"),
        ("none/**/*.png", "no image matches", "Check the pattern"),
        ("day1/x**y.png", "is not a pattern", "whole folders"),
        ("empty", "has no images in it", "Put images there"),
        ("day1/clip.mp4", "is a video", "ffmpeg -i"),
        ("day1/*.mp4", "is a video", "frames/%05d.png"),
        ("x" * 300, "cannot be read", ""),
        ("a\0b", "there is no image", ""),
    ],
)
def test_what_names_no_image_is_one_line(tree: Path, given: str, message: str, fix: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        find_images(f"{tree}/{given}")
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [*sorted(VIDEO_SUFFIXES), ".MP4"])
def test_every_video_is_refused_with_the_command_that_makes_frames(tmp_path: Path, suffix: str) -> None:
    clip = tmp_path / f"my clip{suffix}"
    clip.touch()
    with pytest.raises(DataError) as caught:
        find_images(clip)
    assert f"ffmpeg -i '{clip}' frames/%05d.png" in caught.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tree: Path) -> None:
    (tree / "day2" / "deep").chmod(0)
    try:
        with pytest.raises(DataError, match="Permission denied"):
            find_images(tree)
    finally:
        (tree / "day2" / "deep").chmod(0o755)
