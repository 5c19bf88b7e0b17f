"""Prompts in the weights of an image model: the scores of the whole model, and no text tower."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import vitdeploy  # noqa: E402
from tests.toys import two_towers  # noqa: E402
from vitdeploy.errors import SourceError  # noqa: E402
from vitdeploy.recipe import ModelSpec  # noqa: E402
from vitdeploy.session import named_outputs  # noqa: E402
from vitdeploy.sources import LoadedModel, load  # noqa: E402

TEN = ("cat", "dog", "a small bird", "fish", "horse", "red car", "tree", "house", "boat", "bag")
THREE = TEN[:3]
_DIFFERENCE = 1e-4

Save = Callable[[Path], Path]


def _load(folder: Path, prompts: Sequence[str] | None = TEN, *templates: str) -> LoadedModel:
    texts = None if prompts is None else tuple(prompts)
    return load(ModelSpec(spec=f"hf:{folder}", prompts=texts, templates=templates))


def _images(model: LoadedModel, count: int = 2) -> torch.Tensor:
    height, width = model.preprocess.size
    images = torch.randn(count, model.preprocess.planes, height, width, generator=torch.Generator().manual_seed(1))
    images[:, model.preprocess.channels :] = 1  # nothing is padded
    return images


def _run(model: LoadedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    assert model.module is not None
    with torch.inference_mode():
        return named_outputs(model.module(images))


def _whole(folder: Path) -> tuple[Any, Any]:
    """Return the whole model as transformers loads it, and its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def _is_text_free(model: LoadedModel, whole: Any) -> bool:
    """Return True if the model has none of the text tower's weights, by their number and the table of words."""
    assert model.module is not None
    texts = {name: p for name, p in whole.named_parameters() if re.search(r"text_(model|backbone|projection)\.", name)}
    total = sum(p.numel() for p in whole.parameters())
    others = total - sum(p.numel() for p in texts.values())
    tables = [p for name, p in texts.items() if re.search(r"(token|word)_embeddings?\.weight$", name)]
    assert tables
    shapes = {p.shape for p in (*model.module.parameters(), *model.module.buffers())}
    assert not shapes & {p.shape for p in tables}
    added = len(model.labels or ()) * 33  # the row of a prompt, and its bias
    return model.parameters <= others + added


def test_clip_with_ten_prompts_equals_two_towers(tmp_path: Path) -> None:
    model = _load(two_towers.save_clip(tmp_path))
    whole, tokenizer = _whole(tmp_path)
    images = _images(model, 4)
    with torch.inference_mode():
        expected = whole(pixel_values=images, **tokenizer(list(TEN), padding=True, return_tensors="pt"))
    torch.testing.assert_close(_run(model, images)["logits"], expected.logits_per_image, rtol=0, atol=_DIFFERENCE)
    assert (model.labels, model.task.kind if model.task else None) == (TEN, "classification")
    assert _is_text_free(model, whole)


@pytest.mark.parametrize("save", [two_towers.save_siglip, two_towers.save_siglip2])
def test_siglip_pads_texts_to_the_length_of_its_tower(tmp_path: Path, save: Save) -> None:
    model = _load(save(tmp_path), THREE)
    whole, tokenizer = _whole(tmp_path)
    images = _images(model)
    length = whole.config.text_config.max_position_embeddings
    tokens = tokenizer(list(THREE), padding="max_length", max_length=length, return_tensors="pt")
    pixels: dict[str, Any] = {"pixel_values": images}
    if save is two_towers.save_siglip2:
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
        pixels = {"pixel_values": patches, "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int32),
                  "spatial_shapes": torch.tensor([[4, 4]] * 2)}  # fmt: skip
    with torch.inference_mode():
        expected = whole(**pixels, **tokens).logits_per_image
    torch.testing.assert_close(_run(model, images)["logits"], expected, rtol=0, atol=_DIFFERENCE)
    assert _is_text_free(model, whole)


