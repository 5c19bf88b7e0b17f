"""The contract of all targets. A new file in `targets/` is tested here without a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.graphs import expected, images
from vitdeploy import precision as precisions
from vitdeploy import targets
from vitdeploy.errors import CompileError, RecipeError, TargetUnavailable, UsageError, VitdeployError
from vitdeploy.evidence import Audit
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import load
from vitdeploy.graph.onnx_session import compare
from vitdeploy.onnx_export import disagreement
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._onnxruntime import kernels

NAMES = targets.names()
SITES, NORMS = 2, 5  # of the tiny ViT
UNQUANTIZED = 1  # the patch embedding stays in float


def options(name: str, precision: str) -> dict[str, Any]:
    """One thread, because OpenVINO's fusion depends on them; a GPU with FP8 units for FP8."""
    if name in ("openvino", "onnxruntime"):
        return {"threads": 1}
    return {"device": "sm89"} if (name, precision) == ("tensorrt-rtx", "fp8") else {}


def lacking(name: str, precision: str) -> str | None:
    """Return why this CPU cannot run a precision of the target, or None."""
    try:
        precisions.check(precision, target(name, **options(name, precision)))
    except UsageError as error:
        return error.message
    return None


def target(name: str, **options: Any) -> Target:
    return targets.find(TargetSpec(kind=name, **options))


def test_the_targets_are_the_files() -> None:
    folder = Path(targets.__path__[0])
    files = {p.stem.replace("_", "-") for p in folder.glob("[!_]*.py")}
    assert set(NAMES) == files
    assert {"openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"} <= files


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        target("openvin")


