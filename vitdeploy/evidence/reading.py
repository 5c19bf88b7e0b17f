"""The numbers that a program needs to read answers in a model's outputs."""

from __future__ import annotations

from typing import Literal

from vitdeploy.evidence.fact import Fact


class PostProcessing(Fact):
    """The steps from outputs to classes or boxes, as numbers.

    Attributes:
        scores: the output with the scores, (batch, classes) or (batch, queries, classes).
        activation: what turns scores into probabilities, along the classes. A classifier whose scores are probabilities
            already (from 0 to 1, with a sum from 0.9 to 1.1) needs none.
        candidates: of a detector, "best class" of each query, or "every class" of each query; None for a classifier.
        no_object: the class that stands for "no object", left out after the activation; None if there is none.
        top_k: how many candidates count, highest probability first.
        threshold: the lowest probability that is shown.
        boxes: the output with the boxes; None for a classifier.
        boxes_layout: the axes of one image's boxes.
        box_form: the four numbers of a box.
        box_unit: their unit: shares of the width and height of the model's input, from 0 to 1.
    """

    scores: str
    activation: Literal["softmax", "sigmoid"]
    candidates: Literal["best class", "every class"] | None = None
    no_object: int | None = None
    top_k: int
    threshold: float = 0.0
    boxes: str | None = None
    boxes_layout: Literal["queries, 4", "4, queries"] | None = None
    box_form: Literal["centre x, centre y, width, height"] | None = None
    box_unit: Literal["share of the input"] | None = None
