"""The pair of an encoder and a decoder: examples with the whole model's answers, and the comparison with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitdeploy import precision, targets
from vitdeploy.artifact import Artifact, Parity
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.data.point_prompts import fill_slots, make_prompts
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import LOOKS, natural_image
from vitdeploy.errors import CompileError
from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import Example, compare_session, explain_difference
from vitdeploy.pipeline.claims import judge
from vitdeploy.pipeline.examples import Examples
from vitdeploy.progress import Progress
from vitdeploy.runtime.pair import PairSession, Wiring, open_parts, read_wiring
from vitdeploy.session import Session
from vitdeploy.sources import LoadedModel
from vitdeploy.tasks.promptable_masks import PromptableMasks


@dataclass(frozen=True)
class PairClaim:
    """The comparison of a pair with the whole model.

    Attributes:
        graphs: the graphs of both parts in turn, computed by ONNX Runtime.
        compiled: what was compiled, in turn; None where it cannot run.
        mask_iou: the mean intersection over union of the compiled pair's best masks with the whole model's.
        doubts: reasons to distrust the numbers.
    """

    graphs: Parity
    compiled: Parity | None = None
    mask_iou: float | None = None
    doubts: tuple[str, ...] = ()


def make_pair_examples(model: LoadedModel) -> Examples:
    """Run the whole model on made-up images, each with another kind of prompt.

    Args:
        model: the encoder, with `run_whole`.
    """
    assert model.run_whole is not None
    preprocess = model.preprocess
    prompts = make_prompts(*preprocess.size)
    pixels = tuple(natural_image(seed, preprocess, 1, LOOKS[seed]) for seed in range(len(prompts)))
    outputs = tuple(
        model.run_whole(normalize(image, preprocess), prompt) for image, prompt in zip(pixels, prompts, strict=True)
    )
    names = tuple(f"{prompt} on {look.name}" for prompt, look in zip(prompts, LOOKS, strict=False))
    further = tuple(fill_slots(prompt) for prompt in prompts)
    return Examples(model.input_name, preprocess, pixels, outputs, names, further=further)


def check_pair(
    encoder: Artifact, decoder: Artifact, links: Mapping[str, str], examples: Sequence[Example], progress: Progress
) -> PairClaim:
    """Run both parts in turn, and compare each output with the whole model's.

    Args:
        encoder: the artifact or bundle of the encoder.
        decoder: the artifact or bundle of the decoder.
        links: see `FamilyRecord`.
        examples: images in the encoder's form and prompts, with the whole model's outputs.
        progress: gets the step.

    Raises:
        CompileError: outputs are not finite, or float32 parts give other numbers than the whole model.
    """
    numbers = _lowest(encoder, decoder)
    wiring = read_wiring(encoder, links)
    with progress.step("Run both parts in turn, and compare them with the whole model"):
        graphs = _emulate(encoder, decoder, wiring, examples)
        if not graphs.finite:
            raise CompileError(f"the graphs of the pair are wrong: {graphs.problem}", fix="Use --precision fp32.")
        if numbers.precision == "fp32" and (reason := explain_difference(graphs)) is not None:
            raise CompileError(
                f"encoder and decoder in turn give other numbers than the whole model: {reason}",
                fix="Run with --verify to find the pass.",
            )
        target = targets.find(encoder.manifest.recipe.target)
        stages = {part.manifest.stage for part in (encoder, decoder)}
        if "bundle" in stages or target.cannot_run() is not None:
            return PairClaim(graphs)
        with open_parts(encoder, decoder, links, progress=progress) as pair:
            parity = compare_session(pair, examples, wiring.image)
            overlap = _measure_overlap(pair, examples, wiring.image)
    if not parity.finite:
        raise CompileError(f"the compiled pair is wrong: {parity.problem}", fix="Use --precision fp32.")
    claim = judge(parity, numbers, target, graphs)
    return PairClaim(graphs, parity, overlap, claim.doubts)


def _lowest(encoder: Artifact, decoder: Artifact) -> Numbers:
    """Return the numbers of the part that is not float32; of the encoder if both are not."""
    kinds = [precision.kind_of(part.manifest.target.precision).numbers for part in (encoder, decoder)]
    return next((numbers for numbers in kinds if numbers.precision != "fp32"), kinds[0])


def _emulate(encoder: Artifact, decoder: Artifact, wiring: Wiring, examples: Sequence[Example]) -> Parity:
    outputs = [tuple(spec.name for spec in part.manifest.outputs) for part in (encoder, decoder)]
    sessions = [
        OnnxSession(part.file(GRAPH), lean=True, outputs=names)
        for part, names in zip((encoder, decoder), outputs, strict=True)
    ]
    with PairSession(sessions[0], sessions[1], wiring) as pair:
        return compare_session(pair, examples, wiring.image)


def _measure_overlap(pair: Session, examples: Sequence[Example], image: str) -> float:
    """Return the mean intersection over union of the best masks at the decoder's own resolution."""
    task = PromptableMasks()
    overlaps = [task.compare_outputs(example.outputs, pair.run(example.feed(image))) for example in examples]
    return float(np.mean(overlaps))
