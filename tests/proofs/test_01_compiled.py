"""Point 1: what was compiled is run against the reference before it is sealed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cli.conftest import run
from tests.proofs import toys_01
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.commands.gate.gate import gate
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.pipeline.summary import ExportResult, summarize_export
from vitdeploy.progress import Silent
from vitdeploy.session import Array
from vitdeploy.targets._openvino_session import OpenVINOSession

Answers = dict[str, Array]


def spec_of(factory: str) -> str:
    """A MODEL of the toys."""
    return f"python:{toys_01.__file__}:{factory}"


@contextmanager
def broken_engine(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Array, Answers], Answers]) -> Iterator[None]:
    """Let OpenVINO's sessions answer wrongly: `spoil` gets the images and the right answers."""
    right = OpenVINOSession.run

    def answer(session: OpenVINOSession, feeds: Any) -> Answers:
        (images,) = feeds.values()
        return spoil(images, right(session, feeds))

    with monkeypatch.context() as patch:
        patch.setattr(OpenVINOSession, "run", answer)
        yield


def test_a_transform_that_openvino_computes_wrongly_is_refused(tmp_path: Path) -> None:
    recipe = recipes.compose(spec_of("fourier"), target="openvino", image_size="32x32")
    with pytest.raises(CompileError, match=r"OpenVINO computes other numbers than the model: .* in output 'mixed' on"):
        export(recipe, tmp_path / "out", Silent())
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_attention_with_as_many_heads_as_queries_is_computed_correctly_by_openvino(tmp_path: Path) -> None:
    recipe = recipes.compose(spec_of("pooled_windows"), target="openvino", image_size="64x64")
    audit, _ = export(recipe, tmp_path / "out", Silent()).artifact.read_evidence(Audit)
    assert audit is not None
    assert (audit.attention.fused, audit.attention.sites) == (1, 1)


def write_fourier(path: Path) -> None:
    """An ONNX file with a DFT whose axis is an input."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32) / 10
    constants = {"w": weight, "axis": np.array(-2, np.int64), "zero": np.array(0, np.int64),
                 "shape": np.array([1, 8, 16, 1], np.int64)}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("DFT", ["r", "", "axis"], ["d"]),
        helper.make_node("Gather", ["d", "zero"], ["y"], axis=3),
    ]
    graph = helper.make_graph(
        nodes,
        "fourier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def test_so_is_an_onnx_file_whose_reference_is_the_file_in_onnx_runtime(tmp_path: Path) -> None:
    write_fourier(tmp_path / "fourier.onnx")
    made = run("export", tmp_path / "fourier.onnx", "--target", "onnxruntime", "-o", tmp_path / "right", "--json")
    assert made.code == 0, made.err
    parity = json.loads(made.out)["parity"]
    assert [output["name"] for output in parity["outputs"]] == ["y"]
    assert parity["cosine"] > 0.999999
    refused = run("export", tmp_path / "fourier.onnx", "--target", "openvino", "-o", tmp_path / "wrong", "--quiet")
    assert refused.code == 1
    assert "OpenVINO computes other numbers than the model: cosine" in refused.error
    assert not (tmp_path / "wrong").exists()


def test_what_export_prints_is_about_what_was_compiled(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="openvino")
    parity = artifact.manifest.device_parity
    assert parity is not None
    assert len(parity.batches) >= 3, "several images"
    assert len({output.where for case in parity.cases for output in case}) == len(parity.batches), "all different"
    assert parity.max_abs <= 1e-5 * parity.reference_max
    assert artifact.manifest.doubts == ()


def test_a_dynamic_batch_is_run_in_its_smallest_a_middle_and_its_largest_size(tmp_path: Path) -> None:
    recipe = recipes.compose(spec_of("mixed_batch"), target="openvino", image_size="32x32", batch="1:2:5")
    artifact = export(recipe, tmp_path / "out", Silent()).artifact
    assert artifact.manifest.device_parity is not None
    assert set(artifact.manifest.device_parity.batches) == {1, 2, 5}
    assert artifact.manifest.device_parity.max_abs < 1e-5


def is_dark(images: Array) -> bool:
    return float(images.mean()) < -1.0  # normalized


SPOILED: dict[str, tuple[str, Callable[[Array, Answers], Answers]]] = {
    "one of several outputs": (
        "in output 'second' on",
        lambda _, right: {**right, "second": 1.01 * right["second"]},
    ),
    "the sign of a small output": (
        "cosine -1.0",
        lambda _, right: {**right, "first": -right["first"]},
    ),
    "only dark images": (
        "on dark and tall images",
        lambda images, right: {k: v + is_dark(images) for k, v in right.items()},
    ),
    "only a batch of 5": (
        "in a batch of 5",
        lambda images, right: {k: v[::-1].copy() if len(images) == 5 else v for k, v in right.items()},
    ),
    "NaN for one image": (
        "has NaN or infinity on dark and tall images",
        lambda images, right: {k: np.where(is_dark(images), np.nan, v).astype(v.dtype) for k, v in right.items()},
    ),
    "another shape": ("has shape", lambda _, right: {k: v[..., :1] for k, v in right.items()}),
    "an output is missing": ("there are 1 outputs instead of 2", lambda _, right: {"first": right["first"]}),
}


@pytest.fixture(scope="module")
def two_outputs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact with outputs of 1 and of 50,000, for batches of 1 to 5."""
    out = tmp_path_factory.mktemp("two") / "artifact"
    recipe = recipes.compose(spec_of("two_outputs"), target="openvino", image_size="32x32", batch="1:2:5")
    return export(recipe, out, Silent()).artifact


