"""Make single precisions for a choice among several: each within the accuracy budget, or with the reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy import environment
from vitdeploy import precision as precisions
from vitdeploy.artifact import Trial
from vitdeploy.calibrate.choice import NORMS
from vitdeploy.environment import Host
from vitdeploy.errors import DataError, PassError, QuantizeError, VitdeployError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget, make_trial
from vitdeploy.pipeline.calibration import JudgingBatches
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.fastest import DEFAULT_MAX_DROP_PP
from vitdeploy.pipeline.mixed_precision import fit_budget
from vitdeploy.precision import LinearPrecision, Precision
from vitdeploy.progress import Progress
from vitdeploy.recipe import NNCF, OWN, VALUES, Int8Attention, PrecisionSpec, Quantizer

_FLOAT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16}


@dataclass(frozen=True)
class Request:
    """The input of a choice: the recipe's precision, and the means to compare candidates.

    Attributes:
        spec: the precision of the recipe; its kind is a name, or "auto".
        untimed: the reason why nothing can be timed here; empty if it can.
        judging: images to judge accuracy on; None without images.
        variants: keep the candidates as variants, for the machine that runs the artifact to choose among.
        host: that machine, if it is known and is not this one.
    """

    spec: PrecisionSpec
    untimed: str = ""
    judging: JudgingBatches | None = None
    variants: bool = False
    host: Host | None = None


@dataclass(frozen=True)
class Way:
    """A way to make a precision that `auto` tries.

    Attributes:
        precision: its name.
        quantizer: what decides scales and rounding; None: as the recipe says.
        attention: the operands of attention in INT8; False: as the recipe says.
        folded_norms: put the scale and bias of LayerNorms whole into the linears behind them.
    """

    precision: str
    quantizer: Quantizer | None = None
    attention: Int8Attention = False
    folded_norms: bool = False

    @property
    def is_whole(self) -> bool:
        """Return whether no linear is left in float where it loses too much, because each try takes long."""
        return self.quantizer is not None or bool(self.attention) or self.folded_norms


@dataclass(frozen=True)
class Chosen:
    """The candidate that becomes the artifact, the trials, and notes for the user.

    `variants` are the candidates to keep beside it, itself included, with the trial of each; empty for none.
    """

    candidate: Candidate
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    variants: tuple[tuple[Candidate, Trial], ...] = ()


def make_plain(name: str) -> Precision:
    """Return a precision with default options."""
    return precisions.find(PrecisionSpec(kind=name))


def make_reference(builder: CandidateBuilder, request: Request) -> tuple[Candidate, list[Trial]]:
    """Make the target's default, with the linears in float32 that the recipe keeps: the candidate to compare with.

    A model may not be possible in float16, which is the default of a GPU. Then float32 takes its place.

    Returns:
        The candidate; and the trial of the default if that is not possible, with the reason.

    Raises:
        PassError: a pass failed, which is a bug of this program.
    """
    base = builder.target.default_precision
    precision = precisions.find(PrecisionSpec(kind=base, keep=request.spec.keep))
    if precision.is_float32:
        return builder.make(precision), []
    try:
        candidate = builder.make(precision)
        if not request.untimed:
            builder.compile(candidate)
    except PassError:
        raise
    except VitdeployError as error:
        return builder.make(make_plain("fp32")), [Trial(precision=base, why=error.message)]
    return candidate, []


def list_names(builder: CandidateBuilder, request: Request, reference: str | None = None) -> list[str]:
    """List the precisions that `auto` tries: those that the recipe names, else all that may be faster.

    Args:
        builder: for its target.
        request: the recipe's precision.
        reference: the precision that they are compared with; None: the target's default. Neither is listed.
    """
    default = builder.target.default_precision
    made = (default, reference or default)
    if request.spec.among:
        return [name for name in request.spec.among if name not in made]
    names = [name for name in precisions.names_for(builder.target) if name not in made]
    names = [name for name in names if precisions.kind_of(name).saves_time]
    # Stored for another machine, a wider float costs as many bytes as the reference, and is no faster.
    return [name for name in names if _is_smaller(name, made[1])] if request.variants and request.untimed else names


def list_nncf(builder: CandidateBuilder, request: Request) -> list[Way]:
    """List the precisions that `auto` makes with NNCF too: static INT8, where NNCF and images are here.

    Not where the recipe names a quantizer, and not for variants, which go by the name of their precision.
    """
    from vitdeploy.quantize import nncf_process

    if request.spec.quantizer is not None or request.variants or not builder.calibrated.has_images:
        return []
    if not nncf_process.is_installed():
        return []
    kinds = {name: precisions.kind_of(name) for name in list_names(builder, request)}
    return [Way(name, NNCF) for name, kind in kinds.items() if kind.takes_nncf and kind.needs_images]


def list_int8_attention(builder: CandidateBuilder, request: Request) -> list[Way]:
    """List the precisions that `auto` makes with INT8 attention too.

    Static INT8 on OpenVINO, where the CPU has INT8 dot products: `int8-bf16` if the CPU has bfloat16, else `int8`. Not
    where the recipe decides about attention or leaves it to NNCF, and not for variants, which go by the name of their
    precision.
    """
    kernel, cpu = builder.dialect.int8_attention, request.host or environment.host()
    decided = request.spec.attention or request.spec.quantizer == NNCF
    if kernel is None or not kernel.values_alone or decided or request.variants:
        return []
    if not builder.calibrated.has_images:
        return []
    kinds = {name: precisions.kind_of(name) for name in list_names(builder, request)}
    rests = {name: kind.numbers.rest for name, kind in kinds.items() if "attention" in kind.model_fields}
    fastest = "bf16" if cpu.bfloat16_dot_product and "bf16" in rests.values() else "fp32"
    names = [name for name, rest in rests.items() if rest == fastest]
    return [Way(name, attention=operands) for name in names for operands in (VALUES, True)]


def list_folded_norms(builder: CandidateBuilder, request: Request, attentions: Sequence[Way]) -> list[Way]:
    """List the ways that `auto` makes with folded norms too, which save a kernel at each norm on OpenVINO.

    Those with INT8 attention, which are the fastest, and where there are none, static INT8. Not where the recipe
    decides about migration or the quantizer, and not for variants, which go by the name of their precision.

    Args:
        builder: for its target and its images.
        request: the recipe's precision.
        attentions: the ways with INT8 attention.
    """
    decided = request.spec.smooth_alpha != "auto" or request.spec.quantizer == NNCF
    if decided or request.variants or not builder.dialect.scales_norms_apart:
        return []
    if not builder.calibrated.has_images or not builder.calibrated.folded_norms:
        return []
    kinds = {name: precisions.kind_of(name) for name in list_names(builder, request)}
    plain = [Way(name) for name, kind in kinds.items() if kind.needs_images and kind.numbers.products == "int8"]
    return [dataclasses.replace(way, folded_norms=True) for way in attentions or plain]


def make_failed_trial(builder: CandidateBuilder, precision: Precision) -> Trial:
    """Return the trial of a precision of which there is no candidate, with the options that it asks for."""
    attention = getattr(precision, "attention", False)
    migrates = isinstance(precision, LinearPrecision) and precision.rounds_activations
    return Trial(
        precision=precision.name,
        quantizer=precision.quantizer or OWN,
        attention="values" if attention == VALUES else "all" if attention else "",
        folded_norms=migrates and precision.smooth_alpha == NORMS and builder.calibrated.folded_norms > 0,
    )


def attempt(
    builder: CandidateBuilder,
    way: Way,
    request: Request,
    budget: AccuracyBudget | None,
    *,
    check: bool = True,
) -> tuple[Candidate | None, list[Trial]]:
    """Make a precision within the budget. Return the candidate with its trials; or None with the reason in the last.

    Args:
        builder: makes the candidates.
        way: the precision, and what is tried beside the recipe's way to make it.
        request: the recipe's precision, and the machine that it is for.
        budget: None judges nothing, which works only with random weights.
        check: refuse a precision for which the machine has no units.

    Raises:
        PassError: a pass failed, which is a bug of this program, and not a precision that is not possible.
    """
    precision = _apply_way(way, request.spec)
    failed = make_failed_trial(builder, precision)
    try:
        if check:
            precisions.check(precision.name, builder.target, request.host)
        return _fit(builder, precision, budget, whole=way.is_whole)
    except PassError:
        raise
    except DataError as error:  # the task cannot read the outputs, which the user can mend
        return None, [replace(failed, why=str(error))]
    except VitdeployError as error:  # this precision is not possible here; auto tries the others
        return None, [replace(failed, why=error.message)]


def open_budget(
    builder: CandidateBuilder,
    reference: Candidate,
    request: Request,
    progress: Progress,
    *,
    emulated: bool = False,
) -> tuple[AccuracyBudget | None, list[str]]:
    """Return the budget, and notes. It is None for random weights, and without images to judge on.

    With `emulated`, ONNX Runtime on this CPU runs the candidates, because the target cannot.
    """
    limit = request.spec.max_drop_pp or DEFAULT_MAX_DROP_PP
    if builder.prepared.facts.model.weights == "random":
        return None, ["random weights: auto compared speed only, because accuracy means nothing"]
    if request.judging is None:
        return None, ["auto tried no precision that loses accuracy: there are no images to judge it on (--calibration)"]
    return AccuracyBudget(builder, reference, limit, request.judging, progress, emulated=emulated), []


def _apply_way(way: Way, given: PrecisionSpec) -> Precision:
    """Return the precision with those options of the recipe that it has, and with what the way sets."""
    kind = precisions.kind_of(way.precision)
    quantizer = way.quantizer or (given.quantizer if kind.takes_nncf else None)
    attention = (way.attention or given.attention) if "attention" in kind.model_fields else False
    alpha = NORMS if way.folded_norms else given.smooth_alpha
    spec = replace(given, kind=way.precision, quantizer=quantizer, attention=attention, smooth_alpha=alpha)
    return precisions.find(spec)


def _fit(
    builder: CandidateBuilder, precision: Precision, budget: AccuracyBudget | None, *, whole: bool
) -> tuple[Candidate | None, list[Trial]]:
    if budget is not None:
        return fit_budget(builder, precision, budget, whole=whole)
    if builder.prepared.facts.model.weights != "random":
        raise QuantizeError("its accuracy cannot be judged without images", fix="Give --calibration DATA.")
    candidate = builder.make(precision)
    return candidate, [make_trial(candidate)]


def _is_smaller(name: str, base: str) -> bool:
    """Return whether a precision stores its weights in fewer bits than another one."""
    first, second = (_FLOAT_BITS.get(precisions.kind_of(kind).numbers.weights, 0) for kind in (name, base))
    return first < second
