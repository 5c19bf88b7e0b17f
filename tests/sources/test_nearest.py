"""A checkpoint of another architecture: the error names the model that it is of, within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers

from vitdeploy import frozen
from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import load
from vitdeploy.sources._architectures import Architecture
from vitdeploy.sources._nearest import find_nearest

State = dict[str, torch.Tensor]
SWIN = "timm:swin_tiny_patch4_window7_224"


def vit(**kwargs: object) -> State:
    return timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict()


def rename(state: State) -> State:
    """The same tensors under names that no library has."""
    return {
        key.replace("blocks", "stufe").replace("attn", "blick").replace("norm", "ln"): v for key, v in state.items()
    }


@pytest.mark.parametrize(
    ("state", "given", "fix"),
    [
        (lambda: vit(num_classes=7), SWIN, "Give timm:vit_tiny_patch16_224."),
        (lambda: vit(num_classes=7), "torchvision:swin_t", "Give timm:vit_tiny_patch16_224."),
        (lambda: vit(num_classes=0), SWIN, "Give timm:vit_tiny_patch16_224 --num-classes 0."),
        (lambda: torchvision.models.vit_b_32(num_classes=7).state_dict(), SWIN, "Give torchvision:vit_b_32."),
    ],
)
def test_the_model_with_these_keys_and_shapes(
    state: object, given: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    list_shapes = Architecture.list_shapes
    monkeypatch.setattr(Architecture, "list_shapes", lambda self: (built.append(self.name), list_shapes(self))[1])
    nearest = find_nearest(state(), given)  # type: ignore[operator]
    assert nearest is not None
    assert nearest.fix.startswith(fix)
    assert "list by shapes it is" in nearest.reason
    assert len(built) < 20, "the ranking by words and numbers leaves few to build"


def test_equal_models_are_all_named() -> None:
    nearest = find_nearest(vit(), SWIN)
    assert nearest is not None
    assert "timm:vit_tiny_patch16_224 or timm:deit_tiny_patch16_224" in nearest.reason
    assert "They differ in preprocessing" in nearest.fix


def test_other_names_are_compared_by_shapes_alone() -> None:
    nearest = find_nearest(rename(vit(num_classes=7)), SWIN)
    assert nearest is not None
    assert nearest.reason == "from timm's list by shapes the nearest is timm:vit_tiny_patch16_224, with other keys"
    assert "python:FILE:FACTORY" in nearest.fix


def test_keys_of_transformers_are_told_by_its_sources() -> None:
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    nearest = find_nearest(transformers.ViTForImageClassification(config).state_dict(), SWIN)
    assert nearest is not None
    assert "of transformers, of type 'vit'" in nearest.reason
    assert nearest.fix.startswith("Give hf:FOLDER")


def test_the_same_model_is_not_named_again() -> None:
    assert find_nearest(vit(num_classes=7), "timm:vit_tiny_patch16_224") is None


def test_what_no_library_has_keeps_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.sources._nearest._SEARCH_SECONDS", 0.1)
    torch.save({f"odd.{n}": torch.ones(3, n + 1) for n in range(9)}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"9 unexpected keys, first 'odd\.0'. Give weights of this model\."):
        load(ModelSpec(spec="timm:vit_tiny_patch16_224", weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize("arguments", [{"patch_size": 8, "img_size": 64}, {"depth": 6}, {"reg_tokens": 4}], ids=str)
def test_a_model_that_was_built_with_other_arguments(arguments: dict[str, int], tmp_path: Path) -> None:
    given = "timm:vit_tiny_patch16_224"
    torch.save(vit(num_classes=7, **arguments), tmp_path / "w.pt")
    spec = ModelSpec(spec=given, weights=str(tmp_path / "w.pt"))
    with pytest.raises(SourceError) as error:
        load(spec)
    assert str(error.value).endswith(
        f'If the model was built with other arguments, name them in a recipe: model: {{spec: "{given}", '
        "kwargs: {NAME: VALUE}}."
    )
    assert load(frozen.replace(spec, kwargs=arguments)).weights == "file"


HEADLESS = {
    "timm": ("timm:deit_tiny_distilled_patch16_224", r"4 missing keys, .*it has no classifier\. Give --num-classes 0"),
    "torchvision": ("torchvision:vit_b_32", r"2 missing keys, .*it has no classifier\. Give weights with a classifier"),
}


@pytest.mark.parametrize("library", HEADLESS)
def test_a_checkpoint_without_a_classifier_says_what_to_do(library: str, tmp_path: Path) -> None:
    spec, message = HEADLESS[library]
    name = spec.partition(":")[2]
    module = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name)
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("head")}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=message):
        load(ModelSpec(spec=spec, weights=str(tmp_path / "w.pt")))


def test_a_checkpoint_without_a_classifier_and_of_another_size(tmp_path: Path) -> None:
    torch.save(vit(num_classes=0, img_size=96), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"2 missing keys, .*Give --num-classes 0"):
        load(ModelSpec(spec="timm:vit_tiny_patch16_224", weights=str(tmp_path / "w.pt")))


def test_a_class_of_transformers_without_a_classifier(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32
    )
    module = transformers.ViTForImageClassification(config)
    module.save_pretrained(tmp_path / "m")
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("classifier")}
    torch.save(state, tmp_path / "w.pt")
    capfd.readouterr()
    with pytest.raises(SourceError, match=r'it has no classifier\. Name its class, .* under "architectures"'):
        load(ModelSpec(spec=f"hf:{tmp_path / 'm'}", weights=str(tmp_path / "w.pt")))
    assert "LOAD REPORT" not in capfd.readouterr().err
