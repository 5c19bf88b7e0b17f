"""The device chooses among the variants of a bundle: a fake board with the speeds and accuracies that a test wants."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_data
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.fakes import engine as fake_engine
from tests.fakes import tensorrt as fake_tensorrt
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import BLOCKS, JUDGE, WEIGHTS
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.commands.gate.gate import gate
from vitdeploy.errors import ArtifactError, CompileError, DataError, UsageError
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import compare_session
from vitdeploy.measure import conditions, stopwatch
from vitdeploy.pipeline import build_store
from vitdeploy.pipeline.block_values import load_block_values, save_block_values
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent

QUIET = Silent()
Device = Callable[..., Any]
FP16_S = 0.024
BUILD = fake_tensorrt._build


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The digits in FP16 and INT8. Not to be changed."""
    recipe = recipes.compose("demo:digits", target="tensorrt", precision="fp16,int8")
    return export(recipe, tmp_path_factory.mktemp("bundle") / "digits", QUIET, cache=GraphCache()).artifact


@pytest.fixture
def bundle(exported: Artifact, tmp_path: Path) -> Artifact:
    shutil.copytree(exported.path, tmp_path / "bundle")
    return artifacts.load(tmp_path / "bundle")


class Clock:
    """Time that passes only where an engine of the fake runs, so that other processes do not change a measurement."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def perf_counter_ns(self) -> int:
        return int(self.perf_counter() * 1e9)


@dataclass
class Board:
    """A board without other work.

    Attributes:
        seconds: of a run, by the type in which the engine multiplies.
        throttled: how often each look at the board finds that it was slowed down.
    """

    clock: Clock
    seconds: dict[str, float]
    throttled: int = 0
    events: int = 0

    def look(self) -> conditions.Snapshot:
        self.events += self.throttled
        now = self.clock.now
        return conditions.Snapshot(
            wall=now, this_process=now, busy=now, steal=0, switches=0, mhz=1500, throttled=self.events
        )


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """A board on which INT8 is twice as fast as FP16."""
    board = Board(Clock(), {"fp16": FP16_S, "int8": FP16_S / 2})
    chance, compute = np.random.default_rng(0), fake_engine.Context._compute

    def timed(context: Any, argument: Any) -> None:
        compute(context, argument)
        kind = "int8" if _is_int8(context._engine) else "fp16"
        board.clock.now += board.seconds[kind] * chance.normal(1, 0.01)

    monkeypatch.setattr(fake_engine.Context, "_compute", timed)
    monkeypatch.setattr(stopwatch, "time", board.clock)
    monkeypatch.setattr(conditions, "take_snapshot", board.look)
    monkeypatch.setattr(conditions, "settle", lambda: None)
    return board


def _is_int8(engine: Any) -> bool:
    return any("Int8" in layer["types"] for layer in engine._facts["layers"])


def spoil(bundle: Artifact, name: str) -> Artifact:
    """Let a variant give each class the score of the next one. The bundle says how its own graph differs."""
    path = bundle.file(f"graph.{name}.onnx")
    model = onnx.load(path, load_external_data=False)
    [output] = model.graph.output
    maker = next(node for node in model.graph.node if output.name in node.output)
    maker.output[[*maker.output].index(output.name)] = "scores"
    model.graph.initializer.append(numpy_helper.from_array(np.roll(np.arange(10), 1), "next"))
    model.graph.node.append(helper.make_node("Gather", ["scores", "next"], [output.name], axis=-1, name="mixed"))
    onnx.save(model, path)
    examples = load_examples(bundle.file("reference/example.npz"), bundle.manifest.preprocess, "normalized")
    with OnnxSession(path) as session:
        parity = compare_session(session, examples, bundle.manifest.inputs[0].name)
        outputs = session.run(examples[0].feed(bundle.manifest.inputs[0].name))
    blocks = load_block_values(bundle.file(BLOCKS))
    assert blocks is not None
    emulated = {**blocks.emulated, name: {**blocks.emulated[name], **outputs}}
    save_block_values(bundle.file(BLOCKS), replace_data(blocks, emulated=emulated))
    variants = tuple(replace(v, graph_parity=parity) if v.name == name else v for v in bundle.manifest.variants)
    artifacts.seal(bundle.path, replace(bundle.manifest, variants=variants))
    return artifacts.load(bundle.path)


def trials(artifact: Artifact) -> list[tuple[str, bool, str]]:
    return [(trial.precision, trial.kept, trial.why) for trial in artifact.manifest.trials]


def test_a_faster_variant_that_loses_nothing_is_kept(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    device("10.3")
    result = compile_bundle(bundle, tmp_path / "out", QUIET)
    artifact = artifacts.load(tmp_path / "out")
    manifest = artifact.manifest
    assert trials(artifact) == [("fp16", False, "int8 is faster"), ("int8", True, "")]
    assert (manifest.variant, manifest.target.precision, manifest.stage) == ("int8", "int8", "artifact")
    fp16, int8 = manifest.trials
    assert int8.speedup is not None
    assert 1.95 < int8.speedup.ci95[0] < int8.speedup.ratio < 2.05
    assert (int8.judged_by, int8.images, fp16.images) == ("labels", 197, 197)
    assert artifact.file("graph.onnx").read_bytes() == bundle.file("graph.int8.onnx").read_bytes()
    assert any(note.startswith("auto chose int8: ") for note in result.summary.notes)
    audit, _ = artifact.read_evidence(Audit)
    assert audit is not None
    assert audit.linears.int8 > 0
    assert not (artifact.path / "work").exists()
    assert gate(artifact, {"min_fused_pct": 100.0}, QUIET).verdict in ("pass", "fail"), "no fault of the manifest"


def test_a_faster_variant_that_loses_too_much_is_dropped(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    device("10.3")
    artifact = compile_bundle(spoil(bundle, "int8"), tmp_path / "out", QUIET).artifact
    assert trials(artifact) == [("fp16", True, ""), ("int8", False, "over the budget of 0.5")]
    lost = artifact.manifest.trials[1].lost
    assert lost is not None
    assert lost > 50
    assert artifact.manifest.target.precision == "fp16"
    kept = compile_bundle(artifacts.load(bundle.path), tmp_path / "other", QUIET, max_drop_pp=100).artifact
    assert kept.manifest.target.precision == "int8", "--max-drop is the device's to say as well"


def test_a_slower_variant_is_dropped(bundle: Artifact, device: Device, board: Board, tmp_path: Path) -> None:
    device("10.3")
    board.seconds["int8"] = 1.5 * FP16_S
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert trials(artifact) == [("fp16", True, ""), ("int8", False, "not faster than fp16")]
    assert artifact.file("graph.onnx").read_bytes() == bundle.file("graph.fp16.onnx").read_bytes()


def test_a_throttling_board_leads_to_a_doubt_and_the_default(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    device("10.3")
    board.throttled = 1
    result = compile_bundle(bundle, tmp_path / "out", QUIET)
    assert trials(result.artifact) == [("fp16", True, ""), ("int8", False, "its speed is in doubt")]
    (doubt,) = [note for note in result.summary.notes if note.startswith("the comparison of speeds is in doubt")]
    assert "slowed down" in doubt
    assert doubt.endswith("--seconds 30")
    again = compile_bundle(bundle, tmp_path / "again", QUIET, seconds=20)
    (doubt,) = [note for note in again.summary.notes if note.startswith("the comparison of speeds is in doubt")]
    assert doubt.endswith("--seconds 60")
    assert again.artifact.manifest.recipe.precision.seconds == 20
    with pytest.raises(UsageError, match="--seconds is for the comparison of variants, and --variant names one"):
        compile_bundle(bundle, tmp_path / "no", QUIET, seconds=20, variant="int8")
    assert not (tmp_path / "no").exists()


def test_a_named_variant_is_compiled_and_no_other(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    trt = device("10.3")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET, variant="int8").artifact
    assert len(trt.built) == 1
    assert trials(artifact) == [("int8", True, "")]
    assert artifact.manifest.variant == "int8"
    with pytest.raises(UsageError, match=r"there is no variant int4\. Give one of fp16, int8, fp16-separate-qkv, "):
        compile_bundle(bundle, tmp_path / "no", QUIET, variant="int4")
    assert not (tmp_path / "no").exists()


def test_an_artifact_is_chosen_again(bundle: Artifact, device: Device, board: Board, tmp_path: Path) -> None:
    device("10.3")
    first = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    board.seconds["int8"] = 2 * FP16_S  # such as in another power mode
    again = compile_bundle(artifacts.load(first.path), None, QUIET).artifact
    assert (first.manifest.variant, again.manifest.variant) == ("int8", "fp16")
    assert again.manifest.passes == bundle.manifest.passes


def test_what_a_gpu_has_no_units_for_is_not_built(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    trt = device("10.3")
    int8 = bundle.manifest.variants[1]
    variants = (*bundle.manifest.variants, replace(int8, name="fp8", precision="fp8"))
    for kind in ("graph", "sites"):
        suffix = "onnx" if kind == "graph" else "json"
        shutil.copyfile(bundle.file(f"{kind}.int8.{suffix}"), bundle.file(f"{kind}.fp8.{suffix}"))
    artifacts.seal(bundle.path, replace(bundle.manifest, variants=variants))
    artifact = compile_bundle(artifacts.load(bundle.path), tmp_path / "out", QUIET).artifact
    assert len(trt.built) == 2
    assert trials(artifact)[2][2].startswith("this GPU (sm87) has no FP8 units")


def refuse_memory(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Let builds of these precisions run out of memory."""

    def build(trt: Any, logger: Any, network: Any, config: Any) -> Any:
        is_int8 = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
        trt.faults = {"memory"} if ("int8" if is_int8 else "fp16") in kinds else set()
        return BUILD(trt, logger, network, config)

    monkeypatch.setattr(fake_tensorrt, "_build", build)


