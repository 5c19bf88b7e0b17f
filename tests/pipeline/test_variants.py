"""A bundle with variants: what export writes for another machine to choose among."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitdeploy import artifact as artifacts
from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, Manifest, Variant
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.evidence import Interval
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import ExportResult
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session

QUIET = Silent()
Bundle = Callable[..., ExportResult]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundles of the digits, by what was asked for."""

    @cache
    def bundle(target: str, precision: str | None = "fp16,int8", **flags: object) -> ExportResult:
        recipe = recipes.compose("demo:digits", target=target, precision=precision, **flags)  # type: ignore[arg-type]
        return export(recipe, tmp_path_factory.mktemp("bundle") / "out", QUIET, cache=GraphCache())

    return bundle


def outputs(bundle: Artifact, graph: str) -> dict[str, np.ndarray]:
    example = load_examples(bundle.file("reference/example.npz"), bundle.manifest.preprocess, "normalized")[0]
    with OnnxSession(bundle.file(graph)) as session:
        return dict(session.run({bundle.manifest.inputs[0].name: example.image}))


def plain(manifest: Manifest) -> list[Variant]:
    """The variants in the form of the model, without safe forms."""
    return [variant for variant in manifest.variants if not variant.form]


def test_each_variant_computes_what_its_precision_computes_alone(exported: Bundle) -> None:
    bundle = exported("tensorrt").artifact
    assert [variant.name for variant in plain(bundle.manifest)] == ["fp16", "int8"]
    assert bundle.manifest.variant == "fp16"
    alone = exported("tensorrt", "fp16").artifact
    for name, value in outputs(alone, "graph.onnx").items():
        assert np.array_equal(outputs(bundle, "graph.fp16.onnx")[name], value)
        assert not np.array_equal(outputs(bundle, "graph.int8.onnx")[name], value)
    assert bundle.file("graph.onnx").read_bytes() == bundle.file("graph.fp16.onnx").read_bytes()


