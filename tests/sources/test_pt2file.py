"""torch.export archives load, and crafted ones are refused before they can run anything."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.runtime.torch_session import named_outputs
from vitdeploy.sources import load

PROGRAM = "models/model.json"
Members = dict[str, bytes]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 4, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.nn.functional.gelu(self.conv(x), approximate="tanh")).mean((2, 3))


def _export(path: Path, *, training: bool = False, shape: tuple[int, ...] = (2, 3, 16, 24), dims: Any = None) -> Path:
    torch.manual_seed(0)
    program = torch.export.export(Net().train(training), (torch.randn(shape),), dynamic_shapes=dims)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = ({0: torch.export.Dim("batch", min=1, max=8)},)
    return _export(tmp_path_factory.mktemp("pt2") / "m.pt2", dims=dims)


def _crafted(archive: Path, target: Path, change: Callable[[Members], None]) -> Path:
    """A copy of the archive with other members, written as torch writes them."""
    with zipfile.ZipFile(archive) as source:
        members = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(members)
    writer = torch._C.PyTorchFileWriter(str(target))
    writer.set_min_version(6)
    for name, content in members.items():
        if not name.startswith(".data/"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return target


def _program(edit: Callable[[dict[str, Any]], None]) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        program = json.loads(members[PROGRAM])
        edit(program)
        members[PROGRAM] = json.dumps(program).encode()

    return change


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_an_archive_gives_the_numbers_of_the_module(archive: Path) -> None:
    model = load(ModelSpec(spec=str(archive)))
    assert (model.weights, model.preprocess.size, model.input_name) == ("own", (16, 24), "input")
    assert model.module is not None
    assert not model.module.training
    torch.manual_seed(0)
    expected = Net().eval()
    images = torch.randn(5, 3, 16, 24)
    outputs = named_outputs(model.module(images))
    assert list(outputs) == ["output"]
    torch.testing.assert_close(outputs["output"], expected(images))
    assert model.parameters == sum(p.numel() for p in expected.parameters())
    assert model.digest == load(ModelSpec(spec=str(archive))).digest


def test_an_untouched_copy_loads(archive: Path, tmp_path: Path) -> None:
    copy = _crafted(archive, tmp_path / "copy.pt2", lambda members: None)
    assert load(ModelSpec(spec=str(copy))).digest == load(ModelSpec(spec=str(archive))).digest


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("example inputs", "example inputs do not load with weights_only"),
        ("weight", "asks to unpickle '.*'"),
        ("opaque", "opaque_obj_0 is code"),
        ("custom", "custom_obj_0 is code"),
        ("legacy weights", r"model\.pt belongs to an old format"),
        ("library", r"x\.so is code"),
        ("old format", "belongs to an old format"),
    ],
)
def test_pickles_and_libraries_never_run(archive: Path, tmp_path: Path, how: str, reason: str) -> None:
    marker = tmp_path / "marker"
    evil, bare = _saved((_Marker(marker),)), pickle.dumps(_Marker(marker))

    def change(members: Members) -> None:
        weights, constants = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
        if how == "example inputs":
            members["data/sample_inputs/model.pt"] = evil
        elif how == "weight":
            config = json.loads(members[weights])
            entry = next(iter(config["config"].values()))
            entry["use_pickle"] = True
            members[f"data/weights/{entry['path_name']}"] = evil
            members[weights] = json.dumps(config).encode()
        elif how in ("opaque", "custom"):
            entry = {"path_name": f"{how}_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            members[constants] = json.dumps({"config": {"c": entry}}).encode()
            members[f"data/constants/{how}_obj_0"] = bare
        elif how == "legacy weights":
            members["data/weights/model.pt"] = evil
        elif how == "library":
            members["data/aotinductor/model/x.so"] = b"\x7fELF"
        else:
            members.clear()
            members["version"] = b"8.20"
            members["serialized_exported_program.json"] = b"{}"
            members["serialized_state_dict.pt"] = evil

    path = _crafted(archive, tmp_path / "evil.pt2", change)
    with pytest.raises(SourceError, match=f"refused, because loading it could run code in it: .*{reason}"):
        load(ModelSpec(spec=str(path)))
    assert not marker.exists()


def _first_node(program: dict[str, Any]) -> dict[str, Any]:
    return program["graph_module"]["graph"]["nodes"][0]  # type: ignore[no-any-return]


def _root_call(program: dict[str, Any]) -> dict[str, Any]:
    return program["graph_module"]["module_call_graph"][0]["signature"]  # type: ignore[no-any-return]


def _edits(marker: Path) -> dict[str, Callable[[dict[str, Any]], None]]:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    tree = '[1, {"type": "collections.defaultdict", "context": "{\\"default_factory_module\\": \\"antigravity\\"}", '

    def size(program: dict[str, Any]) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]["x"]
        values["sizes"][0]["as_expr"]["expr_str"] = code

    def target(program: dict[str, Any]) -> None:
        _first_node(program)["target"] = "torch.os.system"

    def library(program: dict[str, Any]) -> None:
        _first_node(program)["target"] = "torch.ops.load_library"

    def name(program: dict[str, Any]) -> None:
        _first_node(program)["name"] = f"a = {code}; b"

    def argument(program: dict[str, Any]) -> None:
        _root_call(program)["forward_arg_names"] = [f"x={code}"]

    def spec(program: dict[str, Any]) -> None:
        _root_call(program)["in_spec"] = tree + '"children_spec": []}]'

    def keyword(program: dict[str, Any]) -> None:
        _root_call(program)["in_spec"] = json.dumps(
            [1, {"type": "builtins.dict", "context": json.dumps([f"x={code}"]), "children_spec": []}]
        )

    return {f.__name__: f for f in (size, target, library, name, argument, spec, keyword)}


KEYS = {
    "size": "expr_str",
    "target": "target",
    "library": "target",
    "name": "name",
    "argument": "forward_arg_names",
    "spec": "in_spec",
    "keyword": "in_spec",
}


@pytest.mark.parametrize("how", list(_edits(Path())))
def test_code_in_the_program_never_runs(archive: Path, tmp_path: Path, how: str) -> None:
    marker = tmp_path / "marker"
    path = _crafted(archive, tmp_path / "evil.pt2", _program(_edits(marker)[how]))
    with pytest.raises(SourceError, match=f"code in it: its program has {KEYS[how]} = "):
        load(ModelSpec(spec=str(path)))
    assert not marker.exists()


def test_the_attack_on_sizes_is_real(archive: Path, tmp_path: Path) -> None:
    """What the refusal is for: torch itself runs it. When this fails, torch got better."""
    marker = tmp_path / "marker"
    path = _crafted(archive, tmp_path / "evil.pt2", _program(_edits(marker)["size"]))
    with contextlib.suppress(Exception):  # after having run it
        torch.export.load(str(path))
    assert marker.exists()


def test_guards_in_the_file_are_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def guards(program: dict[str, Any]) -> None:
        program["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]

    model = load(ModelSpec(spec=str(_crafted(archive, tmp_path / "g.pt2", _program(guards)))))
    assert model.module is not None
    model.module(torch.zeros(2, 3, 16, 24))
    assert not marker.exists()


def test_unknown_and_doubled_members_are_refused(archive: Path, tmp_path: Path) -> None:
    def stray(members: Members) -> None:
        members["data/weights/../other"] = b""

    with pytest.raises(SourceError, match="is unknown"):
        load(ModelSpec(spec=str(_crafted(archive, tmp_path / "a.pt2", stray))))

    def doubled(members: Members) -> None:
        members["Models/Model.json"] = members[PROGRAM]

    with pytest.raises(SourceError, match="two members of the same name"):
        load(ModelSpec(spec=str(_crafted(archive, tmp_path / "b.pt2", doubled))))


def test_what_does_not_serve(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        load(ModelSpec(spec=str(tmp_path / "no.pt2")))
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(SourceError, match=r"not a torch\.export archive"):
        load(ModelSpec(spec=str(tmp_path / "text.pt2")))
    (tmp_path / "half.pt2").write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(SourceError, match="truncated"):
        load(ModelSpec(spec=str(tmp_path / "half.pt2")))
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt2")
    with pytest.raises(SourceError, match="refused"):
        load(ModelSpec(spec=str(tmp_path / "weights.pt2")))
    with pytest.raises(SourceError, match="its own weights"):
        load(ModelSpec(spec=str(archive), weights="random"))
    with pytest.raises(SourceError, match="takes images of 16x24"):
        load(ModelSpec(spec=str(archive)), size=(32, 32))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="training mode"):
        load(ModelSpec(spec=str(_export(tmp_path / "t.pt2", training=True))))


def test_a_dynamic_size_needs_one(tmp_path: Path) -> None:
    side = torch.export.Dim("side", min=2, max=16)
    path = _export(tmp_path / "d.pt2", dims=({2: side * 4},))
    with pytest.raises(SourceError, match="--image-size"):
        load(ModelSpec(spec=str(path)))
    assert load(ModelSpec(spec=str(path)), size=(32, 24)).preprocess.size == (32, 24)
