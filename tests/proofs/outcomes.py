"""Outcomes of 60 samples for every task, as its statistics give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vitdeploy.measure.samples import Outcomes
from vitdeploy.session import Array

COUNT = 60


def _random() -> np.random.Generator:
    return np.random.default_rng(6)


def _outcomes(reference: Mapping[str, Array], deployed: Mapping[str, Array]) -> Outcomes:
    agreement, finite = _random().uniform(0.9, 1.0, COUNT), np.ones(COUNT, dtype=bool)
    return Outcomes(np.arange(COUNT, dtype=np.uint64), reference, deployed, agreement, finite)


def _classification() -> Outcomes:
    rng = _random()
    labels = rng.integers(0, 10, COUNT)
    sides = [np.where(rng.uniform(size=COUNT) < share, labels, (labels + 1) % 10) for share in (0.9, 0.8)]
    rows = [{"top1": (s == labels).astype(float), "top5": np.ones(COUNT), "answer": s, "label": labels} for s in sides]
    return _outcomes(rows[0], rows[1])


def _segmentation() -> Outcomes:
    rng = _random()
    labelled = rng.integers(50, 100, (COUNT, 4))
    sides = [np.stack([labelled - rng.integers(0, most, labelled.shape), labelled, labelled], -1) for most in (10, 20)]
    return _outcomes({"counts": sides[0]}, {"counts": sides[1]})


def _depth() -> Outcomes:
    rng = _random()

    def side(error: float) -> dict[str, Array]:
        return {
            "delta1": rng.uniform(80, 100, COUNT), "abs_rel": error * rng.uniform(5, 10, COUNT),
            "rmse": error * rng.uniform(0.1, 0.3, COUNT), "ratio": rng.uniform(0.9, 1.1, COUNT),
        }  # fmt: skip

    return _outcomes(side(1.0), side(1.1))


def _detection() -> Outcomes:
    rng = _random()
    kinds, objects = np.full((COUNT, 5), -1, np.int32), np.zeros((COUNT, 2), np.int32)
    kinds[:, :3] = rng.integers(0, 2, (COUNT, 3))
    for place in range(2):
        objects[:, place] = (kinds == place).sum(axis=1)

    def side(share: float) -> dict[str, Array]:
        score = np.where(kinds >= 0, rng.uniform(0.3, 1.0, (COUNT, 5)), -np.inf)
        hit = np.where((kinds >= 0) & (rng.uniform(size=(COUNT, 5)) < share), 0b1111, 0).astype(np.uint16)
        return {"score": score, "class": kinds, "hit": hit, "ignored": np.zeros_like(hit), "objects": objects}

    return _outcomes(side(0.9), side(0.8))


def _embedding() -> Outcomes:
    rng = _random()
    labels, centres = np.arange(COUNT) % 6, rng.normal(size=(6, 8))

    def side(noise: float) -> dict[str, Array]:
        vectors = centres[labels] + noise * rng.normal(size=(COUNT, 8))
        return {"vector": vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "label": labels}

    return _outcomes(side(0.3), side(0.5))


OUTCOMES: Mapping[str, Callable[[], Outcomes]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "depth": _depth,
    "detection": _detection,
    "embedding": _embedding,
}
