"""Build, check, judge and time the variants of a bundle on the device, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from vitdeploy import environment, targets, tasks
from vitdeploy import precision as precisions
from vitdeploy.artifact import Artifact, Manifest, Trial, Variant
from vitdeploy.artifact.layout import BLOCKS, JUDGE
from vitdeploy.artifact.variants import select_variant, start_trial
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import CompileError, VitdeployError
from vitdeploy.evidence import Bench, Located
from vitdeploy.frozen import replace as replace_fact
from vitdeploy.graph.parity import Example
from vitdeploy.measure import latency
from vitdeploy.pipeline.block_values import load_block_values
from vitdeploy.pipeline.build_store import BuildStore, build_key
from vitdeploy.pipeline.claims import Claim, check_session
from vitdeploy.pipeline.fastest import DEFAULT_MAX_DROP_PP
from vitdeploy.pipeline.finish import compile_received
from vitdeploy.pipeline.judge_data import JudgeData, load_judge_data
from vitdeploy.pipeline.judging import explain_loss
from vitdeploy.pipeline.locate import locate
from vitdeploy.progress import Progress
from vitdeploy.recipe import with_target_options
from vitdeploy.runtime.artifact_session import feed, read_bundle
from vitdeploy.session import Array, Session
from vitdeploy.targets import Bundle, Compiled, Target

WORK = "work"
"""The folder for compiled variants in an artifact that is being made."""
_KILLED = "the process was killed each time that it was built, which the system does when memory runs out"


@dataclass(frozen=True)
class BuiltVariant:
    """A variant that was built and run on this machine.

    Attributes:
        variant: the variant.
        manifest: of the bundle, with this variant selected.
        bundle: its graph.
        compiled: the compiled model, in a folder of its own unless the engine runs the graph itself.
        claim: the comparison with the reference; None if the numbers are not finite.
        trial: what it loses; `why` says why it cannot be chosen, or is empty.
    """

    variant: Variant
    manifest: Manifest
    bundle: Bundle
    compiled: Compiled
    claim: Claim | None
    trial: Trial

    @property
    def is_off(self) -> bool:
        """True if it computes other numbers than its graph."""
        return self.claim is None or bool(self.claim.differs)


class VariantBuilder:
    """Build the variants of one bundle for one target on this machine."""

    def __init__(
        self, source: Artifact, manifest: Manifest, target: Target, folder: Path, examples: Sequence[Example],
        progress: Progress, store: BuildStore | None = None,
    ) -> None:  # fmt: skip
        """Prepare to build.

        Args:
            source: the bundle, whose hashes decide what was built before.
            manifest: of the artifact to be; its recipe may have other options of the target.
            target: the target with its options.
            folder: holds the files of the bundle, and becomes the artifact.
            examples: images with the reference's outputs.
            progress: gets the steps.
            store: the engines of compiles that were killed; None stores nothing.

        Raises:
            DataError: the judge data, or the values inside the model, cannot be used.
        """
        self.manifest = manifest
        self.target = target
        self.limit = manifest.recipe.precision.max_drop_pp or DEFAULT_MAX_DROP_PP
        self._source = source
        self._folder = folder
        self._examples = examples
        self._progress = progress
        self._store = store
        self._task = tasks.find(manifest.recipe.task)
        self._judge = self._load_judge()
        self._values = load_block_values(source.file(BLOCKS))

    @property
    def takes_batch_one(self) -> bool:
        """True if the engine takes a single image."""
        return self.manifest.recipe.target.batch.min == 1

    def read(self, variant: Variant) -> Bundle:
        """Read the graph of a variant, without building it."""
        return read_bundle(self._folder, select_variant(self.manifest, variant.name), variant.files)

    def build(self, variant: Variant) -> BuiltVariant | Trial:
        """Build, run and judge a variant. Return the trial alone if that is not possible.

        Memory is free again when this returns: boards have 4 GB for the CPU and the GPU together.
        """
        trial = replace_fact(start_trial(variant), float_linears=self._count_float_linears(variant))
        try:
            # Not `precisions.check`: listing all precisions needs onnx, which a device does not have.
            lacking = self.target.refuse_numbers(precisions.kind_of(variant.precision).numbers)
            if lacking is not None:
                return replace_fact(trial, why=lacking)
            built = self._build(variant, trial)
        except VitdeployError as error:  # this variant is not possible here, such as for lack of memory
            return replace_fact(trial, why=error.message)
        except ModuleNotFoundError as error:  # the light base of a device has no onnx, which some precisions need
            return replace_fact(trial, why=f"this precision needs {error.name} on the machine that compiles it")
        finally:
            gc.collect()
        return built

    def time(self, built: Sequence[BuiltVariant], seconds: float) -> Bench:
        """Time each in turns with the first one: two engines are in memory, however many there are."""
        reference, *others = built
        benches = [self._time_pair(reference, other, seconds) for other in others]
        runs = (benches[0].runs[0], *(bench.runs[1] for bench in benches))
        doubts = tuple(dict.fromkeys(doubt for bench in benches for doubt in bench.doubts))
        return Bench(valid=all(bench.valid for bench in benches), doubts=doubts, runs=runs)

    def locate(self, off: BuiltVariant) -> Located | None:
        """Find the first place at which a variant's engine is off; None if the bundle has no values to compare with.

        A place that a killed compile has found is not looked for again.

        Raises:
            VitdeployError: the engine with block ends as outputs does not build or run.
        """
        if self._values is None:
            return None
        key = "" if self._store is None else build_key(self._source, off.variant.files, self.target)
        if self._store is not None and (stored := self._store.fetch_located(key)) is not None:
            return stored
        work = self._folder / WORK / "locate"
        work.mkdir(exist_ok=True)
        located = locate(self.target, off.bundle, off.compiled, self._values, self._examples[0], work, self._progress)
        if self._store is not None:
            self._store.keep_located(key, located)
        return located

    def finish(self) -> None:
        """Forget the stored engines: the compile ends."""
        if self._store is not None:
            self._store.discard_used()

    def _build(self, variant: Variant, trial: Trial) -> BuiltVariant | Trial:
        manifest = select_variant(self.manifest, variant.name)
        if variant.optimization_level is not None:
            recipe = with_target_options(manifest.recipe, {"optimization_level": variant.optimization_level})
            manifest = replace_fact(manifest, recipe=recipe, recipe_digest=recipe.digest)
        bundle = read_bundle(self._folder, manifest, variant.files)
        compiled = self._compile(variant, bundle, manifest)
        if compiled is None:
            return replace_fact(trial, why=_KILLED)
        if compiled.audit is None:
            compiled = replace(compiled, audit=self.target.audit(bundle, compiled))
        with (
            self._progress.step(f"Run {variant.name}, and compare it with the reference"),
            self._open(bundle, compiled) as session,
        ):
            try:
                claim = check_session(
                    session, bundle, self.target, self._examples, manifest.graph_parity,
                    quantized=manifest.model.precision == "quantized",
                    values=None if variant.form else self._values,
                )  # fmt: skip
            except CompileError as error:  # not finite
                return BuiltVariant(variant, manifest, bundle, compiled, None, replace_fact(trial, why=error.message))
            if claim.differs:
                return BuiltVariant(variant, manifest, bundle, compiled, claim, replace_fact(trial, why=claim.differs))
            trial = self._judge_session(session, variant, trial)
        return BuiltVariant(variant, manifest, bundle, compiled, claim, trial)

    def _compile(self, variant: Variant, bundle: Bundle, manifest: Manifest) -> Compiled | None:
        """Build a variant, unless a killed compile has built it. Return None if it was killed too often."""
        store, target = self._store, targets.find(manifest.recipe.target)
        workdir = self._folder / WORK / variant.name
        workdir.mkdir(parents=True)

        def compile_now() -> Compiled:
            with self._progress.step(f"Compile and audit {variant.name} with {target.name}"):
                return compile_received(
                    bundle, manifest, target, self._progress, received=True, variant=variant.name, workdir=workdir
                )

        if store is None:
            return compile_now()
        key = build_key(self._source, variant.files, target)
        names = bundle.input_names, bundle.output_names
        if (stored := store.fetch(key, workdir, names)) is not None:
            return stored
        with store.attempt(key) as may_build:
            compiled = compile_now() if may_build else None
        if compiled is not None and compiled.folder == workdir:  # else the engine runs the graph itself
            store.keep(key, compiled)
        return compiled

    def _open(self, bundle: Bundle, compiled: Compiled) -> Session:
        return self.target.open(compiled, bundle.numbers, environment.available_cores())

    def _judge_session(self, session: Session, variant: Variant, trial: Trial) -> Trial:
        """Return the trial with what the variant loses; with the reason if that is too much, or unknown."""
        if self.manifest.model.weights == "random":
            return trial
        if self._judge is None:
            why = (
                explain_loss(variant.lost, self.limit) if variant.lost is not None else self._explain_unjudged(variant)
            )
            return replace_fact(trial, lost=variant.lost, judged_by=variant.judged_by, images=variant.images, why=why)
        size = self.manifest.recipe.target.batch.opt
        with self._progress.step(f"Judge {variant.name} on images", len(self._judge)) as advance:
            loss = self._judge.judge(self._task, session, self._make_inputs, size, advance)
        why = explain_loss(loss.points, self.limit)
        return replace_fact(trial, lost=loss.points, judged_by=loss.judged_by, images=loss.images, why=why)

    def _explain_unjudged(self, variant: Variant) -> str:
        is_default = variant.precision == self.target.default_precision
        loses_nothing = is_default or precisions.kind_of(variant.precision).is_float32
        return "" if loses_nothing else "its accuracy cannot be judged: the bundle has no judge data"

    def _count_float_linears(self, variant: Variant) -> int:
        quantized = {name for name, place in variant.placement.items() if place.quantized}
        return self.read(variant).structure.count_float_linears(quantized) if variant.placement else 0

    def _load_judge(self) -> JudgeData | None:
        path = self._source.file(JUDGE)
        if not path.exists():
            return None
        shape = self.manifest.preprocess.sample_shape
        data = load_judge_data(path, self._task, shape)
        return data if len(data) >= self.manifest.recipe.target.batch.opt else None

    def _make_inputs(self, pixels: Array, further: Mapping[str, Array]) -> dict[str, Array]:
        return feed(self._source, pixels, further)

    def _time_pair(self, reference: BuiltVariant, other: BuiltVariant, seconds: float) -> Bench:
        manifest = self.manifest
        pixels = natural_image(0, manifest.preprocess, manifest.recipe.target.batch.opt)
        inputs = self._make_inputs(pixels, {})
        with ExitStack() as stack:
            sessions = [stack.enter_context(self._open(side.bundle, side.compiled)) for side in (reference, other)]
            return latency.measure(sessions, [inputs, inputs], batch=len(pixels), seconds=seconds)