@pytest.mark.parametrize("name", NAMES)
def test_a_target_says_what_it_can_do(name: str) -> None:
    found = target(name)
    assert found.name == name
    assert set(found.precisions) <= set(precisions.names_for(found)) <= set(precisions.names())
    assert found.default_precision == found.precisions[0]
    dialect = found.dialect()
    assert isinstance(dialect, Dialect)
    assert 20 <= dialect.opset <= 22  # an Attention of opset 23 without a dedicated kernel fails a TensorRT build
    for precision in precisions.names_for(found):
        assert lacking(name, precision) is None or "this CPU has no" in str(lacking(name, precision))
    unable = next(name for name in precisions.names() if name not in precisions.names_for(found))
    with pytest.raises(UsageError, match=f"{name} cannot do {unable}. It can do {found.precisions[0]}"):
        precisions.check(unable, found)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="wokspace_bytes"):
        target(name, wokspace_bytes=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_device_has_a_reason_and_a_fix(name: str) -> None:
    found = target(name, device="sm13")
    missing = found.unavailable()
    assert missing is not None
    assert not missing.available
    assert missing.why
    assert missing.fix
    with pytest.raises(TargetUnavailable, match=f"^{name}: ") as caught:
        found.require()
    assert caught.value.fix == missing.fix


def available() -> Iterator[Any]:
    """Each target that can compile here, with each of its precisions; the others are skipped with a reason."""
    for name in NAMES:
        missing = target(name).unavailable()
        for precision in precisions.names_for(target(name)):
            why = missing.why if missing else lacking(name, precision)
            marks = [pytest.mark.skip(reason=why)] if why else []
            yield pytest.param(name, precision, marks=marks, id=f"{name}-{precision}")


@pytest.mark.parametrize("kind", ["dynamo", "legacy-17", "dynamo-batch"])
@pytest.mark.parametrize(("name", "precision"), [*available()])
def test_compiles_and_audits(name: str, precision: str, kind: str, bundle: Callable[..., Bundle]) -> None:
    options = (
        {"threads": 1} if name in ("openvino", "onnxruntime") else {"device": "sm89"} if precision == "fp8" else {}
    )
    found = target(name, **options)
    given = bundle(found, precision, kind)
    compiled = found.compile(given, given.graph.parent)
    assert (compiled.folder / compiled.runs).stat().st_size > 0
    assert compiled.backend.startswith(name.partition("-")[0])

    audit = found.audit(given, compiled)
    assert isinstance(audit, Audit)
    assert audit == compiled.audit
    assert (audit.target, audit.precision, audit.backend) == (name, precision, compiled.backend)
    check_attention(audit, given)
    assert audit.layernorm.sites == len(given.structure.norms) >= NORMS
    counts = audit.linears.model_dump()
    linears = len(given.structure.linears)  # more where q, k and v have one each
    assert sum(counts.values()) == linears
    stored = precision.partition("-")[0] if precision.endswith("-weights") else None
    assert list(audit.stored.values()) == ([stored] * (linears - UNQUANTIZED) if stored else [])
    if stored is not None:
        assert counts["fp32"] == linears, audit.layers
    elif precision.startswith(("int8", "fp8")):
        assert (counts[precision.partition("-")[0]], counts["other"]) == (linears - UNQUANTIZED, 0)
    else:
        assert counts[precision] == linears, audit.layers


@pytest.mark.skipif(target("onnxruntime").unavailable() is not None, reason="onnxruntime is not installed here")
def test_stored_types_are_known_on_a_device_without_onnx(
    bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = target("onnxruntime", threads=1)
    given = bundle(found, "int4-weights")
    compiled = found.compile(given, given.graph.parent)
    here = found.audit(given, compiled).stored
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == "onnx" else name)
    assert found.audit(given, compiled).stored == here != {}


def check_attention(audit: Audit, given: Bundle) -> None:
    """Every site is fused, with its kernel, or not, with the reason."""
    attention = audit.attention
    assert attention.evidence == "compiled"
    assert attention.sites == SITES == attention.fused + len(attention.unfused)
    named = {*attention.kernels, *(u.site for u in attention.unfused)}
    assert named == {site.name for site in given.structure.attention}
    assert all(u.reason and u.reason != "not found in the compiled model" for u in attention.unfused)


def test_onnxruntime_and_openvino_fuse_every_site(bundle: Callable[..., Bundle]) -> None:
    for name in ("onnxruntime", "openvino"):
        found = target(name, threads=1)
        given = bundle(found, "fp32")
        audit = found.audit(given, found.compile(given, given.graph.parent))
        assert (audit.attention.fused, audit.layernorm.fused) == (SITES, len(given.structure.norms)), name


def test_an_unfused_site_is_seen(bundle: Callable[..., Bundle]) -> None:
    """The audit reads the compiled model: ONNX Runtime gets plain primitives, which it cannot fuse."""
    found = target("onnxruntime", threads=1)
    given = bundle(target("openvino"), "fp32")
    audit = found.audit(given, Compiled(given.graph.parent, "graph.onnx", "onnxruntime"))
    assert audit.attention.fused == 0
    assert all("Softmax" in u.reason for u in audit.attention.unfused)


def test_a_site_that_openvino_splits_is_not_fused(bundle: Callable[..., Bundle]) -> None:
    """The first site's attention map is returned, so that its kernels stay apart."""
    found = target("openvino", threads=1)
    given = bundle(found, "fp32")
    graph = load(given.graph)
    softmax = next(node for node in graph.nodes if node.op_type == "Softmax")
    graph.model.graph.outputs.append(softmax.outputs[0])
    graph.save(given.graph)
    attention = found.audit(given, found.compile(given, given.graph.parent)).attention
    assert list(attention.kernels) == [given.structure.attention[1].name]
    assert [u.site for u in attention.unfused] == [given.structure.attention[0].name]
    assert attention.unfused[0].reason.startswith("runs as MatMul")


def test_what_openvino_runs_gives_the_models_numbers(vit: Any, bundle: Callable[..., Bundle]) -> None:
    from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

    found = target("openvino")
    given = bundle(found, "fp32")
    compiled = found.compile(given, given.graph.parent)
    with OpenVINOSession(compiled.folder / compiled.runs, Engine("CPU", 1), name="openvino-fp32") as session:
        outputs = session.run({"input": images()})
        assert session.effective["inference_precision"] == "f32"
    assert disagreement(compare(expected(vit, images()), outputs, batch=1)) is None


@pytest.mark.parametrize("name", [n for n in NAMES if target(n).unavailable() is None])
def test_a_graph_that_does_not_compile_is_an_error_of_ours(name: str, bundle: Callable[..., Bundle]) -> None:
    found = target(name)
    given = bundle(found, "fp32")
    given.graph.write_bytes(given.graph.read_bytes()[:1000])
    with pytest.raises(CompileError) as caught:
        found.compile(given, given.graph.parent)
    assert caught.value.fix


def test_a_target_that_is_not_here_makes_bundles() -> None:
    found = target("tensorrt")
    missing = found.unavailable()
    if missing is None:
        pytest.skip("TensorRT and a GPU are here")
    assert found.built_on_device
    assert "vitdeploy compile" in missing.fix
    if "not installed" in missing.why:
        with pytest.raises(VitdeployError, match="TensorRT does not load"):
            found.compile(None, Path())  # type: ignore[arg-type]


def test_the_thread_count_is_the_requested_one(bundle: Callable[..., Bundle]) -> None:
    for name in ("onnxruntime", "openvino"):
        found = target(name, threads=1)
        given = bundle(found, "fp32")
        assert found.audit(given, found.compile(given, given.graph.parent)).threads == 1