def test_templates_are_averaged_as_unit_vectors(tmp_path: Path) -> None:
    templates = ("a photo of a {}", "a red {}", "{}")
    model = _load(two_towers.save_clip(tmp_path), THREE, *templates)
    whole, tokenizer = _whole(tmp_path)
    images = _images(model)
    rows = []
    with torch.inference_mode():
        for prompt in THREE:
            tokens = tokenizer([t.format(prompt) for t in templates], padding=True, return_tensors="pt")
            vectors = torch.nn.functional.normalize(whole.get_text_features(**tokens).pooler_output, dim=-1)
            rows.append(torch.nn.functional.normalize(vectors.mean(dim=0), dim=-1))
        pictures = torch.nn.functional.normalize(whole.get_image_features(pixel_values=images).pooler_output, dim=-1)
        expected = whole.logit_scale.exp() * pictures @ torch.stack(rows).T
    scores = _run(model, images)["logits"]
    torch.testing.assert_close(scores, expected, rtol=0, atol=_DIFFERENCE)
    one = _run(_load(tmp_path, THREE, templates[0]), images)["logits"]
    assert (one - scores).abs().max() > 10 * _DIFFERENCE
    assert model.labels == THREE  # without the template: folders of images are named so


def test_without_prompts_it_is_an_embedding_of_images(tmp_path: Path) -> None:
    model = _load(two_towers.save_clip(tmp_path), None)
    whole, _ = _whole(tmp_path)
    images = _images(model)
    with torch.inference_mode():
        expected = whole.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(_run(model, images)["image_embeds"], expected)
    assert (model.labels, model.task.kind if model.task else None) == (None, "embedding")
    assert _is_text_free(model, whole)


@pytest.mark.parametrize("save", [two_towers.save_align, two_towers.save_chinese_clip])
def test_towers_with_a_bert_equal_the_whole_model(tmp_path: Path, save: Save) -> None:
    model = _load(save(tmp_path), THREE)
    whole, tokenizer = _whole(tmp_path)
    images = _images(model)
    with torch.inference_mode():
        expected = whole(pixel_values=images, **tokenizer(list(THREE), padding=True, return_tensors="pt"))
    torch.testing.assert_close(_run(model, images)["logits"], expected.logits_per_image, rtol=0, atol=_DIFFERENCE)
    assert (model.labels, model.task.kind if model.task else None) == (THREE, "classification")
    assert model.parameters < sum(p.numel() for p in whole.parameters()) - 1100 * 32 + 10_000  # without the words


@pytest.mark.parametrize("save", [two_towers.save_owlv2, two_towers.save_owlvit])
def test_owl_finds_what_the_prompts_name(tmp_path: Path, save: Save) -> None:
    model = _load(save(tmp_path), THREE)
    whole, tokenizer = _whole(tmp_path)
    images = _images(model, 1)
    tokens = tokenizer(list(THREE), padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        expected = whole(pixel_values=images, **tokens)
    outputs = _run(model, images)
    torch.testing.assert_close(outputs["logits"], expected.logits, rtol=0, atol=_DIFFERENCE)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, rtol=0, atol=_DIFFERENCE)
    assert _is_text_free(model, whole)
    assert model.task is not None
    assert (model.task.kind, model.task.options, model.labels) == ("detection", {"scores": "sigmoid"}, THREE)


@pytest.mark.parametrize("save", [two_towers.save_grounding_dino, two_towers.save_mm_grounding_dino])
def test_grounding_dino_scores_a_prompt_by_its_best_token(tmp_path: Path, save: Save) -> None:
    model = _load(save(tmp_path), THREE)
    whole, tokenizer = _whole(tmp_path)
    images = _images(model)
    tokens = tokenizer(["cat. dog. a small bird."] * 2, return_tensors="pt")
    with torch.inference_mode():
        expected = whole(pixel_values=images[:, :3], pixel_mask=(images[:, 3] > 0.5).long(), **tokens)
    words = [[1], [3], [5, 6, 7]]  # [CLS] cat . dog . a small bird . [SEP]
    best = torch.stack([expected.logits[..., span].amax(dim=-1) for span in words], dim=-1)
    outputs = _run(model, images)
    torch.testing.assert_close(outputs["logits"], best, rtol=0, atol=_DIFFERENCE)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, rtol=0, atol=_DIFFERENCE)
    assert _is_text_free(model, whole)
    assert model.labels == THREE