@pytest.mark.parametrize("fault", SPOILED)
def test_compile_refuses_an_engine_that_is_wrong_in(
    fault: str, two_outputs: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words, spoil = SPOILED[fault]
    artifact = artifacts.load(two_outputs.path)
    with broken_engine(monkeypatch, spoil), pytest.raises(CompileError) as caught:
        compile_bundle(artifact, tmp_path / "out", Silent())
    assert words in caught.value.message
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_compile_compares_with_the_stored_answers_on_all_images(two_outputs: Artifact, tmp_path: Path) -> None:
    made = compile_bundle(artifacts.load(two_outputs.path), tmp_path / "out", Silent())
    before, after = two_outputs.manifest.device_parity, made.artifact.manifest.device_parity
    assert before is not None
    assert after is not None
    assert after.batches == before.batches
    assert made.summary.parity == after
    assert [o.name for o in after.outputs] == ["first", "second"]


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch, demo: Callable[..., Artifact], tmp_path: Path) -> ExportResult:
    """An artifact whose INT8 engine loses more than its graph does."""
    sound = demo(target="openvino", precision="int8-weights")
    assert sound.manifest.doubts == ()
    with broken_engine(monkeypatch, lambda _, right: {k: v + 0.2 for k, v in right.items()}):
        return compile_bundle(artifacts.load(sound.path), tmp_path / "doubtful", Silent())


def test_a_low_precision_beyond_what_its_graph_loses_is_a_doubt(doubtful: ExportResult) -> None:
    artifact = doubtful.artifact
    (doubt,) = artifact.manifest.doubts
    assert "computes other numbers than the graph that it was made from: cosine" in doubt
    assert f"doubt: {doubt}" in doubtful.summary.notes
    audit, _ = artifact.read_evidence(Audit)
    assert audit is not None
    assert doubt in audit.doubts
    artifact.write_evidence(replace(audit, doubts=()))
    assert inspect(artifact).doubts == (doubt,), "the sealed manifest keeps it"


def test_the_gate_does_not_pass_with_such_a_doubt(
    doubtful: ExportResult, demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    limits = {"min_fused_pct": 100.0}
    assert gate(copy(demo(target="openvino", precision="int8-weights")), limits, Silent()).verdict == "pass"
    verdict = gate(doubtful.artifact, limits, Silent())
    assert verdict.verdict == "invalid"
    assert any(doubtful.artifact.manifest.doubts[0] in check.why for check in verdict.checks)


def test_a_low_precision_engine_with_nan_is_refused(
    monkeypatch: pytest.MonkeyPatch, demo: Callable[..., Artifact], tmp_path: Path
) -> None:
    sound = artifacts.load(demo(target="openvino", precision="int8-weights").path)
    with (
        broken_engine(monkeypatch, lambda _, right: {k: v * np.nan for k, v in right.items()}),
        pytest.raises(CompileError, match=r"int8-weights engine of OpenVINO is wrong: output 'output' has NaN"),
    ):
        compile_bundle(sound, tmp_path / "out", Silent())


def test_a_bundle_claims_nothing(tmp_path: Path) -> None:
    made = run("export", "demo:digits", "--target", "tensorrt", "-o", tmp_path / "bundle", "--quiet")
    assert made.code == 0, made.err
    assert "not run here, so its numbers are not compared with FP32" in made.out
    assert "cosine" not in made.out
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["device_parity"] is None
    summary = summarize_export(tmp_path, artifacts.load(tmp_path / "bundle").manifest, 1.0, [])
    assert (summary.parity.finite, summary.parity.batches, summary.parity.cosine) == (False, (), 0.0)
