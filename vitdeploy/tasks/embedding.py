"""Image embeddings: recall of images of the same class among the neighbours, and neighbours that stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, WeightedMetrics, _outputs, check_count

_PERCENT = 100.0
_PREFERRED = ("image_embeds", "pooler_output", "output")
_ROWS = 512  # rows of the similarity matrix that are computed at a time
_FIX = "Give a model without a classifier (timm: model.kwargs {num_classes: 0}), or name its output in task.output."

_SHOWN = 4  # numbers of a vector that are printed


class Embedding(Task):
    """A vector for each image, from (batch, size) numbers, or from (batch, tokens, size) by pooling.

    Attributes:
        output: names the vectors if the model has several outputs. The default is "image_embeds", "pooler_output" or
            "output", else the first 2-D output, else the first 3-D output, pooled.
        pool: how tokens are pooled: the first token ("cls"), or the mean of all.
        k: how many neighbours are compared.
    """

    metric_names: ClassVar[Mapping[str, str]] = {
        "recall1": "recall@1", "recall_k": "recall@k", "knn_agreement": "same neighbours",
    }  # fmt: skip
    named_classes: ClassVar[bool] = False
    units: ClassVar[Mapping[str, str]] = {
        "recall1": "points", "recall_k": "points", "knn_agreement": "points", "cosine": "points",
    }  # fmt: skip
    binary: ClassVar[frozenset[str]] = frozenset({"recall1", "recall_k"})
    flip_below: ClassVar[float] = 0.99
    output: str | None = None
    pool: Literal["cls", "mean"] = "cls"
    k: Annotated[int, Field(ge=1)] = 5

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the vector of each image, scaled to length 1."""
        return list(self._vectors(outputs))

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the vectors, or the tokens that are pooled."""
        name = self._find_vectors(outputs)
        return {name: outputs[name]}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the cosine, or 0 if it is negative."""
        return float(np.clip(reference @ deployed, 0, 1))

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Return the vector and the class of each image. A vector that is not finite becomes 0, far from all others."""
        vectors = self._vectors(outputs)
        check_count(len(vectors), labels)
        finite = self.find_finite_answers(outputs)
        vectors = np.where(finite[:, None], vectors, 0.0)
        return PerSample({"vector": vectors, "label": np.asarray(labels)}, list(vectors), finite)

    def pair_statistics(self, reference: Values, deployed: Values) -> tuple[Values, Values]:
        """Add the recall among all other images for each side, and cosine and shared neighbours between the sides.

        Raises:
            DataError: there are too few images, or no two images of one class.
        """
        labels = reference["label"]
        _check_gallery(labels, self.k)
        near = self._find_neighbours(reference["vector"]), self._find_neighbours(deployed["vector"])
        shared = np.array([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]) / self.k
        cosine = np.einsum("nd,nd->n", reference["vector"], deployed["vector"]).clip(-1, 1)
        one = np.ones(len(labels))
        return (
            {"label": labels, **_recall(near[0], labels, reference["vector"]), "knn_agreement": one, "cosine": one},
            {
                "label": labels,
                **_recall(near[1], labels, deployed["vector"]),
                "knn_agreement": shared,
                "cosine": cosine,
            },
        )

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the means over images, in percent. The reference agrees with itself by 100 %."""
        return lambda weights: {
            name: _PERCENT * float(np.average(values[name], weights=weights)) for name in self.units
        }

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find a recall that is no better than chance."""
        _, counts = np.unique(values["label"], return_counts=True)
        n = counts.sum()
        chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        recall = float(values["recall1"].mean())
        if recall > chance:
            return []
        return [
            f"the reference finds an image of the same class in {_PERCENT * recall:.1f} % of its nearest neighbours, "
            f"no more than chance ({_PERCENT * chance:.1f} %): are these images and classes right for this model?"
        ]

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  a vector has no class
        view: tuple[float, float, float, float],  # noqa: ARG002  nor a place
        picture: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Answer:
        """Return the vector, scaled to length 1."""
        return Answer(embedding=tuple(float(v) for v in self._vectors(outputs)[0]))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return the size of the vector, and its first numbers."""
        first = ", ".join(f"{value:.3f}" for value in answer.embedding[:_SHOWN])
        return [f"vector of {len(answer.embedding)} numbers, length 1: {first} …"]

    def _vectors(self, outputs: Mapping[str, Array]) -> Array:
        """Return float64 vectors (batch, size) of length 1; a zero vector stays."""
        vectors = self._pool(outputs[self._find_vectors(outputs)]).astype(np.float64)
        lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        unit: Array = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return unit

    def _find_vectors(self, outputs: Mapping[str, Array]) -> str:
        flat = {name: self._pool(value) for name, value in outputs.items()}
        preferred = [n for n in _PREFERRED if outputs.get(n, np.empty(0)).ndim == 2]
        preferred += [name for name, value in outputs.items() if value.ndim == 2]
        return _outputs.find_output(flat, self.output, preferred, 2, "(batch, size) or (batch, tokens, size)", _FIX)

    def _pool(self, value: Array) -> Array:
        if value.ndim != 3:
            return value
        pooled: Array = value[:, 0] if self.pool == "cls" else value.mean(axis=1)
        return pooled

    def _find_neighbours(self, vectors: Array) -> Array:
        """Return (n, k): for each image the k other images with the largest cosine; of equal ones the earlier first."""
        neighbours = []
        for start in range(0, len(vectors), _ROWS):
            cosines = vectors[start : start + _ROWS] @ vectors.T
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf  # an image is not its own neighbour
            neighbours.append(np.argsort(-cosines, axis=1, kind="stable")[:, : self.k])
        return np.concatenate(neighbours)


def _check_gallery(labels: Array, k: int) -> None:
    if len(labels) <= k:
        raise DataError(
            f"{len(labels)} images are too few for {k} neighbours each", fix="Give more images, or a lower task.k."
        )
    _, counts = np.unique(labels, return_counts=True)
    if len(counts) == 1:
        raise DataError(
            "all images have the same class, so every neighbour is right", fix="Give images of two or more classes."
        )
    if counts.max() == 1:
        raise DataError(
            "no two images have the same class, so no neighbour is right", fix="Give several images of each class."
        )


def _recall(neighbours: Array, labels: Array, vectors: Array) -> dict[str, Array]:
    """Return 1 for each image whose nearest neighbour, or one of its k nearest, has its class; else 0.

    For a zero vector both are 0.
    """
    same = np.equal(labels[neighbours], labels[:, None], dtype=bool) & (np.abs(vectors).max(axis=1) > 0)[:, None]
    return {"recall1": same[:, 0].astype(np.float64), "recall_k": same.max(axis=1).astype(np.float64)}
