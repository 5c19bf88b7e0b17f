"""The gate's verdict: a pure function of evidence and limits.

Every check passes, fails, or is invalid, which means that it could not be decided. A check with missing, outdated or
doubtful evidence is invalid. So is a gate without limits: without a check there is no pass.
"""

from __future__ import annotations

from vitdeploy.evidence import Gate, Status
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict._accuracy import check_accuracy, check_finite, check_operating_point
from vitdeploy.verdict._agreement import Identity
from vitdeploy.verdict._baseline import check_against_baseline, explain_incomparable
from vitdeploy.verdict._case import Before, Case, EvidenceName, Signature, invalid
from vitdeploy.verdict._energy import check_energy
from vitdeploy.verdict._examine import Examined, Stored, examine, explain_calibrated
from vitdeploy.verdict._limits import (
    check_end_to_end,
    check_fused,
    check_latency,
    check_memory,
    check_quantized,
    check_size,
    check_speedup,
)
from vitdeploy.verdict._pair import StoredPair, examine_pair
from vitdeploy.verdict._recompute import recompute_bench
from vitdeploy.verdict._release import check_release, compare_releases, recompute_release
from vitdeploy.verdict._signed import check_signed

__all__ = [
    "Before",
    "Case",
    "EvidenceName",
    "Examined",
    "Identity",
    "Signature",
    "Stored",
    "StoredPair",
    "check_signed",
    "compare_releases",
    "examine",
    "examine_pair",
    "explain_calibrated",
    "explain_incomparable",
    "invalid",
    "judge",
    "recompute_bench",
    "recompute_release",
]

_NO_LIMIT = (
    "there is no limit: give --max-drop, --min-speedup, --max-latency, --max-energy, --min-fused, --min-quantized, "
    "--max-size, --max-memory or --baseline"
)


def judge(case: Case, limits: GateSpec, before: Before | None = None) -> Gate:
    """Compare the evidence with the limits and, if there is one, with an earlier artifact.

    Args:
        case: the artifact and the evidence about it.
        limits: a limit that is None is not checked.
        before: the earlier artifact.
    """
    interleaved = before.interleaved if before is not None else None
    results = [
        *case.faults,
        check_signed(case.signature, limits.require_signed),
        check_finite(case, interleaved),
        check_accuracy(case, limits.max_drop_pp),
        *check_operating_point(case, limits),
        check_speedup(case, limits.min_speedup),
        check_latency(case, limits.max_latency_ms, limits.latency_percentile or 50),
        check_end_to_end(case, limits.max_end_to_end_ms, limits.latency_percentile or 50),
        check_energy(case, limits.max_energy_mj, limits.energy_rail),
        check_fused(case, limits.min_fused_pct),
        check_quantized(case, limits.min_quantized_pct),
        check_size(case, limits.max_size_mib),
        check_memory(case, limits.max_memory_mib),
        *check_release(case, limits, before.release if before else None, before.unreleased if before else ""),
        *check_against_baseline(case, limits, before),
    ]
    checks = tuple(check for check in results if check is not None)
    if not checks:
        checks = (invalid("limits", "at least one", _NO_LIMIT),)
    statuses = {check.status for check in checks}
    verdict: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(
        verdict=verdict,
        checks=checks,
        manifest=case.manifest,
        timing=interleaved,
        limits=limits.model_dump(exclude_none=True),
        baseline=before.baseline.model_dump(mode="json") if before and before.baseline else None,
        release=before.release if before else None,
        untimed=before.untimed if before else "",
        against=case.against if case.against_digest else "",
        against_digest=case.against_digest,
    )
