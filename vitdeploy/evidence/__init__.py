"""The evidence: typed records of what was measured, or read back from a compiled model.

These classes are the JSON contract of `--json` and of the files `audit.json`, `bench.json`, `eval.json`, `gate.json`,
`sensitivity.json` and `streams.json` beside an artifact's manifest. Keys are never removed or renamed; new ones may be
added.

Latencies are in milliseconds. A speed-up is reference time / artifact time: above 1 is faster. A drop is reference -
deployed in the metric's unit, or deployed - reference for errors: above 0 is worse. `manifest` is the sha256 of the
manifest.json that the evidence is about; evidence about another manifest is stale.
"""

from __future__ import annotations

from vitdeploy.evidence.accuracy import (
    ClassScore,
    Comparison,
    Divergence,
    Eval,
    Flip,
    Located,
    Metric,
    OperatingPoint,
)
from vitdeploy.evidence.audit import (
    AttentionAudit,
    Audit,
    Availability,
    BlockGroup,
    BlockKind,
    EvidenceLevel,
    FileEntry,
    GeluAudit,
    KernelAudit,
    LayerSensitivity,
    LinearAudit,
    LinearGroup,
    NormAudit,
    Outline,
    QuantizedShare,
    RegionSensitivity,
    Sensitivity,
    Unfused,
)
from vitdeploy.evidence.energy import Power, RailEnergy
from vitdeploy.evidence.fact import Evidence, Fact, Measured, Provenance
from vitdeploy.evidence.pixels import PixelCheck
from vitdeploy.evidence.release import GroupDrop, Release
from vitdeploy.evidence.stream_setting import StreamSetting
from vitdeploy.evidence.streams import StreamTuning, TriedSetting, TunedScenario
from vitdeploy.evidence.sustained import BlockState, Sustained, SustainedBlock
from vitdeploy.evidence.sweep import (
    Basis,
    Picked,
    Sweep,
    SweepEstimate,
    SweepFailure,
    SweepRow,
    TrialRecord,
    TrialState,
    WorkPeriod,
)
from vitdeploy.evidence.timing import (
    Bench,
    DeviceTime,
    EndToEnd,
    Interval,
    OperatorShare,
    Pair,
    Peak,
    Profile,
    Role,
    Roofline,
    Run,
    Scenario,
    Stage,
    Startup,
    WarmUp,
)
from vitdeploy.evidence.verdict import (
    Check,
    Gate,
    Status,
)
from vitdeploy.evidence.weights import CheckpointUse

__all__ = [
    "AttentionAudit",
    "Audit",
    "Availability",
    "Basis",
    "Bench",
    "BlockGroup",
    "BlockKind",
    "BlockState",
    "Check",
    "CheckpointUse",
    "ClassScore",
    "Comparison",
    "DeviceTime",
    "Divergence",
    "EndToEnd",
    "Eval",
    "Evidence",
    "EvidenceLevel",
    "Fact",
    "FileEntry",
    "Flip",
    "Gate",
    "GeluAudit",
    "GroupDrop",
    "Interval",
    "KernelAudit",
    "LayerSensitivity",
    "LinearAudit",
    "LinearGroup",
    "Located",
    "Measured",
    "Metric",
    "NormAudit",
    "OperatingPoint",
    "OperatorShare",
    "Outline",
    "Pair",
    "Peak",
    "Picked",
    "PixelCheck",
    "Power",
    "Profile",
    "Provenance",
    "QuantizedShare",
    "RailEnergy",
    "RegionSensitivity",
    "Release",
    "Role",
    "Roofline",
    "Run",
    "Scenario",
    "Sensitivity",
    "Stage",
    "Startup",
    "Status",
    "StreamSetting",
    "StreamTuning",
    "Sustained",
    "SustainedBlock",
    "Sweep",
    "SweepEstimate",
    "SweepFailure",
    "SweepRow",
    "TrialRecord",
    "TrialState",
    "TriedSetting",
    "TunedScenario",
    "Unfused",
    "WarmUp",
    "WorkPeriod",
]
