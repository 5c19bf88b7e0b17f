"""`vitdeploy eval` of a family: the overlap of masks with objects, from prompts that are taken from those objects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact.family import Family
from vitdeploy.artifact.layout import SAMPLES
from vitdeploy.data.dataset import digest_image, named_batches
from vitdeploy.data.labels import InstanceMasks, Label
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.outlines import decompress
from vitdeploy.data.point_prompts import Prompt, fill_slots
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import DataError, UsageError
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
from vitdeploy.measure import accuracy
from vitdeploy.measure.samples import Outcomes, count_once, pack
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.runtime.pair import PairSession, open_pair, open_reference_pair
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.session import Array
from vitdeploy.tasks.promptable_masks import PromptableMasks
from vitdeploy.verdict import explain_calibrated

PromptKind = Literal["box", "point"]


@dataclass
class _Side:
    """One of the two compared pairs, with the sums over the objects of each image so far."""

    pair: PairSession
    form: InputForm
    values: list[dict[str, float]] = field(default_factory=list)

    def answer(
        self, task: PromptableMasks, image: Array, prompts: Sequence[Prompt], labels: Sequence[InstanceMasks],
        preprocess: Preprocess,
    ) -> tuple[list[Array], bool]:  # fmt: skip
        """Answer all prompts of an image (planes, h, w). Return the masks, and True if all outputs were finite."""
        encoded = self.pair.encode(to_input(image[None], preprocess, self.form))
        answered = [
            task.statistics(self.pair.decode(encoded, fill_slots(prompt)), [label])
            for prompt, label in zip(prompts, labels, strict=True)
        ]
        self.values.append({key: sum(float(one.values[key][0]) for one in answered) for key in answered[0].values})
        return [one.answers[0] for one in answered], all(bool(one.finite.all()) for one in answered)

    def stack(self) -> tasks.Values:
        """Return the sums of all images."""
        return {name: np.array([one[name] for one in self.values]) for name in self.values[0]}


def evaluate_family(
    family: Family, data: str | None, progress: Progress, *, limit: int | None = None, prompt: PromptKind = "box"
) -> Eval:
    """Compare the masks of a family and of the whole model with the same objects, and store the result.

    Each object of an image gives a prompt. A sample is an image with all of its objects; images without any, and
    crowds, do not count.

    Args:
        family: the family, which runs here.
        data: DATA with masks of objects; None is the recipe's.
        progress: gets the steps and warnings.
        limit: the number of images to stop after.
        prompt: "box": the box around an object; "point": the point that is farthest inside.

    Raises:
        UsageError: no data is named.
        DataError: the data has no masks of objects, or is damaged.
        SourceError, MeasureError: the whole model cannot be loaded here, or has changed.
    """
    manifest, task = family.encoder.manifest, PromptableMasks()
    spec = data or manifest.recipe.data.evaluation
    if spec is None:
        raise UsageError(
            "there is no data to evaluate on",
            fix="Give --data DATA: images/ and annotations.json with masks of objects.",
        )
    dataset = open_dataset(spec, manifest.preprocess, labels=None, need_labels=True, split="evaluation", form=task.data)
    digests: list[int] = []
    agreement: list[float] = []
    finite: list[bool] = []
    with ExitStack() as stack:
        deployed = stack.enter_context(open_pair(family, None, progress))
        with progress.step(f"Load the reference {family.record.model}"):
            reference = stack.enter_context(open_reference_pair(family, None))
        sides = _Side(reference, "normalized"), _Side(deployed, manifest.recipe.target.input)
        with progress.step(f"Evaluate on {dataset.spec}", min(len(dataset), limit or len(dataset))) as advance:
            for batch in named_batches(dataset, 1, limit=limit):
                advance(1)
                labels = split_objects(batch.labels[0])
                if not labels:
                    continue
                image, size = batch.images[0], manifest.preprocess.size
                prompts = [derive_prompt(label, size, prompt) for label in labels]
                first, second = (side.answer(task, image, prompts, labels, manifest.preprocess) for side in sides)
                pairs = zip(first[0], second[0], strict=True)
                agreement.append(float(np.mean([task.compare_pair(a, b) for a, b in pairs])))
                finite.append(second[1])
                digests.append(digest_image(image))
    if not digests:
        raise DataError(f"{spec} has no object to take a prompt from", fix="Give images with masks of objects.")
    outcomes = Outcomes(
        digest=np.array(digests, np.uint64),
        reference=sides[0].stack(),
        deployed=sides[1].stack(),
        agreement=np.array(agreement),
        finite=np.array(finite),
    )
    counted = accuracy.pair_outcomes(task, count_once(outcomes))
    raw = pack(counted)
    evaluation = replace(
        accuracy.compare_outcomes(task, counted),
        provenance=describe_provenance(manifest, deployed.threads),
        reference=reference.name,
        data=dataset.spec,
        data_digest=dataset.digest,
        skipped=len(dataset.skipped),
        samples=hashlib.sha256(raw).hexdigest(),
        available=len(dataset),
        limit=limit,
        repeated=len(outcomes.digest) - len(counted.digest),
    )
    calibrated = (explain_calibrated(part.manifest, dataset.digest, counted) for part in family.parts.values())
    for warning in (*evaluation.doubts, *filter(None, calibrated)):
        progress.warn(warning)
    return family.write_evidence(evaluation, {SAMPLES: raw})


def split_objects(label: Label) -> list[InstanceMasks]:
    """Return a label for each object of an image, without crowds."""
    if not isinstance(label, InstanceMasks):
        raise DataError("the labels are not masks of objects", fix="Give data with images/ and annotations.json.")
    return [
        InstanceMasks(
            label.name, label.masks[n : n + 1], label.classes[n : n + 1], label.crowd[n : n + 1], label.size, label.view
        )
        for n in range(len(label.masks))
        if not label.crowd[n]
    ]


def derive_prompt(label: InstanceMasks, size: tuple[int, int], kind: PromptKind) -> Prompt:
    """Return a prompt for the first object of a label, in pixels of the model's input of `size` (height, width)."""
    mask = decompress(label.masks[0], label.size)
    top, left, bottom, right = label.view or (0, 0, *label.size)
    x, y = size[1] / (right - left), size[0] / (bottom - top)
    if kind == "point":
        row, column = find_inmost(mask)
        prompt = Prompt(((float(column), float(row)),), (True,))
    else:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        prompt = Prompt(box=(float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])))
    return prompt.scale(x, y, left * x, top * y)


def find_inmost(mask: Array) -> tuple[int, int]:
    """Return row and column of the pixel of a mask that is farthest from its border."""
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(row), int(column)
