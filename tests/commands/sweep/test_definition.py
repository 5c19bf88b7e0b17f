"""The sweep file: the trials that it describes, their names, and every mistake that it can have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.commands.sweep.definition import Definition, TrialSpec, read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.errors import VitdeployError

BASE = "recipe: {model: demo:digits, target: openvino}\n"
INT8 = BASE + "matrix: {precision: [int8]}\n"


def read(folder: Path, text: str) -> Definition:
    file = folder / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    return read_definition(file, Naming())


def names(folder: Path, text: str) -> list[str]:
    return [trial.name for trial in read(folder, text).trials]


def test_a_matrix_is_all_combinations_without_the_excluded(tmp_path: Path) -> None:
    definition = read(
        tmp_path,
        "recipe: {model: demo:digits, bench: {seconds: 3}}\n"
        "matrix:\n"
        "  target: [openvino, onnxruntime]\n"
        "  precision: [fp32, int8, int8-dynamic]\n"
        '  tokens.merge: ["off", "1:16"]\n'
        "exclude:\n"
        '  - {precision: int8-dynamic, tokens.merge: "1:16"}\n'
        "  - {target: onnxruntime, precision: [fp32, int8-dynamic]}\n"
        "limits: {max_drop_pp: 2}\n",
    )
    assert definition.excluded == 2 + 4 - 1
    recipes = [trial.recipe for trial in definition.trials]
    assert [(r.target.kind, r.precision.kind, dict(r.tokens.schedule)) for r in recipes] == [
        ("openvino", "fp32", {}), ("openvino", "fp32", {1: 16}), ("openvino", "int8", {}),
        ("openvino", "int8", {1: 16}), ("openvino", "int8-dynamic", {}), ("onnxruntime", "int8", {}),
        ("onnxruntime", "int8", {1: 16}),
    ]  # fmt: skip
    assert definition.trials[1].axes == {"target": "openvino", "precision": "fp32", "tokens.merge": "1:16"}
    assert {trial.limits.max_drop_pp for trial in definition.trials} == {2.0}
    assert len({trial.name for trial in definition.trials}) == 7


def test_a_value_may_set_several_keys_of_its_section(tmp_path: Path) -> None:
    trials = read(
        tmp_path,
        "recipe: {target: openvino}\n"
        "matrix:\n"
        "  model: [demo:digits, {spec: demo:digits, weights: random}]\n"
        "  target: [openvino, {kind: onnxruntime}]\n",
    ).trials
    pairs = [(t.recipe.model.weights, t.recipe.target.kind) for t in trials]
    assert pairs == [(None, "openvino"), (None, "onnxruntime"), ("random", "openvino"), ("random", "onnxruntime")]


def test_the_base_may_be_a_recipe_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "r.yaml").write_text(
        "model: {spec: demo:digits, weights: w.safetensors}\ntarget: {kind: openvino, streams: 2}\n"
    )
    openvino, other = read(tmp_path, "recipe: base/r.yaml\nmatrix: {target: [openvino, onnxruntime]}\n").trials
    assert openvino.recipe.model.weights == str(tmp_path / "base" / "w.safetensors")
    assert openvino.recipe.target.options == {"streams": 2}
    assert other.recipe.target.options == {}, "options of one target are not those of another"
    assert len(read(tmp_path, "recipe: demo\nmatrix: {precision: [fp32, int8]}\n").trials) == 2


def test_names_are_the_digest_of_what_decides_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    text = "recipe: {model: demo:digits, target: openvino, data: {evaluation: data.npz}}\nmatrix: {precision: [fp32]}\n"
    (before,) = names(tmp_path, text)
    assert before.startswith("digits-openvino-fp32-")
    extended = names(tmp_path, text.replace("[fp32]", "[int8, fp32]") + "limits: {max_drop_pp: 1}\n")
    assert before in extended, "another axis value, or limits, leave what is there as it is"
    assert names(tmp_path, text.replace("npz}}", "npz}, bench: {seconds: 99}}")) == [before]
    assert names(tmp_path, text.replace("npz}}", "npz}, bench: {threads: 1}}")) != [before]
    np.savez(tmp_path / "data.npz", images=np.ones((2, 8, 8), np.uint8), labels=np.arange(2))
    changed = names(tmp_path, text)
    assert changed != [before], "its data has other contents"
    monkeypatch.setattr("vitdeploy.environment.library_versions", lambda: {"vitdeploy": "99"})
    assert names(tmp_path, text) != changed, "another version of vitdeploy"


def test_a_folder_of_data_counts_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"1")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    text = "recipe: {model: demo:digits, target: openvino, data: {evaluation: images}}\nmatrix: {precision: [fp32]}\n"
    before = names(tmp_path, text)
    assert names(tmp_path, text) == before
    (tmp_path / "images" / "a" / "2.png").write_bytes(b"2")
    assert names(tmp_path, text) != before


def test_a_file_that_cannot_be_read_is_left_to_its_trial(tmp_path: Path) -> None:
    """The kernel refuses to read this one, also to root."""
    data = "data: {evaluation: /proc/self/mem}"
    (name,) = names(
        tmp_path, f"recipe: {{model: demo:digits, target: openvino, {data}}}\nmatrix: {{precision: [fp32]}}\n"
    )
    assert name.startswith("digits-openvino-fp32-")


def test_files_that_the_weights_consist_of_count(tmp_path: Path) -> None:
    """The shards of an index, and the external data of an ONNX file, whatever their names are."""
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    places = {"a.weight": shards[0], "b.weight": shards[1], "c.weight": "../elsewhere.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [tensor],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    for weights, parts in (("model.safetensors.index.json", shards), ("m.onnx", ("weights.bin",))):
        text = f"recipe: {{model: {{spec: demo:digits, weights: {weights}}}, target: openvino}}\n"
        text += "matrix: {precision: [fp32]}\n"
        for part in parts:
            (tmp_path / part).write_bytes(b"1")
        before = names(tmp_path, text)
        assert names(tmp_path, text) == before
        for part in parts:
            (tmp_path / part).write_bytes(b"2")
            after = names(tmp_path, text)
            assert after != before, part
            before = after


def test_the_module_of_a_factory_counts_and_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_sweep").mkdir()
    (tmp_path / "mine_of_sweep" / "__init__.py").write_text("raise AssertionError('it was imported')\n")
    module = tmp_path / "mine_of_sweep" / "vit.py"
    module.write_text("def build(): ...\n")
    text = 'recipe: {model: "python:mine_of_sweep.vit:build", target: openvino}\nmatrix: {precision: [fp32]}\n'
    before = names(tmp_path, text)
    assert names(tmp_path, text) == before
    module.write_text("def build(): return 1\n")
    assert names(tmp_path, text) != before


def test_a_damaged_index_or_graph_still_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"location" * 9)
    for content in ("[1]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 7, "b": null, "c": "x\\u0000y"}}'):
        (tmp_path / "w.bin.index.json").write_text(content)
        text = "recipe: {model: {spec: demo:digits, weights: w.bin.index.json}, target: openvino}\n"
        assert names(tmp_path, text + "matrix: {precision: [fp32]}\n")
    assert names(tmp_path, "recipe: {model: m.onnx, target: openvino}\nmatrix: {precision: [fp32]}\n")


def test_a_description_travels_as_data(tmp_path: Path) -> None:
    text = BASE + 'matrix: {target: [{kind: openvino, streams: 2}], tokens.merge: ["1:16"]}\nlimits: {max_drop_pp: 1}\n'
    (trial,) = read(tmp_path, text).trials
    assert TrialSpec.model_validate_json(trial.model_dump_json()) == trial


def test_combinations_of_one_recipe_are_one_trial(tmp_path: Path) -> None:
    assert len(names(tmp_path, BASE + 'matrix: {tokens.merge: ["off", {}]}\n')) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE, "the matrix is empty"),
        (BASE + "matrix: {}\n", "the matrix is empty"),
        (BASE + "matrix: {precision: []}\n", "matrix.precision has no values"),
        (BASE + "matrix: {precision: int8}\n", "matrix.precision is int8, not a list of values"),
        (BASE + "matrix: {precision: [int8, int8]}\n", "matrix.precision has int8 twice"),
        (BASE + "matirx: {precision: [int8]}\n", r"unknown key 'matirx' \(did you mean 'matrix'\?\)"),
        (BASE + "matrix: {precison: [int8]}\n", r"unknown key 'matrix.precison' \(did you mean 'precision'\?\)"),
        (BASE + 'matrix: {tokens.merg: ["1:8"]}\n', r"'matrix.tokens.merg' \(did you mean 'tokens.merge'\?\)"),
        (BASE + "matrix: {model.wieghts: [random]}\n", r"did you mean 'model.weights'\?"),
        (BASE + "matrix: {target.stream: [1]}\n", r"unknown key 'stream' \(did you mean 'streams'\?\)"),
        (BASE + "matrix: {model: [{spec: demo:digits, wieghts: x}]}\n", r"unknown key 'model.wieghts' \(did you mean"),
        (BASE + "matrix: {target.kind.streams: [1, 2]}\n",
         "target.kind.streams=1: target.kind.streams cannot be set, because target.kind is openvino, not a mapping"),
        (BASE + f"matrix: {{model: [{'a' * 300}]}}\n", "is not a model"),
        (BASE + "matrix: {gate.max_drop_pp: [1, 2]}\n", "sets gate.max_drop_pp, which decides no result"),
        (BASE + "matrix: {bench: [{seconds: 1}]}\n", "matrix.bench sets bench.seconds"),
        (BASE + "matrix: {precision: [int8], precision.kind: [fp32]}\n", "precision and precision.kind both set"),
        (BASE + "matrix: {model: [{spec: demo:digits, weights: random}], model.weights: [random]}\n",
         "model and model.weights both set model.weights"),
        (BASE + "matrix: {model.kwargs: [{a: 1}], model.kwargs.a: [2]}\n", "both set model.kwargs.a"),
        (BASE + "matrix: {precision: [int3]}\n", r"precision=int3: .*'int3' is not one of"),
        (BASE + "matrix: {target: [openvimo]}\n", r"'openvimo'.*did you mean 'openvino'"),
        (BASE + "matrix: {model: [tim:deit]}\n", r"model=tim:deit: 'tim:deit' is not a model"),
        ("recipe: {target: openvino}\nmatrix: {precision: [int8]}\n", "'model' is missing"),
        ("recipe: {modle: x, target: openvino}\nmatrix: {precision: [int8]}\n", "unknown key 'recipe.modle'.*'model'"),
        ("recipe: nothing\nmatrix: {precision: [int8]}\n", "there is no recipe 'nothing'"),
        (INT8 + "limits: {max_dorp_pp: 1}\n", r"'limits.max_dorp_pp' \(did you mean 'max_drop_pp'"),
        (INT8 + "limits: {max_drop_pp: 0}\n", "limits.max_drop_pp should be greater than 0"),
        (INT8 + "limits: {require_signed: key.pub}\n", "limits.require_signed is no limit of a sweep"),
        (INT8 + "exclude: [{precison: int8}]\n", r"exclude names 'precison'.*did you mean 'precision'"),
        (INT8 + "exclude: [{precision: int9}]\n", r"precision: int9.*did you mean 'int8'"),
        (INT8 + "exclude: [{}]\n", "an exclude is empty"),
        (INT8 + "exclude: [{precision: int8}]\n", "leave nothing of the matrix"),
        (BASE + 'matrix: {tokens.merge: ["1:8"], tokens.drop: ["1:8"]}\n', "drop=1:8: .*either merged or dropped"),
        (BASE + f"matrix: {{precision.max_drop_pp: {list(range(1, 102))}, precision.seconds: {list(range(1, 102))}}}\n",
         "10,201 combinations"),
        ("- a\n", "is not a mapping"),
        ("a: [\n", "is not readable YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(VitdeployError, match=message) as raised:
        read(tmp_path, text)
    assert raised.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VitdeployError, match="there is no sweep file"):
        read_definition(tmp_path / "nowhere.yaml", Naming())
