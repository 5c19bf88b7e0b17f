"""The precisions of one model, lowered and compiled side by side in a working folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import environment, frozen
from vitdeploy.artifact import PassRecord, Placement, TensorSpec
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.artifact.quantization import AttentionOperands, Quantization, describe_precision
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.choice import NORMS, Alpha
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Bench
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Structure
from vitdeploy.measure import latency
from vitdeploy.pipeline.compile_apart import compile_apart
from vitdeploy.pipeline.dumps import NO_DUMPS, GraphDumps
from vitdeploy.pipeline.prepare import Prepared
from vitdeploy.precision import LinearPrecision, Precision
from vitdeploy.progress import Progress
from vitdeploy.recipe import OWN, Batch, InputForm, Quantizer
from vitdeploy.runtime.artifact_session import list_excluded, make_bundle
from vitdeploy.session import Session
from vitdeploy.sources import find_file
from vitdeploy.targets import Bundle, Compiled, Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph

_SENSITIVITY_IMAGES = 8


@dataclass(frozen=True)
class Candidate:
    """A target-ready graph in a folder of its own, and the record of how it was made.

    Attributes:
        precision: the precision with its options.
        folder: holds the graph, its sites and the compiled files, and nothing else.
        structure: the sites and linears of the graph.
        passes: records of the passes that lowered it.
        record: what quantization did; None where nothing was changed.
        placement: the precision of each site, and the rule that decided it.
        inputs: the inputs of the graph.
        outputs: the outputs of the graph.
    """

    precision: Precision
    folder: Path
    structure: Structure
    passes: tuple[PassRecord, ...]
    record: Quantization | None
    placement: Mapping[str, Placement]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def name(self) -> str:
        """The name of its precision."""
        return self.precision.name

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer: `own` or `nncf`."""
        return OWN if self.record is None else self.record.quantizer

    @property
    def attention(self) -> AttentionOperands:
        """The operands of attention in INT8."""
        return "" if self.record is None else self.record.attention_operands

    @property
    def label(self) -> str:
        """The precision for people, with what sets it apart from its default."""
        return describe_precision(self.name, self.quantizer, self.attention, folded_norms=self.folded_norms)

    @property
    def folded_norms(self) -> bool:
        """True if the scale and bias of LayerNorms went whole into the linears behind them."""
        return self.record is not None and self.record.folded_norms

    @property
    def alpha(self) -> Alpha:
        """The strength of its migration of outliers; None without migration."""
        migration = self.record.migration if self.record is not None else None
        if migration is None:
            return None
        return NORMS if self.folded_norms else migration.alpha

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why its calibration may not hold for other images."""
        return self.record.doubts if self.record is not None else ()

    @property
    def quantized_names(self) -> frozenset[str]:
        """The names of the sites that do not compute in float."""
        return frozenset(name for name, place in self.placement.items() if place.quantized)

    @property
    def float_linears(self) -> int:
        """The number of linears that stayed in float; 0 for a precision that does not treat linears one by one."""
        if not self.placement:
            return 0
        return self.structure.count_float_linears(self.quantized_names)

    def discard(self) -> None:
        """Remove its folder from the disk."""
        shutil.rmtree(self.folder)


class CandidateBuilder:
    """Make, compile and time candidates of one prepared model for one target.

    It works in `work`, which the caller removes. Each candidate is compiled only once. `dialect` is that of the machine
    that runs them; None: this one.
    """

    def __init__(
        self,
        prepared: Prepared,
        target: Target,
        batch: Batch,
        form: InputForm,
        work: Path,
        progress: Progress,
        dumps: GraphDumps = NO_DUMPS,
        dialect: Dialect | None = None,
    ) -> None:
        self.prepared = prepared
        self.target = target
        self.dialect = dialect or target.dialect()
        self.batch = batch
        self.form = form
        self._sizes = prepared.facts.sizes
        self._work = work
        self._progress = progress
        self._dumps = dumps
        self._count = 0
        self._compiled: dict[Path, Compiled] = {}

    def derive(self, prepared: Prepared, work: Path) -> CandidateBuilder:
        """Return a builder for another form of the same model, whose candidates can be opened and timed with these.

        Args:
            prepared: the other form.
            work: an empty folder.
        """
        other = CandidateBuilder(
            prepared, self.target, self.batch, self.form, work, self._progress, dialect=self.dialect
        )
        other._compiled = self._compiled
        return other

    @cached_property
    def calibrated(self) -> CalibratedGraph:
        """The float32 graph with its calibration images, which run through it once for all candidates."""
        prepared = self.prepared
        return CalibratedGraph(prepared.graph, prepared.structure, prepared.calibration, self._progress)

    def forget_images(self) -> None:
        """Free the memory of what calibration images showed. A later candidate observes them anew."""
        vars(self).pop("calibrated", None)

    def make(self, precision: Precision) -> Candidate:
        """Quantize and lower the model: make the graph that the target's compiler reads.

        Raises:
            VitdeployError: the precision is not possible for this model.
        """
        from vitdeploy import passes
        from vitdeploy.graph.risky_forms import find_risky_forms
        from vitdeploy.passes import order

        quantized = precision.lower(self.calibrated, self.dialect)
        graph = quantized.graph
        self._dumps.write(f"{precision.name}-quantized", graph)
        with self._progress.step(f"Lower to what {self.target.name} compiles best"):
            verifier = self.prepared.verifier if precision.is_float32 else None
            records = passes.run(order.lowering(self.dialect), graph, None if verifier is None else verifier(graph))
        self._dumps.write(f"{precision.name}-lowered", graph)
        self._count += 1
        folder = self._work / f"candidate{self._count}"
        folder.mkdir()
        graph.save(folder / GRAPH)
        structure = self.prepared.structure.locate_attention(node.name or "" for node in graph.nodes)
        structure = frozen.replace(structure, risky_forms=find_risky_forms(graph, structure))
        structure.save(folder / SITES)
        inputs, outputs = _signature(graph)
        # The graph is in the folder. In memory it would take as much as the model, for each candidate.
        record, placement = quantized.record, quantized.placement
        return Candidate(precision, folder, structure, tuple(records), record, placement, inputs, outputs)

    def compile(self, candidate: Candidate) -> Compiled:
        """Compile and audit a candidate, unless it is compiled already.

        Raises:
            CompileError: the backend refuses it.
        """
        if candidate.folder not in self._compiled:
            with self._progress.step(f"Compile {candidate.label} with {self.target.name}"):
                self._compiled[candidate.folder] = self._compile(candidate)
        return self._compiled[candidate.folder]

    def _compile(self, candidate: Candidate) -> Compiled:
        """Compile a candidate; the graph of a foreign file in a process of its own, which may crash."""
        folder, bundle = candidate.folder, self._bundle(candidate, candidate.folder)
        if find_file(self.prepared.facts.model.spec) is not None and not self.target.built_on_device:
            return compile_apart(
                self.target, candidate.name, folder, candidate.inputs[0], candidate.outputs, self.batch, self._sizes,
                bundle.excluded, candidate.inputs[1:],
            )  # fmt: skip
        return self.target.compile(bundle, folder, self._progress.relay)

    def open(self, candidate: Candidate) -> Session:
        """Open a candidate as its artifact would be opened.

        Raises:
            CompileError: the backend refuses it.
        """
        return self.target.open(self.compile(candidate), candidate.precision.numbers, environment.available_cores())

    def move(self, candidate: Candidate, folder: Path) -> tuple[Bundle, Compiled | None]:
        """Move a candidate's files to `folder`. Return its bundle there, and the compiled model if there is one."""
        for path in candidate.folder.iterdir():
            shutil.move(path, folder / path.name)
        compiled = self._compiled.get(candidate.folder)
        return self._bundle(candidate, folder), None if compiled is None else replace(compiled, folder=folder)

    def _bundle(self, candidate: Candidate, folder: Path) -> Bundle:
        numbers, (image, *further) = candidate.precision.numbers, candidate.inputs
        excluded = list_excluded(candidate.placement, candidate.record)
        return make_bundle(folder, numbers, image, candidate.outputs, self.batch, self._sizes, excluded, further)

    def worst_first(self, candidate: Candidate) -> list[str]:
        """Return the linears that a candidate quantizes, those first that add most noise for the work they save."""
        assert isinstance(candidate.precision, LinearPrecision)
        layers, _ = candidate.precision.measure_sensitivity(self.calibrated, self.dialect, _SENSITIVITY_IMAGES)
        quantized = [layer for layer in layers if layer.name in candidate.quantized_names]
        noise = {layer.name: 10 ** (-layer.output_sqnr_db / 10) / max(1, layer.macs) for layer in quantized}
        return sorted(noise, key=lambda name: -noise[name])

    def time(self, candidates: Sequence[Candidate], seconds: float) -> Bench:
        """Time candidates in turns; the first one is the reference."""
        preprocess, examples = self.prepared.facts.preprocess, self.prepared.facts.examples
        with ExitStack() as stack:
            sessions = [stack.enter_context(self.open(candidate)) for candidate in candidates]
            image = to_input(natural_image(0, preprocess, self.batch.opt), preprocess, self.form)
            feed = {examples.input_name: image, **examples.given.take(len(image))}
            feeds = [examples.inputs[0] if examples.inputs else feed] * len(sessions)
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