def test_a_variant_that_runs_out_of_memory_is_a_trial(
    bundle: Artifact, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("10.3")
    refuse_memory(monkeypatch, "int8")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    (_, kept, _), (_, _, why) = trials(artifact)
    assert kept
    assert "ran out of memory" in why


def test_the_next_variant_takes_the_place_of_a_default_that_cannot_be_built(
    bundle: Artifact, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("10.3")
    refuse_memory(monkeypatch, "fp16")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert artifact.manifest.variant == "int8"
    assert [trial.kept for trial in artifact.manifest.trials] == [False, True]
    refuse_memory(monkeypatch, "fp16", "int8")
    with pytest.raises(CompileError, match=r"none of the variants could be compiled here: fp16: .*memory.*; int8: "):
        compile_bundle(bundle, tmp_path / "none", QUIET)
    assert not (tmp_path / "none").exists()


class Killed(BaseException):
    """The end of the process, which runs no `finally` of a build."""


def kill_in(monkeypatch: pytest.MonkeyPatch, build: int) -> None:
    """Let the process die in the build of this number: what it would clean up stays."""
    count = 0
    real = fake_tensorrt._build

    def dying(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == build:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(fake_tensorrt, "_build", dying)
    monkeypatch.setattr(build_store.BuildStore, "_end_attempt", lambda *_: None)


def test_a_killed_compile_continues_with_what_is_not_built(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    trt = device("10.3")
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, 2)
        with pytest.raises(Killed):
            compile_bundle(bundle, tmp_path / "out", QUIET)
    assert len(trt.built) == 1
    assert not (tmp_path / "out").exists()
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert len(trt.built) == 2, "FP16 was built before"
    assert artifact.manifest.variant == "int8"
    assert len(artifact.manifest.trials) == 2
    audit, _ = artifact.read_evidence(Audit)
    assert audit is not None
    assert audit.attention.fused == audit.attention.sites == 4
    builds = tmp_path / "cache" / "vitdeploy" / "builds"
    assert not list(builds.iterdir()), "nothing is left behind"
    compile_bundle(bundle, tmp_path / "again", QUIET)
    assert len(trt.built) == 4, "and nothing is taken from a compile that ended"


def test_a_build_that_kills_the_process_twice_is_left_out(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    device("10.3")
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            kill_in(patch, 1 if (tmp_path / "cache/vitdeploy/builds").exists() else 2)
            with pytest.raises(Killed):
                compile_bundle(bundle, tmp_path / "out", QUIET)
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    (_, kept, _), (_, _, why) = trials(artifact)
    assert kept
    assert why.startswith("the process was killed each time that it was built")


def test_a_damaged_stored_engine_is_built_again(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    trt = device("10.3")
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, 2)
        with pytest.raises(Killed):
            compile_bundle(bundle, tmp_path / "out", QUIET)
    (engine,) = (tmp_path / "cache/vitdeploy/builds").glob("*/engine.plan")
    engine.write_bytes(engine.read_bytes()[:-1])
    compile_bundle(bundle, tmp_path / "out", QUIET)
    assert len(trt.built) == 3


def reseal_judge(bundle: Artifact, **changes: Any) -> Artifact:
    """Replace arrays of the judge data; None removes one."""
    with np.load(bundle.file(JUDGE)) as stored:
        arrays = {**stored, **changes}
    np.savez(bundle.file(JUDGE), **{name: value for name, value in arrays.items() if value is not None})
    artifacts.seal(bundle.path, bundle.manifest)
    return artifacts.load(bundle.path)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"task": np.array("depth")}, "judge data of the task depth, and the model's is classification"),
    ({"task": None}, "judge data of the task unknown"),
    ({"pixels": None}, "damaged: it has no images"),
    ({"pixels": np.zeros((197, 1, 16, 16), np.uint8)}, "has images of 1x16x16 and the model takes 1x32x32"),
    ({"labels": np.zeros(3, np.int64)}, "damaged: it does not have one output and one label for each image"),
    ({"output.output": np.zeros((197, 2, 2), np.float16)}, "damaged: its outputs are not those of a model for class"),
])  # fmt: skip
def test_judge_data_that_does_not_fit_is_one_line(
    changes: dict[str, Any], reason: str, bundle: Artifact, device: Device, tmp_path: Path
) -> None:
    trt = device("10.3")
    with pytest.raises(DataError, match=reason) as raised:
        compile_bundle(reseal_judge(bundle, **changes), tmp_path / "out", QUIET)
    assert "--variant NAME" in raised.value.fix
    assert not trt.built, "before anything is built"
    assert not (tmp_path / "out").exists()


