"""Checkpoints as training scripts leave them: the right part, the right keys, and as many classes as the head has."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import LoadedModel, load
from vitdeploy.sources._weights import weights_digest

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32}
CLASSES = 7
State = dict[str, torch.Tensor]


def tuned(seed: int = 0, **kwargs: Any) -> torch.nn.Module:
    """A small ViT of seven classes."""
    torch.manual_seed(seed)
    return timm.create_model(NAME, **{**SMALL, "num_classes": CLASSES, **kwargs}).eval()


def other(state: State) -> State:
    """Other weights with the same keys."""
    return {key: value + 1 for key, value in state.items()}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def shards(path: Path, state: State, write: Callable[[State, Path], None], suffix: str) -> Path:
    """Split a state dict into two files and an index."""
    keys = list(state)
    names = [f"{path.stem}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        write({key: state[key] for key in half}, path / name)
    index = path / f"model{suffix}.index.json"
    places = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def saved(name: str) -> Callable[[Path, object], Path]:
    """Save with torch.save under this name."""

    def write(folder: Path, content: object) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return write


FORMS: dict[str, tuple[Callable[[Path, State], Path], dict[str, Any]]] = {
    "a .safetensors": (lambda f, s: (save_file(s, f / "w.safetensors"), f / "w.safetensors")[1], {}),
    "a .pt": (lambda f, s: saved("w.pt")(f, s), {}),
    "a .pth": (lambda f, s: saved("w.pth")(f, s), {}),
    "a .bin": (lambda f, s: saved("pytorch_model.bin")(f, s), {}),
    "a .pth.tar under state_dict": (lambda f, s: saved("model_best.pth.tar")(f, {"epoch": 3, "state_dict": s}), {}),
    "safetensors in two files": (
        lambda f, s: shards(f, s, lambda part, path: save_file(part, path), ".safetensors"),
        {},
    ),
    "a .bin in two files": (lambda f, s: shards(f, s, torch.save, ".bin"), {}),
    "Lightning, all keys with model.": (
        lambda f, s: saved("last.ckpt")(f, {"epoch": 3, "state_dict": under("model.", s), "callbacks": {}}),
        {"prefix": "model."},
    ),
    "Lightning with the weights of a loss": (
        lambda f, s: saved("last.ckpt")(f, {"state_dict": under("model.", s) | {"criterion.weight": torch.ones(7)}}),
        {"prefix": "model.", "left_out": ("criterion.weight",)},
    ),
    "under model": (lambda f, s: saved("w.pth")(f, {"model": s, "args": {"lr": 0.1}}), {"key": "model"}),
    "under model_state_dict": (lambda f, s: saved("w.pt")(f, {"model_state_dict": s}), {"key": "model_state_dict"}),
    "under module": (lambda f, s: saved("w.pt")(f, {"module": s, "step": 1}), {"key": "module"}),
    "under model.state_dict": (
        lambda f, s: saved("w.pt")(f, {"model": {"state_dict": s}}),
        {"key": "model.state_dict"},
    ),
    "of DistributedDataParallel": (lambda f, s: saved("w.pt")(f, under("module.", s)), {"prefix": "module."}),
    "of torch.compile": (lambda f, s: saved("w.pt")(f, under("_orig_mod.", s)), {"prefix": "_orig_mod."}),
    "of both": (
        lambda f, s: saved("w.pt")(f, {"state_dict": under("module._orig_mod.", s)}),
        {"prefix": "module._orig_mod."},
    ),
    "net.": (lambda f, s: saved("w.pt")(f, under("net.", s)), {"prefix": "net."}),
    "backbone.": (lambda f, s: saved("w.pt")(f, under("backbone.", s)), {"prefix": "backbone."}),
    "encoder. in model.": (lambda f, s: saved("w.pt")(f, under("model.encoder.", s)), {"prefix": "model.encoder."}),
    "timm's, beside averaged weights": (
        lambda f, s: saved("w.pth.tar")(f, {"arch": NAME, "state_dict": s, "state_dict_ema": other(s)}),
        {"key": "state_dict", "others": ("state_dict_ema",)},
    ),
    "timm's averaged weights": (
        lambda f, s: saved("w.pth.tar")(f, {"state_dict": other(s), "state_dict_ema": under("module.", s)}),
        {"ask": "ema", "key": "state_dict_ema", "prefix": "module."},
    ),
    "under ema.module": (
        lambda f, s: saved("w.pt")(f, {"ema": {"module": s}, "model": other(s)}),
        {"ask": "ema", "key": "ema.module"},
    ),
    "the teacher of DINO": (
        lambda f, s: saved("w.pth")(f, {"student": other(s), "teacher": under("backbone.", s)}),
        {"ask": "teacher", "key": "teacher", "prefix": "backbone."},
    ),
    "under a name of one's own": (lambda f, s: saved("w.pt")(f, {"weights": s, "note": "x"}), {"key": "weights"}),
}


def read(path: Path, *, size: tuple[int, int] | None = None, **spec: Any) -> LoadedModel:
    kwargs = {**SMALL, **spec.pop("kwargs", {})}
    return load(ModelSpec(spec=f"timm:{NAME}", weights=str(path), kwargs=kwargs, **spec), size=size)


def test_there_are_24_forms() -> None:
    assert len(FORMS) == 24


@pytest.mark.parametrize("form", FORMS)
def test_a_fine_tuned_checkpoint_loads_with_its_own_head(form: str, tmp_path: Path) -> None:
    write, expected = FORMS[form]
    module = tuned()
    path = write(tmp_path, module.state_dict())
    model = read(path, weights_key=expected.get("ask"))
    assert model.digest == weights_digest(module)
    use = model.checkpoint
    assert use is not None
    assert use.classes == CLASSES
    assert use.prefix == expected.get("prefix", "")
    assert use.left_out == expected.get("left_out", ())
    if "key" in expected:
        assert use.key == expected["key"]
    if "others" in expected:
        assert use.others == expected["others"]
    said = use.describe()
    assert path.name in said
    assert all(repr(part) in said for part in (use.prefix, use.key) if part)


def test_what_was_used_is_one_line(tmp_path: Path) -> None:
    state = under("model.", tuned().state_dict()) | {"loss.weight": torch.ones(1)}
    use = read(saved("best.ckpt")(tmp_path, {"state_dict": state, "ema": other(state)})).checkpoint
    assert use is not None
    assert use.describe() == (
        "weights from 'state_dict' of best.ckpt; not from 'ema'; keys without 'model.'; "
        "without 'loss.weight'; 7 classes, as its head has"
    )


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        (
            lambda s: {"state_dict": s, "hyper_parameters": argparse.Namespace(lr=1)},
            {},
            "argparse.Namespace.*Where you",
        ),
        (lambda s: {"state_dict": s}, {"weights_key": "ema"}, r"no averaged weights \(EMA\). It has: state_dict"),
        (lambda s: {"state_dict": s}, {"weights_key": "state_dit"}, "did you mean 'state_dict'"),
        (lambda s: {"a": s, "b": s}, {}, "several state dicts: a, b. Choose one with --weights-key"),
        (
            lambda s: under("model.", s) | under("net.", other(s)),
            {},
            "holds the model twice, under 'model.' and 'net.'",
        ),
        (lambda s: {k: v for k, v in s.items() if "head" not in k}, {}, "2 missing keys.*--num-classes 0"),
        (lambda s: s | {"head.weight": torch.ones(9, 24)}, {"num_classes": 7}, "1 keys of another shape"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(
    content: Callable[[State], object], spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved("best.pt")(tmp_path, content(tuned().state_dict()))
    with pytest.raises(SourceError, match=message):
        read(path, **spec)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
    path = saved("w.pt")(tmp_path, module.state_dict())
    with pytest.raises(SourceError, match="Give timm:deit_tiny_distilled_patch16_224"):
        load(ModelSpec(spec="timm:deit_tiny_patch16_224", weights=str(path)))


def test_a_classifier_becomes_an_embedding_on_request(tmp_path: Path) -> None:
    path = saved("w.pt")(tmp_path, tuned().state_dict())
    model = read(path, num_classes=0)
    assert model.task is not None
    assert model.task.kind == "embedding"
    assert model.checkpoint is not None
    assert model.checkpoint.left_out == ("head.weight", "head.bias")


def test_the_image_size_is_that_of_the_position_embedding(tmp_path: Path) -> None:
    module = tuned(img_size=64)
    path = saved("w.pt")(tmp_path, module.state_dict())
    model = read(path)
    assert model.preprocess.size == (64, 64)
    assert model.digest == weights_digest(module)
    assert model.checkpoint is not None
    assert (model.checkpoint.size, model.checkpoint.resampled) == ((64, 64), False)


def test_another_size_is_resampled_by_timm_and_said(tmp_path: Path) -> None:
    module = tuned(img_size=64)
    path = saved("w.pt")(tmp_path, module.state_dict())
    model = read(path, size=(96, 48))
    module.set_input_size(img_size=(96, 48))
    assert model.preprocess.size == (96, 48)
    assert model.digest == weights_digest(module)
    assert model.checkpoint is not None
    assert "position embedding of 64x64, resampled" in model.checkpoint.describe()


def test_a_position_embedding_that_is_no_square_needs_the_size(tmp_path: Path) -> None:
    path = saved("w.pt")(tmp_path, tuned(img_size=(64, 96)).state_dict())
    with pytest.raises(SourceError, match="for 24 patches, which are no square"):
        read(path)
    assert read(path, size=(64, 96)).preprocess.size == (64, 96)


def test_grey_checkpoints_make_grey_models(tmp_path: Path) -> None:
    path = saved("w.pt")(tmp_path, tuned(in_chans=1).state_dict())
    assert read(path).preprocess.channels == 1


def test_class_names_of_the_training_are_kept(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    content = {"state_dict": tuned().state_dict(), "class_to_idx": {name: n for n, name in enumerate(names)}}
    assert read(saved("w.pt")(tmp_path, content)).labels == tuple(names)
    content["class_to_idx"].pop("gnu")
    assert read(saved("w.pt")(tmp_path, content)).labels is None


@pytest.mark.parametrize("change", ["missing", "outside", "other"])
def test_an_index_of_files_that_are_not_there_is_refused(change: str, tmp_path: Path) -> None:
    index = shards(tmp_path, tuned().state_dict(), lambda part, path: save_file(part, path), ".safetensors")
    content = json.loads(index.read_text())
    key = next(iter(content["weight_map"]))
    if change == "missing":
        (tmp_path / content["weight_map"][key]).unlink()
    else:
        content["weight_map"][key] = "../x.safetensors" if change == "outside" else "model.safetensors"
        index.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="which is not beside it"):
        read(index)


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_timm_saved(safe: bool, tmp_path: Path) -> None:
    from timm.models._hub import save_for_hf

    module = tuned()
    config = {"label_names": list("abcdefg")}
    save_for_hf(module, str(tmp_path / "mine"), model_config=config, model_args=SMALL, safe_serialization=safe)
    model = load(ModelSpec(spec=f"timm:{tmp_path / 'mine'}"))
    assert model.digest == weights_digest(module)
    assert model.labels == tuple("abcdefg")
    assert model.preprocess.size == (32, 32)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no config.json. Save it with timm.models.save_for_hf"):
        load(ModelSpec(spec=f"timm:{tmp_path}"))
    (tmp_path / "config.json").write_text('{"architectures": ["ViT"]}')
    with pytest.raises(SourceError, match="names no `architecture`"):
        load(ModelSpec(spec=f"timm:{tmp_path}"))
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "x"}}'
    )
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SourceError, match="that choose other weights"):
        load(ModelSpec(spec=f"timm:{tmp_path}"))


def test_torchvision_takes_the_head_and_the_size_too(tmp_path: Path) -> None:
    import torchvision

    small = {"num_layers": 1, "hidden_dim": 24, "num_heads": 2, "mlp_dim": 48, "patch_size": 16}
    torch.manual_seed(0)
    module = torchvision.models.VisionTransformer(image_size=64, num_classes=5, **small).eval()
    path = saved("w.pt")(tmp_path, {"model": under("module.", module.state_dict())})
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=4)
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    found = load(ModelSpec(spec="torchvision:resnet18", weights=str(tmp_path / "r.pth")))
    assert found.labels is None
    assert found.checkpoint is not None
    assert found.checkpoint.classes == 4
    assert found.module is not None
    assert math.prod(found.module(torch.zeros(1, 3, 64, 64)).shape) == 4
    with pytest.raises(SourceError, match="does not fit the model"):
        load(ModelSpec(spec="torchvision:vit_b_16", weights=str(path)))


def test_a_vit_of_torchvision_takes_the_size_of_its_positions(tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings, vit_b_32

    torch.manual_seed(0)
    module = vit_b_32(image_size=64, num_classes=5).eval()
    labels = {name: number for number, name in enumerate("abcdef")}  # one too many
    path = saved("w.pt")(tmp_path, {"model": under("module.", module.state_dict()), "class_to_idx": labels})
    own = load(ModelSpec(spec="torchvision:vit_b_32", weights=str(path)))
    assert (own.digest, own.preprocess.size, own.labels) == (weights_digest(module), (64, 64), None)
    assert own.checkpoint is not None
    assert (own.checkpoint.classes, own.checkpoint.size, own.checkpoint.resampled) == (5, (64, 64), False)
    larger = load(ModelSpec(spec="torchvision:vit_b_32", weights=str(path)), size=(96, 96))
    expected = vit_b_32(image_size=96, num_classes=5)
    expected.load_state_dict(interpolate_embeddings(96, 32, module.state_dict()))
    assert (larger.digest, larger.preprocess.size) == (weights_digest(expected), (96, 96))
    assert larger.checkpoint is not None
    assert larger.checkpoint.resampled


@pytest.mark.parametrize("spec", ["demo:digits", "torchvision:resnet18"])
def test_a_part_of_no_checkpoint_is_refused(spec: str) -> None:
    with pytest.raises(SourceError, match="--ema choose a part of a checkpoint"):
        load(ModelSpec(spec=spec, weights="random", weights_key="ema"))


def test_the_documentation_names_the_keys_that_are_tried() -> None:
    from vitdeploy.cli import model_options
    from vitdeploy.sources._checkpoint import _KEYS

    assert ", ".join(_KEYS) in model_options.WeightsKey.__metadata__[0].help
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in _KEYS)


def test_a_factory_is_asked_for_the_classes_of_the_head(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\ndef build(num_classes=10):\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.Linear(12, num_classes))\n"
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    path = saved("w.ckpt")(tmp_path, {"state_dict": under("net.", module.state_dict())})
    model = load(ModelSpec(spec=f"python:{tmp_path}/mine.py:build", weights=str(path)), size=(2, 2))
    assert model.digest == weights_digest(module)
    assert model.checkpoint is not None
    assert (model.checkpoint.classes, model.checkpoint.prefix) == (3, "net.")


def test_files_with_everything_in_them_take_no_classes(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(SourceError, match="Leave out --num-classes"):
        load(ModelSpec(spec=str(tmp_path / "m.onnx"), num_classes=3))
