"""Accuracy compared with FP32, and the place where the two diverge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.audit import EvidenceLevel
from vitdeploy.evidence.fact import Fact, Measured
from vitdeploy.evidence.timing import Interval


class Metric(Fact):
    """A metric of both sides on the same samples, with the drop and its bounds.

    The drop is reference - deployed, or deployed - reference if lower is better: above 0 is always worse. `ci95` is its
    two-sided interval, `lower95` and `upper95` are one-sided bounds.
    """

    reference: float
    deployed: float
    drop: float
    unit: str
    better: Literal["higher", "lower"] = "higher"
    ci95: tuple[float, float]
    lower95: float
    upper95: float


class Flip(Fact):
    """A sample to which the two sides give different answers.

    Attributes:
        name: the image's path below the data.
        label: its label in words; empty if a label is no class.
        reference: the reference's answer in a few words.
        deployed: the artifact's answer.
        reference_score: the probability that the reference gives its answer; None if an answer has none.
        deployed_score: the same of the artifact.
        agreement: how far the two answers agree, from 0 to 1.
        kind: "lost" if only the reference is right, "gained" if only the artifact is; else empty.
    """

    name: str
    label: str = ""
    reference: str = ""
    deployed: str = ""
    reference_score: float | None = None
    deployed_score: float | None = None
    agreement: float = 0.0
    kind: Literal["lost", "gained", ""] = ""


class ClassScore(Fact):
    """The first metric on the samples of one class or group, with the drop and its 95 % interval."""

    name: str
    n: int
    reference: float
    deployed: float
    drop: float
    ci95: tuple[float, float]


class OperatingPoint(Fact):
    """The findings of both sides at a fixed threshold of the score, as an application uses them.

    Attributes:
        threshold: the smallest score that counts.
        score: F1 of what is found, in percent: 2 hits / (found + to be found).
        reference: the number of detections, or of answers with this probability, of the reference.
        deployed: the same of the artifact.
        count: deployed / reference, with its 95 % interval; None if the reference finds nothing.
    """

    threshold: float
    score: Metric
    reference: int
    deployed: int
    count: Interval | None


class Eval(Measured):
    """Accuracy of both sides on the same samples; `doubts` are reasons to distrust it.

    `agreement` is the mean agreement of the two answers to a sample, from 0 to 1. `flips` is the number of samples with
    different answers. The task defines when two answers agree.
    """

    file: ClassVar[str] = "eval.json"

    task: str
    n: int
    metrics: Mapping[str, Metric]
    agreement: float
    flips: int
    p_value: float
    """Of the first metric's difference, by `test`: exact McNemar, or random swaps of the two sides' answers."""
    test: str = "McNemar"
    reference: str = ""
    data: str = ""
    data_digest: str = ""
    skipped: int = 0
    discordance: float = 0.0
    """The share of samples with different outcomes; for other metrics, the mean square of one sample's difference."""
    nonfinite: int = 0
    """Number of samples for which the deployed side gave NaN or infinity."""
    doubts: tuple[str, ...] = ()
    samples: str = ""
    """sha256 of `eval.samples.npz`, which has the outcome of every counted sample; see `measure.samples`."""
    available: int = 0
    """Number of samples in the data."""
    limit: int | None = None
    """The number of samples to stop after (`--limit`); None: all."""
    order: Literal["labels", "indices", "alphabet", ""] = ""
    """The way in which the data names its classes: see `data.dataset.Order`. Empty if classes need no order."""
    class_names: tuple[str, ...] = ()
    """The names of the data's folders in the order of their classes, where the model has no labels."""
    flipped: tuple[Flip, ...] = ()
    """The first of the samples with different answers, those first that only the reference gets right."""
    thumbnails: str = ""
    """sha256 of `eval.flips.npz`, which has a small picture of each sample in `flipped`."""
    classes: tuple[ClassScore, ...] = ()
    """The first metric class by class, where each sample has one class."""
    operating_point: OperatingPoint | None = None
    """The findings of both sides at the threshold of `--at-threshold`."""
    repeated: int = 0
    """Number of samples that repeat the image of another one, and are not counted in `n`."""


class Comparison(Fact):
    """One tensor of FP32 and of the artifact, over all images. If it cannot be compared, `note` says why.

    `adds_db` is the ratio of the signal to the noise that is in this tensor but not in the inputs it is computed from.
    `expected_db` is the ratio that the target-ready graph itself has, operator by operator, and `graph_db` that of the
    artifact against this graph; both only where an engine was compared with stored values.
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
    expected_db: float | None = None
    graph_db: float | None = None
    note: str = ""


class Located(Fact):
    """The first place inside a model at which an engine computes other numbers than its graph.

    Attributes:
        block: the name of the part: a block, `stem`, `head`; None if none is off.
        number: the number of the block; None if the part is not a block.
        group: the group of operators in it; None if none stands out.
        why: a sentence about it.
        blocks: comparisons at the end of each part.
        groups: comparisons inside the part that is off, or that deviates most.
        notes: limits of the result: places that could not be read, faults that go away when places are read.
        how: the thing that ran, in words.
        evidence: "compiled" if the engine itself ran.
        images: the number of images that it ran on.
    """

    block: str | None
    number: int | None
    group: str | None
    why: str
    blocks: tuple[Comparison, ...]
    groups: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    how: str = ""
    evidence: EvidenceLevel = "compiled"
    images: int = 1


class Divergence(Fact):
    """The first block and layer where FP32 and the artifact diverge; None if they do not."""

    target: str
    precision: str
    block: str | None
    layer: str | None
    why: str
    rule: str
    blocks: tuple[Comparison, ...]
    """Comparisons at the end of each part: stem, blocks, head."""
    layers: tuple[Comparison, ...]
    """Comparisons within `block`, or within the block that adds most noise if `block` is None."""
    images: int
    data: str
    evidence: EvidenceLevel
    how: str
    """The thing that ran as the artifact, in words."""
    selected_alike_pct: float | None = None
    """Percent of the rows selected by score that both have selected. Behind the selection only these are compared."""
    notes: tuple[str, ...] = ()
    """Limits of the result: places that could not be read, faults that go away when places are read."""
