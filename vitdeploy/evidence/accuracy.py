"""Accuracy compared with FP32, and the place where the two diverge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vitdeploy.evidence.audit import EvidenceLevel
from vitdeploy.evidence.fact import Fact, Measured


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
    order: str = ""
    """How the data says which class is which: see `data.dataset.Order`. Empty if classes need no order."""
    class_names: tuple[str, ...] = ()
    """The names of the data's folders in the order of their classes, where the model has no labels."""
    repeated: int = 0
    """Number of samples that repeat the image of another one, and are not counted in `n`."""


class Comparison(Fact):
    """One tensor of FP32 and of the artifact, over all images. If it cannot be compared, `note` says why.

    `adds_db` is the ratio of the signal to the noise that is in this tensor but not in the inputs it is computed from.
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