def test_damaged_or_oversized_judge_data_is_one_line(
    bundle: Artifact, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("10.3")
    monkeypatch.setattr("vitdeploy.pipeline.judge_data._MOST_READ_BYTES", 1000)
    with pytest.raises(DataError, match="judge data has at most"):
        compile_bundle(bundle, tmp_path / "out", QUIET)
    monkeypatch.undo()
    device("10.3")
    bundle.file(JUDGE).write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        artifacts.load(bundle.path)
    artifacts.seal(bundle.path, bundle.manifest)
    with pytest.raises(DataError, match=r"bundle/reference/judge.npz is not an .npz file"):
        compile_bundle(artifacts.load(bundle.path), tmp_path / "out", QUIET)


def test_without_judge_data_the_exporters_judgement_counts(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path
) -> None:
    device("10.3")
    bundle.file(JUDGE).unlink()
    int8 = bundle.manifest.variants[1]
    for lost, kept in ((0.1, "int8"), (2.0, "fp16"), (None, "fp16")):
        variants = (bundle.manifest.variants[0], replace(int8, lost=lost))
        artifacts.seal(bundle.path, replace(bundle.manifest, variants=variants))
        artifact = compile_bundle(artifacts.load(bundle.path), tmp_path / f"{lost}", QUIET).artifact
        assert artifact.manifest.variant == kept
        assert artifact.manifest.trials[1].lost == lost


def test_engines_of_other_numbers_are_not_chosen(
    bundle: Artifact, device: Device, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that computes wrongly, although its graph is right."""
    device("10.3")
    compute = fake_engine.Context._compute

    def wrongly(context: Any, argument: Any) -> None:
        compute(context, argument)
        if _is_int8(context._engine):
            for name in [name for name in context._engine._values if name not in context._engine._inputs]:
                context._array(name)[...] = context._array(name)[..., ::-1].copy()

    monkeypatch.setattr(fake_engine.Context, "_compute", wrongly)
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    (_, kept, _), (_, _, why) = trials(artifact)
    assert kept
    assert why.startswith("the engine computes other numbers than the graph")
    assert not artifact.manifest.doubts


def test_weights_that_were_exchanged_are_refused(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    device("10.3")
    raw = bytearray(bundle.file(WEIGHTS).read_bytes())
    raw[100] ^= 1
    bundle.file(WEIGHTS).write_bytes(raw)
    with pytest.raises(ArtifactError):
        compile_bundle(replace_data(bundle), tmp_path / "out", QUIET)
