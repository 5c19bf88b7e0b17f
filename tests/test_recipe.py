"""A recipe is data: parsed once, closed, and an error says where and what instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vitdeploy import recipe as recipes
from vitdeploy import sources
from vitdeploy.errors import RecipeError
from vitdeploy.recipe import Batch, Preprocess, Recipe, SizeRange, compose, parse, read

SMALL: dict[str, Any] = {"model": "demo:digits", "target": {"kind": "openvino"}}


def saved(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_model_and_target_are_enough(tmp_path: Path) -> None:
    found = read(saved(tmp_path, "model: demo:digits\ntarget: {kind: openvino}\n"))
    assert (found.model.spec, found.target.kind, str(found.target.batch)) == ("demo:digits", "openvino", "1")
    assert found.precision.kind is None


def test_yaml_out_and_in_is_the_same_recipe(tmp_path: Path) -> None:
    found = parse(
        Recipe,
        {**SMALL, "target": {"kind": "openvino", "batch": "1:4:8", "threads": 2},
         "precision": {"kind": "int8", "keep": ["head"]},
         "preprocess": {"size": [32, 32], "mean": [0.5], "std": [0.5], "channels": 1}, "gate": {"min_speedup": 1.5}},
        where="test",
    )  # fmt: skip
    again = read(saved(tmp_path, found.to_yaml()))
    assert again == found
    assert again.digest == found.digest
    assert again.target.options == {"threads": 2}


def test_the_digest_is_of_the_meaning(tmp_path: Path) -> None:
    plain = read(saved(tmp_path, "model: demo:digits\ntarget: {kind: openvino}\n"))
    spelt = read(saved(tmp_path, "# a comment\ntarget:\n  kind: openvino\n  batch: 1\nmodel: {spec: 'demo:digits'}\n"))
    other = read(saved(tmp_path, "model: demo:digits\ntarget: {kind: openvino, batch: 2}\n"))
    assert plain.digest == spelt.digest != other.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("presicion: {kind: int8}", "unknown key 'presicion' (did you mean 'precision'?). Known keys there: model,"),
        ("gate: {min_speed: 1}", "unknown key 'gate.min_speed' (did you mean 'min_speedup'?)"),
        ("preprocess: {size: [1, 1], meen: [0]}", "unknown key 'preprocess.meen' (did you mean 'mean'?)"),
        ("gate: {max_drop_pp: -1}", "gate.max_drop_pp should be greater than 0, not -1"),
        ("gate: {max_drop_pp: .nan}", "gate.max_drop_pp"),
        ("precision: {kind: int9}", "precision.kind: 'int9' is not one of bf16, fp16,"),
        ("precision: {smooth_alpha: 3}", "precision.smooth_alpha should be 'auto', 'off' or 'norms' or should be less"),
        ("preprocess: {size: [0, 3]}", "preprocess.size.0 should be greater than or equal to 1, not 0"),
        ("preprocess: {size: [3, 3], std: [0, 1, 1]}", "every std must be above 0"),
        ("preprocess: {size: [3, 3], channels: 1}", "mean and std need 1 values each"),
        ("gate: 3", "gate is 3, not a mapping. Write it with its keys: max_drop_pp, min_speedup"),
        ("bench: {threads: 0}", "bench.threads"),
        ("data: {calibration: 3}", "data.calibration should be a valid string, not 3"),
        ("model: demo:digits", "line 3: the key 'model' is given twice"),
        ("gate: {min_speedup: 1, min_speedup: 2}", "line 3: the key 'min_speedup' is given twice"),
        ("task: [", "is not readable YAML: line 4"),
        ("task: !!python/object/apply:os.system ['true']", "line 3: could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = saved(tmp_path, f"model: demo:digits\ntarget: {{kind: openvino}}\n{text}\n")
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("", "is not a mapping"), ("- a", "is not a mapping"), ("model: demo:digits", "'target' is missing"),
    ("model: {weights: x}\ntarget: {kind: openvino}", "'model.spec' is missing"),
    ("model: demo:digits\ntarget: openvino", "target is 'openvino', not a mapping. Write it with its keys: kind,"),
])  # fmt: skip
def test_what_is_missing_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(saved(tmp_path, text))
    assert message in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe .*vitdeploy recipes"):
        read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not readable YAML"):
        read(tmp_path / "binary.yaml")


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    text = "model: demo:digits\ntarget: {kind: openvino, batch: 1:4:8}\nprecision: {smooth_alpha: off}\n"
    found = read(saved(tmp_path, text + "gate: {min_speedup: 1e0}\n"))
    assert found.target.batch == Batch(min=1, opt=4, max=8)
    assert found.precision.smooth_alpha == "off"
    assert found.gate.min_speedup == 1.0
    assert parse(Recipe, yaml.safe_load(found.to_yaml()), where="PyYAML's own dialect") == found


@pytest.mark.parametrize(
    ("text", "sizes"), [(4, (4, 4, 4)), ("4", (4, 4, 4)), ("1:2:8", (1, 2, 8)), ({"max": 3}, (1, 1, 3))]
)
def test_batch_forms(text: object, sizes: tuple[int, int, int]) -> None:
    batch = Batch.model_validate(text)
    assert (batch.min, batch.opt, batch.max) == sizes
    assert batch.static == (sizes[0] == sizes[2])
    assert Batch.model_validate(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "x", "1:2", "4:1:8", "0", "-1", "1:2:3:4", True, 1.5, None])
def test_batches_that_are_none(text: object) -> None:
    with pytest.raises(RecipeError):
        parse(Recipe, {**SMALL, "target": {"kind": "openvino", "batch": text}}, where="test")


def test_paths_are_relative_to_the_recipe_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "own-vit").mkdir()

    def anchored(text: str) -> Recipe:
        return read(saved(tmp_path, f"target: {{kind: openvino}}\n{text}"), sources.anchor)

    assert anchored("model: nets/a.onnx").model.spec == str(tmp_path / "nets" / "a.onnx")
    assert anchored("model: /abs/a.pt2").model.spec == "/abs/a.pt2"
    assert anchored("model: python:nets/a.py:make").model.spec == f"python:{tmp_path}/nets/a.py:make"
    assert anchored("model: python:package.module:make").model.spec == "python:package.module:make"
    assert anchored("model: hf:own-vit").model.spec == f"hf:{tmp_path}/own-vit"
    assert anchored("model: hf:google/vit").model.spec == "hf:google/vit"
    assert anchored("model: {spec: 'timm:x', weights: w.pt}").model.weights == str(tmp_path / "w.pt")
    assert anchored("model: {spec: 'timm:x', weights: random}").model.weights == "random"
    found = anchored("model: timm:x\ndata: {calibration: photos, evaluation: 'demo:digits'}").data
    assert (found.calibration, found.evaluation) == (str(tmp_path / "photos"), "demo:digits")


def test_flags_win_over_the_file() -> None:
    base = parse(
        Recipe,
        {**SMALL, "precision": {"kind": "int8", "keep": ["head"]}, "data": {"calibration": "a", "evaluation": "b"}},
        where="test",
    )
    found = compose("timm:x", base=base, precision="fp32", calibration="c", batch="1:2:4", image_size="32x48")
    assert (found.model.spec, found.precision.kind, found.precision.keep) == ("timm:x", "fp32", ("head",))
    assert (found.data.calibration, found.data.evaluation) == ("c", "b")
    assert (str(found.target.batch), found.model.image_size) == ("1:2:4", (32, 48))
    assert compose(base=base) == base


def test_options_of_another_target_do_not_carry_over() -> None:
    base = parse(Recipe, {**SMALL, "target": {"kind": "openvino", "threads": 2, "batch": 4}}, where="test")
    assert compose(base=base, target="openvino").target.options == {"threads": 2}
    other = compose(base=base, target="tensorrt").target
    assert (other.options, other.batch.opt, other.device) == ({}, 4, None)


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("192x256", (192, 256)), (" 8X4 ", (8, 4))])
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert compose("timm:x", target="openvino", image_size=text).model.image_size == size


@pytest.mark.parametrize("text", ["", "x", "3x", "-1", "1x2x3", "0", "0x3", "1.5"])
def test_image_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="size"):
        compose("timm:x", target="openvino", image_size=text)


RANGE = SizeRange(min=(24, 32), opt=(32, 48), max=(64, 64))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("24x32:32x48:64x64", RANGE),
        ({"min": [24, 32], "opt": [32, 48], "max": [64, 64]}, RANGE),
        ("24:32:48", SizeRange(min=(24, 24), opt=(32, 32), max=(48, 48))),
        ("24x32:24x32:24x32", (24, 32)),
        ("24x32", (24, 32)),
        ([24, 32], (24, 32)),
    ],
)
def test_a_range_of_image_sizes_is_written_like_one_of_batches(written: Any, size: Any) -> None:
    recipe = parse(Recipe, {**SMALL, "model": {"spec": "m.onnx", "image_size": written}}, where="test")
    assert recipe.model.image_size == size
    assert recipe.model.size_range == (size if isinstance(size, SizeRange) else None)
    assert recipe.image_size == (size.opt if isinstance(size, SizeRange) else size)
    assert parse(Recipe, recipe.model_dump(mode="json"), where="test") == recipe
    assert compose(base=recipe, precision="fp32").model.image_size == size
    if isinstance(written, str):
        assert compose("m.onnx", target="openvino", image_size=written).model.image_size == size


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("24x24:32x32", "'24x24:32x32' is not a size"),
        ("32x32:24x48:64x64", "32x32:24x48:64x64 is not ordered: MIN <= OPT <= MAX, in height and in width"),
        ({"min": [24, 24], "opt": [32, 32]}, "'model.image_size.max' is missing"),
        ({"min": [1, 1], "opt": [2, 2], "max": [3, 3], "mid": 1}, "unknown key 'model.image_size.mid'"),
        ([24], "'model.image_size.1' is missing"),
        (24, "model.image_size should be a valid tuple, not 24"),
    ],
)
def test_ranges_of_image_sizes_that_are_none(written: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse(Recipe, {**SMALL, "model": {"spec": "m.onnx", "image_size": written}}, where="test")
    assert message in str(error.value)


def test_a_range_is_prepared_at_the_size_to_optimise_for() -> None:
    raw = {**SMALL, "model": {"spec": "m.onnx", "image_size": "24:32:48"}}
    assert parse(Recipe, {**raw, "preprocess": {"size": [32, 32]}}, where="test").image_size == (32, 32)
    with pytest.raises(RecipeError, match=r"preprocess.size is 48x48, .* are prepared at OPT"):
        parse(Recipe, {**raw, "preprocess": {"size": [48, 48]}}, where="test")


def test_what_is_verified_of_a_range() -> None:
    assert RANGE.corners == ((32, 48), (24, 32), (64, 64), (24, 64), (64, 32))
    tall = SizeRange(min=(24, 32), opt=(24, 32), max=(64, 32))
    assert (tall.corners, tall.fixed_sides) == (((24, 32), (64, 32)), (None, 32))
    assert [RANGE.includes(size) for size in ((24, 32), (64, 64), (16, 48), (32, 72))] == [True, True, False, False]


def test_recipes_do_not_change() -> None:
    recipe = parse(Recipe, SMALL, where="test")
    with pytest.raises(ValueError, match="frozen"):
        recipe.target = recipe.target
    assert Preprocess(size=(2, 2)).mean != ()


@pytest.mark.parametrize(
    "path", sorted((Path(recipes.__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_recipes_fit_their_target(path: Path) -> None:
    from vitdeploy import precision, targets, tasks

    recipe = read(path)
    target = targets.find(recipe.target)
    precision.check(recipe.precision.kind or target.default_precision, target)
    tasks.find(recipe.task)
    assert recipe.gate.model_dump(exclude_none=True), "a recipe without a limit proves nothing"