def test_the_text_tower_never_runs(tmp_path: Path) -> None:
    model = _load(two_towers.save_clip(tmp_path), THREE)
    assert model.module is not None
    names = {name for name, _ in model.module.named_modules()}
    assert not [name for name in names if "text" in name]
    assert len([name for name in names if name.endswith("self_attn")]) == 2  # of the image tower


def test_prompts_change_the_digest(tmp_path: Path) -> None:
    two_towers.save_clip(tmp_path)
    digests = {_load(tmp_path, prompts).digest for prompts in (THREE, THREE[:2], ("cat", "dog", "horse"), None)}
    assert len(digests) == 4


def test_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    two_towers.save_clip(tmp_path)
    long = r"'a photo of a cat on a table' has 22 tokens, and the text tower .* takes 16"
    with pytest.raises(SourceError, match=long):
        _load(two_towers.save_clip(tmp_path, texts=16), ("dog", "a photo of a cat on a table"))
    with pytest.raises(SourceError, match=r"'a small photo of the dog' has 21 tokens"):
        _load(tmp_path, ("dog", "cat"), "a small photo of the {}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "target"),
    [(two_towers.save_grounding_dino, "openvino"), (two_towers.save_mm_grounding_dino, "onnxruntime")],
)
def test_grounding_dino_compiles_without_a_doubt(tmp_path: Path, save: Save, target: str) -> None:
    spec = f"hf:{save(tmp_path / 'model')}"
    artifact = vitdeploy.export(spec, target=target, prompts=THREE, output=tmp_path / "out", cache=False)
    audit = vitdeploy.inspect(artifact)
    assert audit.doubts == ()
    assert audit.attention.fused == audit.attention.sites == 9, "the first attention of its decoder has learned values"


def test_all_prompts_of_grounding_dino_are_one_text(tmp_path: Path) -> None:
    two_towers.save_grounding_dino(tmp_path)
    many = [f"{a} {b}" for a in ("red", "blue", "small", "large") for b in two_towers.WORDS[9:20]]
    with pytest.raises(SourceError, match=r"has 134 tokens, and the text tower .* takes 64"):
        _load(tmp_path, many)
    with pytest.raises(SourceError, match=r"templates cannot be averaged.*Give one --template"):
        _load(tmp_path, THREE, "a {}", "the {}")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    two_towers.save_clip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"has no tokenizer, which --prompts needs.*save_pretrained"):
        _load(tmp_path)
    assert _load(tmp_path, None).labels is None


def test_prompts_for_a_model_without_text(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"\(ViTForImageClassification\) has no text tower.*Leave out --prompts"):
        _load(tmp_path)
    with pytest.raises(SourceError, match=r"demo:digits has no text tower"):
        load(ModelSpec(spec="demo:digits", prompts=TEN))


def test_a_detector_needs_prompts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"\(Owlv2ForObjectDetection\) finds what prompts name, and there is none"):
        _load(two_towers.save_owlv2(tmp_path), None)


def test_another_way_to_score_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_towers.save_clip(tmp_path)
    own = transformers.CLIPModel.forward

    def doubled(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = own(self, *arguments, **options)
        answer.logits_per_image = 2 * answer.logits_per_image
        return answer

    monkeypatch.setattr(transformers.CLIPModel, "forward", doubled)
    with pytest.raises(SourceError, match=r"does not score texts by their cosine"):
        _load(tmp_path)
