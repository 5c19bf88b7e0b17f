"""A subject for tests of the page: a ViT of three blocks, by default with good evidence."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tests import evidence as stored
from vitdeploy.artifact import ExportRecord, Manifest, ModelRecord, Parity, PassRecord, Refusal, TargetRecord
from vitdeploy.environment import Host
from vitdeploy.evidence import (
    AttentionAudit,
    Audit,
    Bench,
    Check,
    Eval,
    FileEntry,
    Gate,
    Interval,
    LayerSensitivity,
    Role,
    Run,
    Sensitivity,
)
from vitdeploy.graph.structure import AttentionSite, Linear, Structure
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.render.html.attention import AttentionMaps, Site
from vitdeploy.render.html.parts import Missing
from vitdeploy.render.html.subject import Subject

BLOCKS = 3
ROLES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
HOST = Host(cpu="a CPU", isa=("avx2",), cores=2, memory_gib=8.0, system="Linux x86_64", python="3.11")


def manifest(*, weights: Any = "pretrained", digest: str = "w" * 64, spec: str = "timm:vit", **more: Any) -> Manifest:
    parity = Parity(max_abs=0.0, reference_max=1.0, cosine=1.0, finite=True, batches=(1,))
    recipe = {"model": spec, "target": {"kind": "openvino"}, "gate": {"max_drop_pp": 0.5, "min_speedup": 1.2}}
    facts = {
        "stage": "artifact",
        "model": ModelRecord(spec=spec, weights=weights, digest=digest, parameters=5_000_000),
        "recipe": Recipe.model_validate(recipe),
        "recipe_digest": "r" * 64,
        "export": ExportRecord(exporter="dynamo", opset=23, parity=parity),
        "passes": (PassRecord(name="raise-attention", fired=3, refused=(Refusal(site="x", reason="no scale"),)),),
        "target": TargetRecord(kind="openvino", device="CPU", precision="int8", backend="openvino 1", host=HOST),
        "preprocess": Preprocess(size=(32, 32)),
        "inputs": (),
        "outputs": (),
        "runs": "model.xml",
        "versions": {"vitdeploy": "0.1.0"},
        "files": tuple(
            FileEntry(path=path, bytes=count, sha256="0" * 64)
            for path, count in (("model.xml", 100), ("model.bin", 1948))
        ),
    }
    return Manifest(**(facts | more))


def structure() -> Structure:
    sites = tuple(
        AttentionSite(
            name=f"blocks.{b}.attn", nodes=(), block=b, heads=2, head_size=8, tokens=17, key_tokens=17, windows=1
        )
        for b in range(BLOCKS)
    )
    linears = [Linear(name="patch", nodes=(), role="patch", block=None, weight=(16, 3, 8, 8), size=(192, 16))]
    linears += [
        Linear(name=f"blocks.{b}.{name}", nodes=(), role=role, block=b, weight=(16, 16), size=(16, 16))  # type: ignore[arg-type]
        for b in range(BLOCKS)
        for role, name in ROLES.items()
    ]
    return Structure(attention=sites, linears=tuple(linears), norms=())


def audit(unfused: dict[str, str] | None = None, **layers: str) -> Audit:
    """An audit with everything fused and in INT8, except what is named."""
    found = structure()
    known = {linear.name: "int8" for linear in found.linears} | {"patch": "fp32"} | layers
    sites = [site.name for site in found.attention]
    reasons = tuple({"site": site, "reason": reason} for site, reason in (unfused or {}).items())
    attention = AttentionAudit.model_validate(
        {
            "sites": len(sites),
            "fused": len(sites) - len(reasons),
            "evidence": "compiled",
            "unfused": reasons,
            "kernels": {site: "Subgraph" for site in sites if site not in (unfused or {})},
        }
    )
    return stored.audit().model_copy(update={"attention": attention, "layers": known})


def runs(ratio: float = 1.5, blocks: int = 20) -> tuple[Run, Run]:
    """Two runs with raw samples."""
    rng = np.random.default_rng(0)

    def side(name: str, ms: float, speedup: Interval | None, role: Role) -> Run:
        samples = ms * rng.lognormal(0.0, 0.03, (blocks, 8))
        raw = tuple(tuple(float(x) for x in block) for block in samples)
        return stored.run(name, ms, speedup, blocks=raw, threads=2, effective={"engine": name}, role=role)

    interval = Interval(ratio=ratio, ci95=(0.98 * ratio, 1.02 * ratio))
    artifact = side("openvino-int8", 24.0 / ratio, interval, "artifact")
    return side("pytorch-fp32", 24.0, None, "reference"), artifact


def bench(ratio: float = 1.5, *doubts: str, **more: Any) -> Bench:
    return Bench(**({"valid": not doubts, "doubts": doubts, "runs": runs(ratio), "machine": HOST.machine} | more))


def gate(verdict: Any = "pass", *, speedup: float = 1.5, drop: float = 0.1, why: str = "fast enough") -> Gate:
    checks = (
        Check(name="accuracy drop", observed=drop, limit=0.5, status="pass", why="it kept its accuracy"),
        Check(name="speed-up", observed=speedup, limit=1.2, status=verdict, why=why),
        Check(name="attention fused", observed=100.0, limit=100.0, status="pass", why="3 of 3"),
    )
    return Gate(verdict=verdict, checks=checks)


def sensitivity() -> Sensitivity:
    layers = tuple(
        LayerSensitivity(
            name=n.name, role=n.role, block=n.block, sqnr_db=40.0, output_sqnr_db=30.0 + k, agreement=0.99, macs=9
        )
        for k, n in enumerate(structure().linears)
    )
    return Sensitivity(precision="int8", layers=layers, images=64, calibration="val", choice="minmax ranges")


def maps(images: int = 2, difference: float = 0.01) -> AttentionMaps:
    rng = np.random.default_rng(0)
    pictures = tuple(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(images))

    def site(block: int) -> Site:
        values = rng.dirichlet(np.ones(16), images).reshape(images, 4, 4)
        drift = np.array([0.01 * (block + 1), 0.0])
        return Site(
            f"blocks.{block}.attn", block, "what the first token attends to", on_image=True, reference=values,
            deployed=values + difference * rng.standard_normal(values.shape), drift=drift,
        )  # fmt: skip

    return AttentionMaps("val", pictures, tuple(site(b) for b in range(BLOCKS)))


def subject(name: str = "deit", **more: Any) -> Subject:
    """Make a subject; `none=True` leaves all evidence out."""
    bare = more.pop("none", False)
    facts: dict[str, Any] = {
        "folder": name,
        "name": name,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "manifest": manifest(),
        "structure": structure(),
        "missing": {
            kind: Missing(f"there is no {kind}.json", f"vitdeploy {command} {name}")
            for kind, command in (
                ("audit", "inspect"), ("bench", "bench"), ("eval", "eval"), ("gate", "gate"),
                ("sensitivity", "inspect --sensitivity"), ("attention", "report"),
            )
        },
    }  # fmt: skip
    if not bare:
        evaluation: Eval = stored.evaluation(data="val")
        facts |= {
            "audit": audit(),
            "bench": bench(),
            "evaluation": evaluation,
            "gate": gate(),
            "sensitivity": sensitivity(),
        }
    return Subject(**(facts | more))
