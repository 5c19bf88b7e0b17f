"""Wrong numbers and failed builds of TensorRT that others have reported in public, by version and form of graph.

Each entry was read in public reports in November 2026. None was reproduced by vitdeploy, which had none of these
devices. They are named before a build. Whether an engine is right is decided afterwards, by comparing it with FP32.
`docs/compatibility.md` has them as a table.

These reports are not here:

- NVIDIA/TensorRT#4328, #4333: 10.7 computes attention wrongly if the scores are scaled behind the product. No graph of
  vitdeploy has that form: it scales q.
- lyuwenyu/RT-DETR#227, Intellindust-AI-Lab/DEIMv2#60: both of TensorRT 8, which vitdeploy does not build with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vitdeploy.graph.structure import RiskyForm

Release = tuple[int, int]

_FIRST, _LAST = (0, 0), (999, 0)

_CHEAP = frozenset({"separate-qkv", "baked-positions"})
"""Safe forms whose attention stays one kernel, and which compute in no wider type (benchmarks/safe_forms.md)."""


@dataclass(frozen=True)
class KnownFault:
    """A fault that others have reported.

    Attributes:
        what: what happens.
        forms: the forms that a graph has which it can happen to, all of them.
        first: the first version that it may happen in.
        last: the last one.
        where: the versions as the reports name them.
        reports: where it is reported, as OWNER/REPOSITORY#NUMBER on GitHub.
        helped: what helped there; empty if nothing is known.
        safe_forms: the safe forms (`pipeline.safe_forms`) that do what helped, or more, in the order to try.
        generation: the only GPU generation it is reported of, such as `sm110`; empty for any.
        batch_one: it happens at batch 1 only.
    """

    what: str
    forms: frozenset[RiskyForm]
    first: Release
    last: Release
    where: str
    reports: tuple[str, ...]
    helped: str = ""
    safe_forms: tuple[str, ...] = ()
    generation: str = ""
    batch_one: bool = False

    def describe(self) -> str:
        """Return it in one line."""
        helped = f"; {self.helped} helped there" if self.helped else ""
        return f"{self.report}{helped}; not reproduced here"

    @property
    def report(self) -> str:
        """The fault in words, with its versions and the public reports."""
        return f"{self.what} with {self.where} ({', '.join(self.reports)})"

    @property
    def preferred_forms(self) -> tuple[str, ...]:
        """The safe forms to build before the plain form, in order: those that cost little."""
        return tuple(form for form in self.safe_forms if form in _CHEAP)


FAULTS = (
    KnownFault(
        what="rotary positions give wrong numbers, in FP32 too",
        forms=frozenset({"rotary positions"}),
        first=(10, 3),
        last=(10, 13),
        where="TensorRT 10.3 and 10.4, and not with 10.14",
        reports=(
            "NVIDIA/TensorRT#4742",
            "NVIDIA/TensorRT#4558",
            "NVIDIA/TensorRT#4723",
            "lightly-ai/lightly-train#783",
            "lightly-ai/lightly-train#751",
        ),
        helped="rotations as constants, or scores in FP32,",
        safe_forms=("baked-positions", "fp32-scores"),
    ),
    KnownFault(
        what="depth maps of DPT heads are wrong",
        forms=frozenset({"refined maps"}),
        first=(10, 3),
        last=(10, 11),
        where="TensorRT 10.3, and not with 10.12",
        reports=("spacewalk01/depth-anything-tensorrt#49", "ika-rwth-aachen/ros2-depth-anything-v3-trt#16"),
    ),
    KnownFault(
        what="the build of RF-DETR with masks fails",
        forms=frozenset({"detector", "sampled features", "instance masks"}),
        first=(10, 3),
        last=(10, 3),
        where="TensorRT 10.3",
        reports=("NVIDIA/TensorRT#4736",),
    ),
    KnownFault(
        what="q, k and v of one attention are mixed up at batch 1",
        forms=frozenset({"separate q, k, v"}),
        first=(10, 13),
        last=(10, 13),
        where="TensorRT 10.13 on Thor",
        reports=("NVIDIA/TensorRT-Edge-LLM#151", "NVIDIA/TensorRT-Edge-LLM#105"),
        helped="keeping the three apart",
        safe_forms=("separate-qkv",),
        generation="sm110",
        batch_one=True,
    ),
    KnownFault(
        what="fused attention of a ViT detector gives wrong numbers in FP16 and BF16",
        forms=frozenset({"detector", "float16 norm"}),
        first=(10, 0),
        last=(10, 16),
        where="TensorRT 10.16 on a GPU of generation sm120",
        reports=("NVIDIA/TensorRT#4837",),
        helped="attention that is not fused, or FP32,",
        safe_forms=("fp32-scores", "fp32"),
        generation="sm120",
    ),
    KnownFault(
        what="detectors with LayerNorm in FP16 detect nothing",
        forms=frozenset({"detector", "float16 norm"}),
        first=(10, 0),
        last=(10, 999),
        where="TensorRT 10",
        reports=("marcoslucianops/DeepStream-Yolo#647",),
        helped="LayerNorm in FP32",
        safe_forms=("fp32",),
    ),
    KnownFault(
        what="DEIMv2 detects nothing in FP16",
        forms=frozenset({"float16 decoder"}),
        first=(10, 0),
        last=(10, 5),
        where="TensorRT 10.4, and not with 10.6",
        reports=("Intellindust-AI-Lab/DEIMv2#112",),
        helped="the first attention in FP32",
        safe_forms=("fp32-block-0",),
    ),
    KnownFault(
        what="RT-DETR falls from 0.65 to 0.0002 mAP with its decoder in INT8",
        forms=frozenset({"integer decoder"}),
        first=_FIRST,
        last=_LAST,
        where="OpenVINO, and any engine rounds INT8 alike",
        reports=("ultralytics/ultralytics#26191",),
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


def list_preferred_forms(faults: Iterable[KnownFault]) -> dict[str, str]:
    """Return the safe forms to build before the plain form, in order, each with the report that it is for."""
    preferred: dict[str, str] = {}
    for fault in faults:
        for form in fault.preferred_forms:
            preferred.setdefault(form, fault.report)
    return preferred


def list_safe_forms(faults: Iterable[KnownFault]) -> tuple[str, ...]:
    """Return the safe forms that helped against these faults, in the order to try, each once."""
    return tuple(dict.fromkeys(form for fault in faults for form in fault.safe_forms))
