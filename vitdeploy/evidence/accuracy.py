"""How near it is to FP32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.audit import EvidenceLevel
from vitdeploy.evidence.fact import Evidence, Fact


class Metric(Fact):
    """A metric on both sides, paired: the drop with its two-sided 95 % interval and one-sided 95 % bounds.

    Of an error, where lower is better, the drop is deployed - reference: above 0 is always worse.
    """

    reference: float
    deployed: float
    drop: float
    unit: str
    better: Literal["higher", "lower"] = "higher"
    ci95: tuple[float, float]
    lower95: float
    upper95: float


class Eval(Evidence):
    """Accuracy of both sides on the same samples; `doubts` say why it proves nothing (labels in another order …).

    `agreement` is the mean over samples of how far the two answers agree, from 0 to 1, and `flips` counts the samples
    whose answers are not the same; what that means is the task's.
    """

    file: ClassVar[str] = "eval.json"

    task: str
    n: int
    metrics: Mapping[str, Metric]
    agreement: float
    flips: int
    p_value: float
    """Of the first metric's difference, by `test`: exact McNemar, or swapping the two sides' answers at random."""
    test: str = "McNemar"
    reference: str = ""
    data: str = ""
    data_digest: str = ""
    skipped: int = 0
    discordance: float = 0.0
    """The share of samples with different outcomes; of other metrics the mean square of what one sample changes."""
    nonfinite: int = 0
    """Samples for which the deployed side gave NaN or infinity."""
    doubts: tuple[str, ...] = ()


class Comparison(Fact):
    """One tensor of FP32 and of the artifact, over all images. None: it cannot be compared, `note` says why.

    `adds_db`: the ratio of signal to the noise that was not yet in what it is computed from.
    """

    name: str
    tensor: str
    kind: str = "end"
    sqnr_db: float | None = None
    adds_db: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    reference_max: float | None = None
    nonfinite: int = 0
    note: str = ""


class Divergence(Fact):
    """Where FP32 and the artifact part: the first block, and the first layer in it; None if they do not."""

    target: str
    precision: str
    block: str | None
    layer: str | None
    why: str
    rule: str
    blocks: tuple[Comparison, ...]
    """At the end of each: stem, blocks, head."""
    layers: tuple[Comparison, ...]
    """Of `block`; of the one that adds most noise, if they do not part."""
    images: int
    data: str
    evidence: EvidenceLevel
    how: str
    """What ran as the artifact."""
