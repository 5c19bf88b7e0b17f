"""The precisions of one model, lowered and compiled side by side in a working folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import environment
from vitdeploy.artifact import PassRecord, Placement, TensorSpec
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Bench
from vitdeploy.graph.structure import Structure
from vitdeploy.measure import latency
from vitdeploy.pipeline.prepare import Prepared
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec, Recipe
from vitdeploy.runtime.artifact_session import bundle_of
from vitdeploy.session import Session
from vitdeploy.targets import Compiled, Target

if TYPE_CHECKING:
    from vitdeploy.calibrate.quantizer import Quantizer
    from vitdeploy.graph.model import Graph

_SENSITIVITY_IMAGES = 8


@dataclass(frozen=True)
class Candidate:
    """A target-ready graph in a folder of its own, and what made it.

    `passes` are those that lowered it; `record` is what quantizing did, `placement` where, `alpha` its migration
    strength (None: off).
    """

    precision: PrecisionSpec
    folder: Path
    structure: Structure
    passes: tuple[PassRecord, ...]
    record: Mapping[str, str]
    placement: Mapping[str, Placement]
    alpha: float | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def kind(self) -> str:
        """The precision's name."""
        return self.precision.kind or "fp32"

    @property
    def float_linears(self) -> int:
        """Linears that stayed in float."""
        return sum(linear.name not in self.quantized for linear in self.structure.linears) if self.placement else 0

    @property
    def quantized(self) -> frozenset[str]:
        """The names of what is not in float."""
        return frozenset(name for name, placed in self.placement.items() if placed.quantized)

    def move(self, folder: Path) -> None:
        """Move the graph and its sites to `folder`."""
        for path in (*self.folder.glob(f"{GRAPH}*"), self.folder / SITES):
            shutil.move(path, folder / path.name)

    def discard(self) -> None:
        """Free the disk."""
        shutil.rmtree(self.folder)


class Workshop:
    """Makes, compiles and times candidates of one prepared model. Works in `work`, which the caller removes."""

    def __init__(self, prepared: Prepared, recipe: Recipe, target: Target, work: Path, progress: Progress) -> None:
        self.prepared = prepared
        self.recipe = recipe
        self.target = target
        self._work = work
        self._progress = progress
        self._made = 0

    @cached_property
    def quantizer(self) -> Quantizer:
        """What lowers the precision; shared, so that the calibration images are looked at once."""
        from vitdeploy.calibrate.quantizer import Quantizer

        made = self.prepared
        return Quantizer(made.graph, made.structure, self.target.dialect(), made.calibration, self._progress)

    def make_plain(self, kind: str) -> Candidate:
        """`make` without any option."""
        return self.make(PrecisionSpec.model_validate({"kind": kind}))

    def make(self, precision: PrecisionSpec) -> Candidate:
        """Quantize and lower: the graph that the target's compiler is fed.

        Raises:
            VitdeployError: the model cannot have this precision.
        """
        from vitdeploy import passes
        from vitdeploy.passes import order

        found = self.quantizer.quantize(precision)
        with self._progress.step(f"Lower to what {self.target.name} compiles best"):
            verifier = self.prepared.verifier if precision.kind == "fp32" else None
            check = None if verifier is None else verifier(found.graph)
            records = passes.run(order.lowering(self.target.dialect()), found.graph, check)
        self._made += 1
        folder = self._work / f"candidate{self._made}"
        folder.mkdir()
        found.graph.save(folder / GRAPH)
        structure = self.prepared.structure.located(node.name or "" for node in found.graph.nodes)
        structure.save(folder / SITES)
        inputs, outputs = _signature(found.graph)
        return Candidate(
            precision, folder, structure, tuple(records), found.record, found.placement, found.alpha, inputs, outputs
        )

    def open(self, candidate: Candidate) -> Session:
        """Compile a candidate and open it as it would run.

        Raises:
            CompileError: the backend refuses it.
        """
        bundle = bundle_of(candidate.folder, candidate.kind, candidate.inputs[0], self.recipe.target.batch)
        with self._progress.step(f"Compile {candidate.kind} with {self.target.name}"):
            compiled: Compiled = self.target.compile(bundle, candidate.folder)
        return self.target.open(compiled, candidate.kind, environment.available_cores())

    def worst_first(self, candidate: Candidate) -> list[str]:
        """The linears that `candidate` quantizes, by name: first what adds most noise for the work that it saves."""
        layers, _ = self.quantizer.sensitivity(candidate.precision, _SENSITIVITY_IMAGES)
        quantized = [layer for layer in layers if layer.name in candidate.quantized]
        noise = {layer.name: 10 ** (-layer.output_sqnr_db / 10) / max(1, layer.macs) for layer in quantized}
        return sorted(noise, key=lambda name: -noise[name])

    def time(self, candidates: Iterable[Candidate], seconds: float) -> Bench:
        """Time candidates in turns; the first one is the reference."""
        spec, preprocess = self.recipe.target, self.prepared.preprocess
        image = to_input(natural_image(0, preprocess, spec.batch.opt), preprocess, spec.input)
        with ExitStack() as stack:
            sessions = [stack.enter_context(self.open(candidate)) for candidate in candidates]
            feeds = [{self.prepared.examples.input_name: image}] * len(sessions)
            return latency.measure(sessions, feeds, batch=len(image), seconds=seconds)


def _signature(graph: Graph) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    def specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=value.dtype.name.lower() if value.dtype is not None else "unknown",
                shape=tuple(d if isinstance(d, int) else str(d) for d in (value.shape or ())),
            )
            for value in values
        )

    return specs(graph.model.graph.inputs), specs(graph.model.graph.outputs)