def test_the_weights_are_shared(exported: Bundle) -> None:
    bundle = exported("tensorrt").artifact
    sizes = {entry.path: entry.bytes for entry in bundle.manifest.files}
    referred = [
        int(entry.value)
        for name in ("fp16", "int8")
        for tensor in onnx.load(bundle.file(f"graph.{name}.onnx"), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    assert len(referred) > 26, "all that is not small"
    assert sizes["graph.onnx.data"] < sum(referred), "what both have is stored once"
    assert sizes["graph.fp16.onnx"] < sizes["graph.onnx.data"] / 4, "a graph without its weights"


def test_every_variant_has_its_own_facts(exported: Bundle) -> None:
    fp16, int8 = plain(exported("tensorrt").artifact.manifest)
    assert fp16.quantized is not None
    assert int8.quantized is not None
    assert int8.quantized.calibration is not None
    assert any(place.precision == "int8" for place in int8.placement.values())
    assert not any(place.quantized for place in fp16.placement.values())
    assert fp16.graph_parity is not None
    assert int8.graph_parity is not None
    assert int8.graph_parity.cosine < 0.999 < fp16.graph_parity.cosine, "the examples are no digits"
    assert (int8.lost, int8.judged_by, int8.images) == (0.0, "labels", 197)


def test_every_safe_form_is_compared_by_its_own_graph(exported: Bundle) -> None:
    variants = {variant.name: variant for variant in exported("tensorrt").artifact.manifest.variants}
    parities = {name: variant.graph_parity for name, variant in variants.items()}
    assert all(parity is not None and parity.cosine > 0.999 for name, parity in parities.items() if name != "int8")
    assert parities["fp16-fp32"] != parities["fp16"], "it rounds only its weights"
    assert parities["fp16-fp32-scores"] not in (parities["fp16"], parities["fp16-fp32"])
    assert parities["fp16-level-2"] == parities["fp16"], "the same graph"


def test_a_bundle_without_variants_has_the_files_that_it_had(exported: Bundle) -> None:
    alone = exported("tensorrt", "fp16").artifact
    assert [entry.path for entry in alone.manifest.files] == [
        "graph.onnx", "reference/blocks.npz", "reference/example.npz", "sites.json",
    ]  # fmt: skip
    assert not {"variants", "variant"} & json.loads(alone.file("manifest.json").read_text()).keys()


def test_auto_leaves_the_choice_to_the_device(exported: Bundle) -> None:
    result = exported("tensorrt", "auto")
    manifest = artifacts.load(result.artifact.path).manifest
    assert [variant.name for variant in plain(manifest)] == ["fp16", "int8", "fp8"], "no float as wide as the default"
    assert (manifest.stage, manifest.target.precision) == ("bundle", "fp16")
    assert [(trial.precision, trial.kept) for trial in manifest.trials] == [
        ("fp16", True), ("int8", False), ("fp8", False),
    ]  # fmt: skip
    assert any("will choose among fp16, int8, fp8" in note for note in result.summary.notes)


def test_a_portable_artifact_is_chosen_here_and_can_be_chosen_again(exported: Bundle) -> None:
    result = exported("onnxruntime", None, portable=True)
    manifest = artifacts.load(result.artifact.path).manifest
    assert manifest.stage == "artifact"
    assert [variant.name for variant in manifest.variants] == ["fp32", "int8", "int8-dynamic"]
    assert manifest.variant == manifest.target.precision
    assert sum(trial.kept for trial in manifest.trials) == 1
    assert manifest.trials[1].speedup is not None or "in doubt" in manifest.trials[1].why


def other_cpu(monkeypatch: pytest.MonkeyPatch, isa: tuple[str, ...]) -> None:
    """Let this CPU have these instruction sets."""
    here = environment.host()
    monkeypatch.setattr(environment, "host", lambda: here.model_copy(update={"isa": isa}))


def test_a_portable_artifact_has_what_this_cpu_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_cpu(monkeypatch, ("avx2",))
    recipe = recipes.compose("demo:digits", target="openvino", precision="fp32,bf16", portable=True)
    manifest = export(recipe, tmp_path / "out", QUIET, cache=GraphCache()).artifact.manifest
    assert [variant.name for variant in manifest.variants] == ["fp32", "bf16"]
    assert manifest.variants[1].lost == 0.0, "judged by its graph"
    assert (manifest.target.precision, manifest.trials[1].why) == ("fp32", "left to the machine that runs it")


def test_what_only_the_engine_rounds_is_left_to_the_machine_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_cpu(monkeypatch, ("sse4_2",))
    recipe = recipes.compose("demo:digits", target="openvino", precision="fp32,int8-dynamic", portable=True)
    manifest = export(recipe, tmp_path / "out", QUIET, cache=GraphCache()).artifact.manifest
    assert [(variant.name, variant.lost) for variant in manifest.variants] == [("fp32", None), ("int8-dynamic", None)]
    assert manifest.trials[1].why == "left to the machine that runs it"


class _Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_another_instruction_set_than_it_was_chosen_on_is_a_doubt(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = exported("onnxruntime", None, portable=True).artifact
    trial = artifact.manifest.trials[1]  # a busy machine may have measured nothing
    timed = replace(trial, speedup=Interval(ratio=1.2, ci95=(1.1, 1.3)))
    artifact = dataclasses.replace(
        artifact, manifest=replace(artifact.manifest, trials=(artifact.manifest.trials[0], timed)), states={}
    )
    listener = _Listener()
    open_session(artifact, 1, listener).close()
    assert not [warning for warning in listener.warnings if warning.startswith("doubt:")]
    other_cpu(monkeypatch, ("avx2", "avx_vnni", "sve"))
    open_session(artifact, 1, listener).close()
    (doubt,) = [warning for warning in listener.warnings if warning.startswith("doubt:")]
    assert "was chosen as the fastest on a CPU with other instruction sets" in doubt
    assert "also sve" in doubt
    assert "vitdeploy compile DIR chooses again here" in doubt


def test_the_deployed_machine_chooses_again(exported: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime runs the variants' own graphs, OpenVINO compiles them in another process."""
    for target, precision in (("onnxruntime", None), ("openvino", "fp32,int8")):
        artifact = exported(target, precision, portable=True).artifact
        again = compile_bundle(artifact, tmp_path / target, QUIET).artifact
        manifest = artifacts.load(again.path).manifest
        assert [trial.precision for trial in manifest.trials] == [v.precision for v in manifest.variants]
        assert sum(trial.kept for trial in manifest.trials) == 1
        assert all(trial.images == 197 for trial in manifest.trials), "judged here, by FP32's outputs"
        assert manifest.device_parity is not None
        name = manifest.variant
        assert again.file("graph.onnx").read_bytes() == again.file(f"graph.{name}.onnx").read_bytes()
        named = compile_bundle(artifact, tmp_path / f"{target}-int8", QUIET, variant="int8").artifact
        assert named.manifest.target.precision == "int8"
        assert (named.manifest.runs == "graph.onnx") == (target == "onnxruntime")
        open_session(named, 1).close()


def test_judge_data_has_the_images_and_what_float32_says(exported: Bundle) -> None:
    result = exported("tensorrt")
    with np.load(result.artifact.file("reference/judge.npz")) as stored:
        assert stored["pixels"].dtype == np.uint8
        assert stored["pixels"].shape == (197, 1, 32, 32)
        assert (stored["output.output"].argmax(-1) == stored["labels"]).mean() > 0.9
        assert stored["output.output"].dtype == np.float16
        assert str(stored["task"]) == "classification"
    (note,) = [note for note in result.summary.notes if note.startswith("judge data")]
    assert note == "judge data: 197 images with FP32's outputs, 0.2 MiB (--no-judge-data leaves it out)"


def test_judge_data_can_be_left_out(exported: Bundle) -> None:
    result = exported("tensorrt", judge=False)
    assert not result.artifact.file("reference/judge.npz").exists()
    assert any(note.startswith("without judge data") for note in result.summary.notes)


def test_judge_data_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.pipeline.judge_data.MOST_BYTES", 10 * (32 * 32 + 2 * 10))
    recipe = recipes.compose("demo:digits", target="tensorrt", precision="fp16,int8")
    result = export(recipe, tmp_path / "out", QUIET, cache=GraphCache())
    with np.load(result.artifact.file("reference/judge.npz")) as stored:
        assert len(stored["pixels"]) == 10


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 is one only"):
        export(
            recipes.compose("demo:digits", target="openvino", precision="int8", portable=True), tmp_path / "a", QUIET
        )
    with pytest.raises(UsageError, match="onnxruntime cannot do fp8"):
        export(recipes.compose("demo:digits", target="onnxruntime", precision="fp32,fp8"), tmp_path / "b", QUIET)
    with pytest.raises(RecipeError, match="there twice"):
        recipes.compose("demo:digits", target="openvino", precision="int8,int8")
    with pytest.raises(RecipeError, match="'auto' is not one of"):
        recipes.compose("demo:digits", target="openvino", precision="int8,auto")
    assert not list(tmp_path.iterdir())
