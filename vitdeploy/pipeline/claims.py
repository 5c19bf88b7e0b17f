"""Run what was compiled, and compare it with the reference: the claim is about the thing that ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitdeploy import environment
from vitdeploy.artifact import OutputParity, Parity
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import FLOAT32, Numbers
from vitdeploy.graph.parity import (
    SMALLEST_SCALE,
    Example,
    Tolerance,
    compare_session,
    explain_difference,
    float32_limit,
    lowered_limits,
)
from vitdeploy.graph.unproven import find_unproven
from vitdeploy.pipeline.against_graph import explain_other_codes
from vitdeploy.pipeline.block_values import BlockValues
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target

_DIFFERS = "the engine computes other numbers than the graph that it was made from"


@dataclass(frozen=True)
class Claim:
    """The comparison of a compiled model with the reference, and the reasons to distrust it.

    `differs` says that it computes other numbers than its graph, beyond the limits; it is one of the doubts.
    """

    parity: Parity
    doubts: tuple[str, ...] = ()
    differs: str = ""

    def distrust(self, differs: str) -> Claim:
        """Return the claim with the reason why the numbers are others."""
        return replace(self, doubts=(differs, *self.doubts), differs=differs)


def check_compiled(
    bundle: Bundle,
    compiled: Compiled,
    target: Target,
    examples: Sequence[Example],
    emulated: Parity | None,
    *,
    quantized: bool = False,
    values: BlockValues | None = None,
) -> Claim:
    """Open a compiled model as in use, run it on the examples, and compare each output with the reference's.

    Args:
        bundle: the graph that was compiled.
        compiled: the compiled model.
        target: the target that runs it here.
        examples: images with the reference's outputs.
        emulated: the comparison of the graph itself, computed by ONNX Runtime; None if there is none.
        quantized: the model came quantized, so that engines round its INT8 in their own ways.
        values: those that the bundle brings; an INT8 engine is compared with its graph's, too.

    Raises:
        CompileError: the outputs are not finite or do not match, or a float32 engine computes other numbers.
    """
    with target.open(compiled, bundle.numbers, environment.available_cores()) as session:
        return check_session(session, bundle, target, examples, emulated, quantized=quantized, values=values)


def check_session(
    session: Session,
    bundle: Bundle,
    target: Target,
    examples: Sequence[Example],
    emulated: Parity | None,
    *,
    quantized: bool = False,
    values: BlockValues | None = None,
) -> Claim:
    """Compare an open session of a compiled model with the reference; see `check_compiled`."""
    parity = compare_session(session, examples, bundle.input_name)
    name = target.title or target.name
    if not parity.finite:
        raise CompileError(
            f"the {bundle.numbers.precision} engine of {name} is wrong: {parity.problem}", fix=_fix(bundle.numbers)
        )
    claim = judge(parity, bundle.numbers, target, emulated, quantized=quantized)
    if claim.differs or values is None or bundle.numbers.precision not in values.moved:
        return claim
    outputs, images = session.run(examples[0].feed(bundle.input_name)), len(examples[0].image)
    reason = explain_other_codes(bundle, values, outputs, images, on_gpu=target.runs_on == "cuda")
    return claim.distrust(f"{_DIFFERS}: {reason}") if reason else claim


def judge(
    parity: Parity, numbers: Numbers, target: Target, emulated: Parity | None, *, quantized: bool = False
) -> Claim:
    """Return the claim about a finite comparison; see `check_compiled`.

    Raises:
        CompileError: a float32 engine computes other numbers.
    """
    name = target.title or target.name
    reason = explain_difference(parity, _limits(parity, numbers, target, emulated, quantized=quantized))
    unproven = tuple(find_unproven(parity).values())
    if reason is None:
        return Claim(parity, unproven)
    if _is_float32(numbers) and not quantized:
        raise CompileError(f"{name} computes other numbers than the model: {reason}", fix=_fix(numbers))
    return Claim(parity, unproven).distrust(f"{_DIFFERS}: {reason}")


def _limits(
    parity: Parity, numbers: Numbers, target: Target, emulated: Parity | None, *, quantized: bool
) -> list[list[Tolerance]]:
    """Return the limits of each output by case: those of float32, or what the graph itself loses with a margin."""
    on_gpu = target.runs_on == "cuda"
    if emulated is None or (_is_float32(numbers) and not quantized):
        kind = "tf32" if on_gpu else "fp32"  # TensorRT multiplies in TF32 where the GPU can
        return [[float32_limit(output, kind=kind) for output in case] for case in parity.cases]
    rest = "fp16" if on_gpu and numbers.rest == "fp32" else numbers.rest
    kinds = (rest, numbers.products) if numbers.dynamic else (rest, *(("int8",) if quantized else ()))
    cases = emulated.cases
    if [len(case) for case in cases] != [len(case) for case in parity.cases]:  # of a bundle without cases
        cases = tuple(tuple(_spread(emulated, discrete=output.discrete) for output in case) for case in parity.cases)
    return lowered_limits(cases, kinds)


def _spread(parity: Parity, *, discrete: bool) -> OutputParity:
    """Return the parity of all outputs together as that of one."""
    scale = 1.0 if discrete else parity.reference_max
    difference = parity.max_abs / max(parity.reference_max, SMALLEST_SCALE) * scale
    return OutputParity(name="", max_abs=difference, reference_max=scale, cosine=parity.cosine, discrete=discrete)


def _is_float32(numbers: Numbers) -> bool:
    """Return whether the graph has the model's own numbers. A precision may change weights and compute in float32."""
    return numbers == FLOAT32


def _fix(numbers: Numbers) -> str:
    if not _is_float32(numbers):
        return "Use --precision fp32."
    return "The compiler is at fault. Use another --target, or another version of its library, and report it there."
