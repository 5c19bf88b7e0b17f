"""Recipes from the flags of the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError
from vitdeploy.frozen import parse
from vitdeploy.recipe.image_size import SIZE_FORMS, parse_image_size
from vitdeploy.recipe.prompts import read_prompts
from vitdeploy.recipe.schema import AUTO, Recipe
from vitdeploy.recipe.tokens import TokensSpec


def compose(
    model: str | None = None,
    *,
    base: Recipe | None = None,
    target: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    quantizer: str | None = None,
    max_drop: float | None = None,
    seconds: float | None = None,
    merge_tokens: str | None = None,
    drop_tokens: str | None = None,
    weights: str | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    calibration: str | None = None,
    evaluation: str | None = None,
    batch: str | int | None = None,
    image_size: str | None = None,
    labels: str | None = None,
    prompts: str | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    bind: Mapping[str, object] | None = None,
    examples: Mapping[str, str] | None = None,
    outputs: str | Sequence[str] | None = None,
    part: str | None = None,
    resize: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    task: str | None = None,
    input_form: str | None = None,
    portable: bool | None = None,
    judge: bool | None = None,
) -> Recipe:
    """Return a recipe from the flags of the command line. A flag overrides `base`.

    Raises:
        RecipeError: a value does not fit.
    """
    raw: dict[str, Any] = base.model_dump(mode="json") if base is not None else {"model": {}, "target": {}}

    def put(section: str, **values: object) -> None:
        raw.setdefault(section, {}).update({k: v for k, v in values.items() if v is not None})

    put("model", spec=model, weights=weights, weights_key=weights_key, num_classes=num_classes)
    put("model", image_size=image_size, labels=labels, templates=templates, outputs=outputs, part=part)
    if bind:
        put("model", bind={**raw["model"].get("bind", {}), **bind})
    if examples:
        given = {name: {"examples": str(file)} for name, file in examples.items()}
        put("model", inputs={**raw["model"].get("inputs", {}), **given})
    for name in bind or {}:  # a flag overrides the recipe
        raw["model"].get("inputs", {}).pop(name, None)
    for name in examples or {}:
        raw["model"].get("bind", {}).pop(name, None)
    put("model", prompts=read_prompts(prompts, Path.cwd()) if isinstance(prompts, str) else prompts)
    whole = "preprocess" if raw.get("preprocess") else "model"  # a recipe's own preprocessing replaces the model's
    put(whole, resize=resize, mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct)
    if whole == "preprocess" and mean is not None:
        raw[whole]["channels"] = len(mean)
    if target is not None and raw["target"].get("kind") not in (None, target):
        raw["target"] = {
            key: raw["target"][key] for key in ("batch", "input", "portable")
        }  # drop the options of the other target
    put("target", kind=target, device=device, batch=batch, input=input_form, portable=portable)
    names = [] if precision is None else [name.strip() for name in precision.split(",")]
    among = names if len(names) > 1 else []
    put(
        "precision",
        kind=AUTO if among else precision,
        quantizer=quantizer,
        max_drop_pp=max_drop,
        seconds=seconds,
        among=None if precision is None else among,
    )
    put("tokens", merge=merge_tokens, drop=drop_tokens)
    if task is not None and raw.get("task", {}).get("kind") not in (None, task):
        raw["task"] = {}
    put("task", kind=task)
    put("data", calibration=calibration, evaluation=evaluation, judge=judge)
    return parse(Recipe, raw, where="flags" if base is None else "recipe and flags")


def with_target_options(recipe: Recipe, options: Mapping[str, object]) -> Recipe:
    """Return the recipe with these options of its target, which override its own.

    Raises:
        RecipeError: a value does not fit.
    """
    if not options:
        return recipe
    raw = recipe.model_dump(mode="json")
    raw["target"] |= options
    return parse(Recipe, raw, where="recipe and --option")


def target_options(texts: Sequence[str]) -> dict[str, object]:
    """Parse each `KEY=VALUE` of --option. Values are read as in a recipe.

    Raises:
        RecipeError: there is no `=`, or the value is not YAML.
    """
    return _parse_pairs(texts, "--option", "KEY=VALUE", "workspace_bytes=536870912")


def parse_binds(texts: Sequence[str], flag: str = "--bind") -> dict[str, object]:
    """Parse each `NAME=VALUE` of a flag. Values are read as in a recipe; numbers may have commas between them.

    Raises:
        RecipeError: there is no `=`, or the value is not YAML.
    """
    pairs = _parse_pairs(texts, flag, "NAME=VALUE", "orig_target_sizes=[[640,640]]")
    listed = re.compile(r"[-+.0-9e\s]+(,[-+.0-9e\s]+)+")
    return {
        name: yaml12.loads(f"[{value}]") if isinstance(value, str) and listed.fullmatch(value) else value
        for name, value in pairs.items()
    }


def parse_examples(texts: Sequence[str]) -> dict[str, str]:
    """Parse each `NAME=FILE.npz` of --examples.

    Raises:
        RecipeError: there is no `=`, or no such file.
    """
    pairs = _split_pairs(texts, "--examples", "NAME=FILE.npz", "points=points.npz")
    for name, file in pairs.items():
        if not file.lower().endswith(".npz"):
            raise RecipeError(
                f"--examples {name}={file} is no file .npz", fix="Save an array of examples with numpy.savez."
            )
    return pairs


def _split_pairs(texts: Sequence[str], flag: str, form: str, example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise RecipeError(f"{flag} {text!r} is not {form}", fix=f"Write it like {example}.")
        pairs[key.strip()] = value
    return pairs


def _parse_pairs(texts: Sequence[str], flag: str, form: str, example: str) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for key, value in _split_pairs(texts, flag, form, example).items():
        try:
            pairs[key] = yaml12.loads(value)
        except ValueError:
            message = f"{flag} '{key}={value}' has no readable value"
            raise RecipeError(message, fix="Write it as in a YAML recipe.") from None
    return pairs


def check_size(text: str) -> None:
    """Check that a text is one image size or three, as HxW. Whether they are in order is the recipe's matter.

    Raises:
        RecipeError: it is not.
    """
    try:
        parse_image_size(text)
    except ValueError:
        raise RecipeError(f"{text!r} is not a size", fix=f"Give {SIZE_FORMS}.") from None


def parse_statistics(text: str) -> list[float]:
    """Parse `0.5` or `0.485,0.456,0.406` as one number for each channel.

    Raises:
        RecipeError: they are not numbers, or not 1 or 3.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise RecipeError(
            f"{text!r} is not one number for each channel",
            fix="Give one for grey or three for colours: 0.485,0.456,0.406.",
        )
    return values


def check_merging(text: str) -> None:
    """Check the text of --merge-tokens: off, or blocks with the number of tokens to remove.

    Raises:
        RecipeError: it is not.
    """
    parse(TokensSpec, {"merge": text}, where="--merge-tokens")


def check_dropping(text: str) -> None:
    """Check the text of --drop-tokens: off, or blocks with the number of tokens to remove.

    Raises:
        RecipeError: it is not.
    """
    parse(TokensSpec, {"drop": text}, where="--drop-tokens")


def check_batch(text: str) -> None:
    """Check that a text is one batch size or three, each at least 1. Whether they are in order is the recipe's matter.

    Raises:
        RecipeError: it is not.
    """
    if re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*:[1-9][0-9]*)?", text) is None:
        raise RecipeError(f"{text!r} is no batch size", fix="Give N or MIN:OPT:MAX, from 1 on, such as 4 or 1:4:8.")
