"""Wrong numbers and failed builds of TensorRT that others have reported in public, by version and form of graph.

Each entry was read in public reports in November 2026. None was reproduced by vitdeploy, which had none of these
devices. They are named before a build. Whether an engine is right is decided afterwards, by comparing it with FP32.

One report is not here, because no graph of vitdeploy has its form: TensorRT 10.7 computes attention wrongly if the
scores are scaled behind the product (NVIDIA/TensorRT#4328, #4333). vitdeploy scales q.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vitdeploy.graph.structure import RiskyForm

Release = tuple[int, int]

_FIRST, _LAST = (0, 0), (999, 0)


@dataclass(frozen=True)
class KnownFault:
    """A fault that others have reported.

    Attributes:
        what: what happens.
        forms: the forms that a graph has which it can happen to, all of them.
        first: the first version that it may happen in.
        last: the last one.
        where: the versions as the reports name them.
        reports: where it is reported.
        helped: what helped there; empty if nothing is known.
        generation: the only GPU generation it is reported of, such as `sm110`; empty for any.
        batch_one: it happens at batch 1 only.
    """

    what: str
    forms: frozenset[RiskyForm]
    first: Release
    last: Release
    where: str
    reports: str
    helped: str = ""
    generation: str = ""
    batch_one: bool = False

    def describe(self) -> str:
        """Return it in one line."""
        helped = f"; {self.helped} helped there" if self.helped else ""
        return f"{self.what} with {self.where} ({self.reports}){helped}; not reproduced here"


FAULTS = (
    KnownFault(
        what="rotary positions give wrong numbers, in FP32 too",
        forms=frozenset({"rotary positions"}),
        first=(10, 3),
        last=(10, 13),
        where="TensorRT 10.3, and not with 10.14",
        reports="NVIDIA/TensorRT#4742, #4558, #4723",
        helped="rotations as constants, or scores in FP32,",
    ),
    KnownFault(
        what="depth maps of DPT heads are wrong",
        forms=frozenset({"refined maps"}),
        first=(10, 3),
        last=(10, 13),
        where="TensorRT 10.3 and 10.4, and not with 10.14",
        reports="depth-anything-tensorrt#49",
    ),
    KnownFault(
        what="RT-DETR loses 4.6 mAP, in FP32 too",
        forms=frozenset({"detector", "sampled features"}),
        first=(10, 3),
        last=(10, 3),
        where="TensorRT 10.3",
        reports="rt-detr#227",
    ),
    KnownFault(
        what="the build of RF-DETR with masks fails",
        forms=frozenset({"detector", "sampled features", "instance masks"}),
        first=(10, 3),
        last=(10, 3),
        where="TensorRT 10.3",
        reports="NVIDIA/TensorRT#4736",
    ),
    KnownFault(
        what="q, k and v of one attention are mixed up at batch 1",
        forms=frozenset({"separate q, k, v"}),
        first=(10, 13),
        last=(10, 13),
        where="TensorRT 10.13 on Thor",
        reports="TensorRT-Edge-LLM#151",
        helped="keeping the three apart",
        generation="sm110",
        batch_one=True,
    ),
    KnownFault(
        what="detectors with LayerNorm in FP16 detect nothing",
        forms=frozenset({"detector", "float16 norm"}),
        first=(10, 0),
        last=(10, 999),
        where="TensorRT 10",
        reports="DeepStream-Yolo#647",
        helped="LayerNorm in FP32",
    ),
    KnownFault(
        what="DEIMv2 falls from 0.65 to 0.5 AP with its decoder in FP16",
        forms=frozenset({"float16 decoder"}),
        first=(10, 0),
        last=(10, 999),
        where="TensorRT 10",
        reports="DEIMv2#60, #112",
        helped="the decoder in FP32",
    ),
    KnownFault(
        what="RT-DETR falls from 0.65 to 0.0002 mAP with its decoder in INT8",
        forms=frozenset({"integer decoder"}),
        first=_FIRST,
        last=_LAST,
        where="any version",
        reports="ultralytics#26191",
        helped="decoder and heads in float",
    ),
)


def find_faults(
    forms: Collection[RiskyForm], *, release: tuple[int, ...] | None, generation: str | None, takes_batch_one: bool
) -> list[KnownFault]:
    """Return the faults that a build of a graph may have.

    Args:
        forms: the forms that the graph has.
        release: the installed version; None if it is not known: then each version counts.
        generation: the GPU generation; None if it is not known.
        takes_batch_one: whether the engine takes a single image.
    """
    return [
        fault
        for fault in FAULTS
        if fault.forms <= set(forms)
        and (release is None or fault.first <= release[:2] <= fault.last)
        and (generation is None or fault.generation in ("", generation))
        and (takes_batch_one or not fault.batch_one)
    ]


def list_faults(release: tuple[int, ...], generation: str | None) -> list[KnownFault]:
    """Return the faults of a version, whatever the graph."""
    every = {form for fault in FAULTS for form in fault.forms}
    return find_faults(every, release=release, generation=generation, takes_batch_one=True)
