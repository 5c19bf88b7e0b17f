"""The accuracy of two artifacts with different weights on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vitdeploy.evidence.accuracy import Metric
from vitdeploy.evidence.fact import Fact, Measured


class GroupDrop(Fact):
    """The first metric on one class or group: of the earlier artifact and of this one.

    `lower` and `upper` are one-sided bounds of the drop, which hold for all groups together with 95 % confidence.
    """

    name: str
    n: int
    reference: float
    deployed: float
    drop: float
    lower: float
    upper: float


class Release(Measured):
    """Two artifacts on the same samples. In `metrics`, the reference is the earlier one, the deployed one is this.

    Attributes:
        baseline: sha256 of the earlier artifact's manifest.
        baseline_name: its folder.
        task: the task of both.
        n: the number of samples.
        data: DATA.
        data_digest: sha256 of the data.
        metrics: metric -> both figures and the drop.
        groups: classes, or the groups that the user names.
        user_groups: True if the user named the groups.
        group_names: their names by the number of the group in the samples.
        doubts: reasons to distrust it, of either artifact.
        unusable: the reason why these samples prove nothing, such as that an artifact was calibrated on them.
        lost: the number of samples that only the earlier one gets right; None for metrics without right and wrong.
        gained: the number of samples that only this one gets right.
        worse: the names of the first of the lost samples, with their label and both answers.
        nonfinite: the number of samples for which this artifact gave NaN or infinity.
        size_bytes: the size of the deployed files, earlier and now.
        samples: sha256 of `release.samples.npz`, which has the outcome of every sample.
    """

    file: ClassVar[str] = "release.json"

    baseline: str
    baseline_name: str = ""
    task: str
    n: int
    data: str
    data_digest: str
    metrics: Mapping[str, Metric]
    groups: tuple[GroupDrop, ...] = ()
    user_groups: bool = False
    group_names: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    unusable: str = ""
    lost: int | None = None
    gained: int | None = None
    worse: tuple[str, ...] = ()
    nonfinite: int = 0
    size_bytes: tuple[int | None, int | None] = (None, None)
    samples: str = ""
