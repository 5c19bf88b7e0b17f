"""Folders are matched with a model's labels by name, or refused; never silently in another order."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vitdeploy.data.class_names import ClassNames, are_made_up, imagenet_labels
from vitdeploy.data.dataset import Dataset
from vitdeploy.data.label_file import order_names, read_labels
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

PETS = ("great white shark", "hot-dog", "T-shirt/top", "café", "N/A", "dog")
IMAGENET = imagenet_labels()


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("great white shark", 0),
        ("Great_White_Shark", 0),
        ("great-white  shark", 0),
        ("greatwhiteshark", 0),
        ("hotdog", 1),
        ("Hot Dog", 1),
        (unicodedata.normalize("NFD", "CAFÉ"), 3),
        ("dog", 5),
        ("dogs", None),
        ("shark", None),
    ],
)
def test_case_spaces_underscores_and_hyphens_do_not_count(name: str, index: int | None) -> None:
    assert ClassNames(PETS).find(name) == index


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("n01440764", 0),
        ("tench", 0),
        ("Tinca_tinca", 0),
        ("N03126707", 517),
        ("cardigan", 474),  # the garment: a whole label goes before the synonym of the dog
        ("Cardigan", 264),  # the dog: a name as it is written goes before one in another case
        ("crane bird", 134),
        ("n99999999", None),
    ],
)
def test_imagenet_has_wordnet_ids_and_synonyms(name: str, index: int | None) -> None:
    timm = pytest.importorskip("timm.data.imagenet_info")
    assert ClassNames(tuple(timm.ImageNetInfo().label_descriptions())).find(name) == index


def test_torchvisions_short_names_are_imagenets_too() -> None:
    meta = pytest.importorskip("torchvision.models._meta")
    names = ClassNames(meta._IMAGENET_CATEGORIES)
    wnids = [line.split("\t")[0] for line in _asset().splitlines()]
    assert [names.find(wnid) for wnid in wnids] == list(range(1000))
    assert (names.find("tank suit"), names.find("crane")) == (639, 517)


def _asset() -> str:
    from importlib import resources

    return (resources.files("vitdeploy") / "assets" / "imagenet1k.tsv").read_text()


def test_the_shipped_names_are_those_of_the_libraries() -> None:
    timm, meta = pytest.importorskip("timm.data.imagenet_info"), pytest.importorskip("torchvision.models._meta")
    info = timm.ImageNetInfo()
    rows = [line.split("\t") for line in _asset().splitlines()]
    assert [row[0] for row in rows] == info.label_names()
    for row, description, category in zip(rows, info.label_descriptions(), meta._IMAGENET_CATEGORIES, strict=True):
        assert set(row[1:]) == {*description.split(", "), category}


def test_a_name_of_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match="'maillot' is the name of more than one class"):
        ClassNames(IMAGENET).find("maillot")
    with pytest.raises(DataError, match=r"'crane' is the name of more than one class .* 134 \(n02012849\) or 517"):
        ClassNames(IMAGENET).find("crane")


def test_a_selection_of_imagenet_has_its_wordnet_ids() -> None:
    names = ClassNames((IMAGENET[3], IMAGENET[250], "vizsla", "beagle"))
    assert [names.find(name) for name in ("n01491361", "n02110185", "n02100583", "n02088364")] == [0, 1, 2, 3]
    assert ClassNames(("good part", "bad part", "vizsla")).find("n02100583") is None  # other labels than ImageNet's


@pytest.mark.parametrize(
    ("names", "made_up"),
    [
        (("LABEL_0", "LABEL_1"), True),
        (("class 0", "class 1"), True),
        (("0", "1", "2"), True),
        (("Class-00", "Class-01"), True),
        ((), True),
        (None, True),
        (("1", "2"), False),
        (("LABEL_1", "LABEL_0"), False),
        (("cat", "LABEL_1"), False),
    ],
)
def test_made_up_labels(names: tuple[str, ...] | None, made_up: bool) -> None:
    assert are_made_up(names) is made_up


def _folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / "a.png")
    return root


def _open(root: Path, labels: tuple[str, ...] | None, classes: int | None = None) -> Dataset:
    return open_dataset(
        str(root), Preprocess(size=(8, 8)), labels=labels, need_labels=True, split="evaluation", classes=classes
    )


def _classes(dataset: Dataset) -> dict[int, object]:
    """The first byte of each image, which tells its folder -> its label."""
    return {int(sample.image[0, 0, 0]): sample.label for sample in dataset}


def test_a_subset_in_other_case_is_matched(tmp_path: Path) -> None:
    dataset = _open(_folders(tmp_path, "DOG", "cat"), ("ant", "Cat", "dog"))
    assert (_classes(dataset), dataset.order) == ({0: 2, 1: 1}, "labels")


def test_one_misspelt_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder 'dgo' is no label of the model; the nearest is 'dog'.*--labels"):
        _open(_folders(tmp_path, "ant", "cat", "dgo"), ("dog", "cat", "ant"))


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'hot dog' and 'hot_dog' are both the model's 'Hot-Dog'"):
        _open(_folders(tmp_path, "hot dog", "hot_dog"), ("Hot-Dog", "pizza"))


def test_folders_without_images_need_no_label(tmp_path: Path) -> None:
    (_folders(tmp_path, "cat", "dog") / "__MACOSX").mkdir()
    assert _classes(_open(tmp_path, ("dog", "cat"))) == {0: 1, 1: 0}


def test_labels_that_are_numbers_are_names(tmp_path: Path) -> None:
    coins = ("1", "2", "5", "10")
    assert _classes(_open(_folders(tmp_path / "coins", "10", "5"), coins)) == {0: 3, 1: 2}
    with pytest.raises(DataError, match="class '20' has index 20, but the model has 4 classes"):
        _open(_folders(tmp_path / "more", "10", "20"), coins)


@pytest.mark.parametrize("labels", [None, ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_without_names_the_alphabet_is_assumed_if_the_folders_are_as_many_as_the_classes(
    tmp_path: Path, labels: tuple[str, ...] | None
) -> None:
    folders = _folders(tmp_path, "b", "a", "c")
    dataset = _open(folders, labels, classes=3)
    assert (_classes(dataset), dataset.order, dataset.classes) == ({0: 1, 1: 0, 2: 2}, "alphabet", ("a", "b", "c"))
    with pytest.raises(DataError, match="has 3 folders, and the model has 5 classes without names"):
        _open(folders, None, classes=5)


def test_train_and_val_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _folders(tmp_path / split, "cat", "dog")
    with pytest.raises(DataError, match=r"folders train, val, which are parts of a data set.*Give one .*val"):
        _open(tmp_path, None)
    assert _open(_folders(tmp_path / "vehicles", "train", "car"), ("car", "train")).order == "labels"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\n"),
        ("labels.txt", "\ufeffcat\r\ndog\r\n"),
        ("labels", "cat\ndog"),
        ("labels.json", '["cat", "dog"]'),
        ("labels.json", '{"1": "dog", "0": "cat"}'),
        ("class_to_idx.json", '{"dog": 1, "cat": 0}'),
        ("data.yaml", "path: x\nnames:\n  0: cat\n  1: dog\n"),
        ("data.yml", "nc: 2\nnames: [cat, dog]\n"),
    ],
)
def test_forms_of_a_labels_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(str(tmp_path / name)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.json", '{"0": "cat", "2": "dog"}', "does not name the classes 0, 1, 2, … once each"),
        ("l.json", '["cat", 3]', "once each"),
        ("l.json", "[]", "once each"),
        ("l.json", "{", "not readable JSON"),
        ("l.yaml", "a: [", "not readable YAML"),
        ("l.yaml", "path: x", "once each"),
        ("l.txt", "", "once each"),
        ("l.txt", "cat\n\ndog", "once each"),
        ("l.txt", b"\xff\xfe", "not a text in UTF-8"),
    ],
)
def test_labels_files_that_say_nothing(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_labels(str(tmp_path / name))
    with pytest.raises(DataError, match="there is no file"):
        read_labels(str(tmp_path / "none.txt"))


def test_imagenet_stands_for_its_names() -> None:
    labels = read_labels("imagenet")
    assert (len(labels), labels[0], labels[517]) == (1000, "tench, Tinca tinca", "crane")
    assert order_names(json.loads(json.dumps(dict(enumerate(labels))))) == labels
