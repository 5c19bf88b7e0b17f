"""Evidence for tests of what reads it: good unless told otherwise."""

from typing import Any

from vitdeploy.evidence import (
    AttentionAudit,
    Audit,
    Bench,
    Eval,
    Interval,
    LinearAudit,
    Metric,
    NormAudit,
    Run,
    Unfused,
)

MANIFEST = "m" * 64


def audit(fused: int = 12, sites: int = 12, evidence: Any = "compiled", **more: Any) -> Audit:
    unfused = tuple(Unfused(site=f"blocks.{n}.attn", reason="the scale is not constant") for n in range(fused, sites))
    attention = AttentionAudit(sites=sites, fused=fused, evidence=evidence, unfused=unfused)
    norms, linears = NormAudit(sites=25, fused=25), LinearAudit(int8=49, fp32=1)
    facts = {"target": "openvino", "precision": "int8", "layernorm": norms, "linears": linears, "manifest": MANIFEST}
    return Audit(attention=attention, **(facts | more))


def run(name: str, p50: float, speedup: Interval | None = None, **more: Any) -> Run:
    facts = {"batch": 1, "samples": 240, "p90_ms": 1.1 * p50, "p99_ms": 1.5 * p50, "throughput_ips": 1000 / p50}
    return Run(name=name, p50_ms=p50, speedup=speedup, **(facts | more))


def bench(low: float = 1.45, ratio: float = 1.5, high: float = 1.55, *doubts: str, **more: Any) -> Bench:
    runs = (run("pytorch-fp32", 23.8), run("openvino-int8", 23.8 / ratio, Interval(ratio=ratio, ci95=(low, high))))
    facts: dict[str, Any] = {"valid": not doubts, "doubts": doubts, "runs": runs}
    facts |= {"machine": "host", "manifest": MANIFEST} | more
    if all(one.role is None for one in facts["runs"]):  # as of an older vitdeploy: roles by place
        facts["runs"] = [one.model_dump(exclude={"role"}) for one in facts["runs"]]
    return Bench.model_validate(facts)


def evaluation(lower: float = -0.1, drop: float = 0.1, upper: float = 0.3, **more: Any) -> Eval:
    ends = {"ci95": (lower - 0.05, upper + 0.05), "lower95": lower, "upper95": upper}
    metrics = {
        "top1": Metric(reference=72.1, deployed=72.1 - drop, drop=drop, unit="points", **ends),
        "top5": Metric(reference=91.0, deployed=91.0, drop=0.0, unit="points", **ends),
    }
    facts = {"task": "classification", "n": 10_000, "agreement": 0.98, "flips": 200, "p_value": 0.4, "metrics": metrics}
    return Eval(**(facts | {"discordance": 0.02, "data_digest": "data", "manifest": MANIFEST} | more))


def timed_bench(artifact: Any, ratio: float, *doubts: str, against: str = "pytorch-fp32", noise: float = 0.0) -> Bench:
    """A bench of an artifact whose figures follow from its samples: 12 rounds of two blocks, no variation."""
    from vitdeploy.evidence import BlockState
    from vitdeploy.measure.latency import compute_figures
    from vitdeploy.runtime.provenance import describe_provenance

    rounds = (2,) * 12
    slow = tuple((10.0 + noise * (i % 3), 10.0, 10.1) for i in range(24))
    fast = tuple(tuple(sample / ratio for sample in block) for block in slow)
    own = f"{artifact.manifest.target.kind}-{artifact.manifest.target.precision}"
    sides: tuple[Any, ...] = ((against, slow, None, ""), (own, fast, slow, artifact.digest))
    runs = tuple(
        Run(
            name=name, batch=1, threads=2, blocks=blocks, rounds=rounds, manifest=manifest,
            role="artifact" if manifest else "reference",
            **compute_figures(blocks, rounds, 1, reference)._asdict(),
        )
        for name, blocks, reference, manifest in sides
    )  # fmt: skip
    state = BlockState(others=0.0, steal=0.0, switches=10.0, mhz=None)
    origin = describe_provenance(artifact.manifest, 2)
    return Bench(
        valid=not doubts, doubts=doubts, runs=runs, machine=origin.machine, manifest=artifact.digest,
        provenance=origin, conditions={1: (state,) * 24}, seconds=1.0,
    )  # fmt: skip
