"""Kernels are matched to the model by the names of its nodes, and counted in an audit."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.evidence import Audit, LinearAudit, NormAudit
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.graph.structure import AttentionSite, Gelu, Linear, Norm, Structure
from vitdeploy.recipe import Batch
from vitdeploy.targets import Bundle, Compiled
from vitdeploy.targets._audit import is_named_after, make_audit

NODE = "blocks.1/attn/MatMul"


@pytest.mark.parametrize(
    "kernel", [NODE, f"{NODE}/Fusion", f"{NODE}:0_nchwc", f"{NODE}_token_3", f"{NODE}_quant", f"{NODE}_quant_1"]
)
def test_a_kernel_with_a_nodes_name_or_one_made_from_it_is_the_nodes(kernel: str) -> None:
    assert is_named_after(kernel, NODE)


@pytest.mark.parametrize(
    "kernel",
    [
        f"{NODE}_1",  # the second product of the same module
        f"{NODE}s",
        f"{NODE}Add",
        "blocks.1/attn",
        f"blocks.1{NODE}",
        f"other/{NODE}",
        NODE.replace(".", "-") + "/Fusion",
        "",
    ],
)
def test_a_kernel_with_another_nodes_name_is_not_the_nodes(kernel: str) -> None:
    assert not is_named_after(kernel, NODE)


def site(name: str, refused: str | None = None) -> AttentionSite:
    return AttentionSite(name=name, nodes=(f"{name}/Attention",), block=0, refused=refused)


def linear(name: str) -> Linear:
    return Linear(name=name, nodes=(f"{name}/MatMul",), role="fc1", block=0, weight=(4, 4))


STRUCTURE = Structure(
    attention=(site("fused"), site("split"), site("refused", "its scale is negative"), site("lost")),
    linears=tuple(map(linear, "abcd")),
    norms=(Norm(name="norm", nodes=("norm/LayerNormalization",)),),
)


def audited(norms: int = 1) -> Audit:
    bundle = Bundle(Path("graph.onnx"), STRUCTURE, FLOAT32, Batch(), "input", (1, 3, 32, 32))
    return make_audit(
        "engine", bundle, Compiled(Path(), "model", "engine 1.0"), norms=norms,
        fused={"fused": "mha"}, reasons={"split": "runs as 2 kernels", "refused": "runs as 5 kernels"},
        layers={"a": "int8", "b": "int8", "c": "u4"},
    )  # fmt: skip


def test_each_site_that_is_not_fused_has_the_reason_that_is_nearest_to_the_engine() -> None:
    attention = audited().attention
    assert (attention.sites, attention.fused) == (4, 1)
    assert {entry.site: entry.reason for entry in attention.unfused} == {
        "split": "runs as 2 kernels",
        "refused": "runs as 5 kernels",
        "lost": "not found in the compiled model",
    }


def test_a_gelu_is_fused_if_one_kernel_computes_it() -> None:
    gelus = tuple(Gelu(name=name, nodes=(name,)) for name in ("alone", "in a product", "in two", "lost"))
    bundle = Bundle(Path("graph.onnx"), replace(STRUCTURE, gelus=gelus), FLOAT32, Batch(), "input", (1, 3, 32, 32))
    audit = make_audit(
        "engine", bundle, Compiled(Path(), "model", "engine 1.0"), fused={}, reasons={}, layers={}, norms=0,
        gelus={"alone": ["Gelu"], "in a product": ["FullyConnected"], "in two": ["Mul", "Erf"]},
    )  # fmt: skip
    assert audit.gelu is not None
    assert (audit.gelu.sites, audit.gelu.fused) == (4, 2)
    assert {entry.site: entry.reason for entry in audit.gelu.unfused} == {
        "in two": "runs as Erf + Mul",
        "lost": "not found in the compiled model",
    }


def test_a_structure_of_an_older_version_tells_nothing_about_gelus() -> None:
    assert audited().gelu is None


def test_a_site_that_was_not_raised_says_so_where_the_engine_says_nothing() -> None:
    structure = replace(STRUCTURE, attention=(site("refused", "its scale is negative"),))
    bundle = Bundle(Path("graph.onnx"), structure, FLOAT32, Batch(), "input", (1, 3, 32, 32))
    compiled = Compiled(Path(), "model", "engine 1.0")
    audit = make_audit("engine", bundle, compiled, fused={}, reasons={}, layers={}, norms=0)
    assert [entry.reason for entry in audit.attention.unfused] == ["its scale is negative"]


def test_every_linear_is_counted_once() -> None:
    """One type has no column, and one linear has no kernel."""
    assert audited().linears == LinearAudit(int8=2, other=2)


@pytest.mark.parametrize(("kernels", "fused"), [(0, 0), (1, 1), (2, 1)])
def test_no_more_norms_are_fused_than_the_model_has(kernels: int, fused: int) -> None:
    """An engine may run one norm twice, or a pass may write one anew for another reader."""
    layernorm = audited(kernels).layernorm
    assert (layernorm.sites, layernorm.fused) == (1, fused)
    assert len(layernorm.unfused) == 1 - fused


def audit_norms(fused: int, reasons: dict[str, str]) -> NormAudit:
    norms = tuple(Norm(name=name, nodes=(f"{name}/LayerNormalization",)) for name in "abc")
    bundle = Bundle(Path("graph.onnx"), replace(STRUCTURE, norms=norms), FLOAT32, Batch(), "input", (1, 3, 32, 32))
    compiled = Compiled(Path(), "model", "engine 1.0")
    audit = make_audit("engine", bundle, compiled, fused={}, reasons={}, layers={}, norms=fused, norm_reasons=reasons)
    return audit.layernorm


def test_each_norm_that_is_not_one_kernel_has_a_reason() -> None:
    layernorm = audit_norms(1, {"c": "runs as ReduceMean + Sub"})
    assert (layernorm.sites, layernorm.fused) == (3, 1)
    assert [(entry.site, entry.reason) for entry in layernorm.unfused] == [
        ("c", "runs as ReduceMean + Sub"),
        ("a", "not found in the compiled model"),
    ]


def test_norms_that_all_run_as_one_kernel_have_no_reasons() -> None:
    assert audit_norms(3, {}) == NormAudit(sites=3, fused=3)
