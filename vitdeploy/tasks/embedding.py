"""Image embeddings: do images of one class lie near each other, and does each image keep its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, Weigh, _outputs, check_count, finite_samples

_PERCENT = 100.0
_PREFERRED = ("image_embeds", "pooler_output", "output")
_ROWS = 512  # of the similarity matrix at a time
_FIX = "Give a model without a classifier (timm: model.kwargs {num_classes: 0}), or name its output in task.output."

_FIRST = 4  # numbers of a vector that are shown


class Embedding(Task):
    """A vector for each image, out of (batch, size) numbers; or out of (batch, tokens, size), pooled.

    Attributes:
        output: names the vectors where the model has several outputs; by default "image_embeds", "pooler_output",
            "output", else the first 2-D one, else the first 3-D one, pooled.
        pool: of tokens: the first one ("cls"), or the mean of all.
        k: how many neighbours are compared.
    """

    metric_names: ClassVar[Mapping[str, str]] = {
        "recall1": "recall@1", "recall_k": "recall@k", "knn_agreement": "same neighbours",
    }  # fmt: skip
    units: ClassVar[Mapping[str, str]] = {
        "recall1": "points", "recall_k": "points", "knn_agreement": "points", "cosine": "points",
    }  # fmt: skip
    binary: ClassVar[frozenset[str]] = frozenset({"recall1", "recall_k"})
    same_from: ClassVar[float] = 0.99
    output: str | None = None
    pool: Literal["cls", "mean"] = "cls"
    k: Annotated[int, Field(ge=1)] = 5

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """The vector of each image, its length made 1."""
        return list(self._vectors(outputs))

    def alike(self, reference: Array, deployed: Array) -> float:
        """The cosine, 0 where it is negative."""
        return float(np.clip(reference @ deployed, 0, 1))

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """The vector and the class of each image; a vector that is not finite is 0, and so far from all others."""
        vectors = self._vectors(outputs)
        check_count(len(vectors), labels)
        finite = finite_samples(outputs)
        vectors = np.where(finite[:, None], vectors, 0.0)
        return PerSample({"vector": vectors, "label": np.asarray(labels)}, list(vectors), finite)

    def paired(self, reference: Values, deployed: Values) -> tuple[Values, Values]:
        """Recall against all other images, on either side; cosine and shared neighbours between the sides.

        Raises:
            DataError: too few images, or none that has another one of its class.
        """
        labels = reference["label"]
        _check_gallery(labels, self.k)
        near = self._neighbours(reference["vector"]), self._neighbours(deployed["vector"])
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

    def weigher(self, values: Values) -> Weigh:
        """Means over images, in percent; the reference agrees with itself by 100."""
        return lambda weights: {
            name: _PERCENT * float(np.average(values[name], weights=weights)) for name in self.units
        }

    def doubts(self, values: Values) -> list[str]:
        """No better than chance."""
        _, counts = np.unique(values["label"], return_counts=True)
        n = counts.sum()
        chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
        recall = float(values["recall1"].mean())
        if recall > chance:
            return []
        return [
            f"the reference finds an image of the same class in {_PERCENT * recall:.1f} % of its nearest neighbours, "
            f"no more than chance ({_PERCENT * chance:.1f} %): are these the images and classes that it is for?"
        ]

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  a vector has no class
        view: tuple[float, float, float, float],  # noqa: ARG002  nor a place
    ) -> Answer:
        """The vector, its length made 1."""
        return Answer(embedding=tuple(float(v) for v in self._vectors(outputs)[0]))

    def lines(self, answer: Answer) -> list[str]:
        """Return how long the vector is, and its first numbers."""
        first = ", ".join(f"{value:.3f}" for value in answer.embedding[:_FIRST])
        return [f"{len(answer.embedding)} numbers of length 1: {first} …"]

    def _vectors(self, outputs: Mapping[str, Array]) -> Array:
        """(batch, size) float64, of length 1; a zero vector stays."""
        flat = {name: self._pooled(value) for name, value in outputs.items()}
        preferred = [n for n in _PREFERRED if outputs.get(n, np.empty(0)).ndim == 2]
        preferred += [name for name, value in outputs.items() if value.ndim == 2]
        raw = _outputs.chosen(flat, self.output, preferred, 2, "(batch, size) or (batch, tokens, size)", _FIX)
        vectors = raw.astype(np.float64)
        lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        unit: Array = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return unit

    def _pooled(self, value: Array) -> Array:
        if value.ndim != 3:
            return value
        pooled: Array = value[:, 0] if self.pool == "cls" else value.mean(axis=1)
        return pooled

    def _neighbours(self, vectors: Array) -> Array:
        """(n, k): for each image the other images with the largest cosine, nearest first; of equal ones the earlier."""
        found = []
        for start in range(0, len(vectors), _ROWS):
            similar = vectors[start : start + _ROWS] @ vectors.T
            rows = np.arange(len(similar))
            similar[rows, start + rows] = -np.inf  # an image is not its own neighbour
            found.append(np.argsort(-similar, axis=1, kind="stable")[:, : self.k])
        return np.concatenate(found)


def _check_gallery(labels: Array, k: int) -> None:
    if len(labels) <= k:
        raise DataError(f"{len(labels)} images have no {k} neighbours each", fix="Give more images, or a lower task.k.")
    _, counts = np.unique(labels, return_counts=True)
    if len(counts) == 1:
        raise DataError(
            "all images are of one class: every neighbour is right", fix="Give images of two classes or more."
        )
    if counts.max() == 1:
        raise DataError("no two images are of one class: no neighbour is right", fix="Give several images of a class.")


def _recall(neighbours: Array, labels: Array, vectors: Array) -> dict[str, Array]:
    """0 or 1 for each image: is the nearest one, is one of the k nearest, of its class. A zero vector finds nothing."""
    same = np.equal(labels[neighbours], labels[:, None], dtype=bool) & (np.abs(vectors).max(axis=1) > 0)[:, None]
    return {"recall1": same[:, 0].astype(np.float64), "recall_k": same.max(axis=1).astype(np.float64)}
